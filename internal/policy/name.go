package policy

import (
	"errors"
	"strings"
)

// ErrName is what a name ends in that has no canonical form.
var ErrName = errors.New("not a host name")

// Name is the canonical form of a host name: lower case, without the root's dot,
// of letters, digits, hyphens and (inside labels, for services' names) underscores.
// What is internationalised has to come as punycode. Everything else (an address,
// a NUL, a control character, an empty or a long label) has no form: whatever
// carries such a name is denied.
func Name(raw string) (string, error) {
	name := lower(strings.TrimSuffix(raw, "."))
	if name == "" || len(name) > 253 {
		return "", ErrName
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if !validLabel(label) {
			return "", ErrName
		}
		last = label
	}
	if numeric(last) {
		return "", ErrName // an address, in one of the ways in which somebody reads one
	}
	return name, nil
}

// lower is ASCII's lower case alone: Unicode has letters that become ASCII's.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// numeric says whether a last label makes a name an address for inet_aton and the
// URL standard: digits alone, or 0x and hexadecimal digits.
func numeric(label string) bool {
	rest, hex := strings.CutPrefix(label, "0x")
	for i := range len(rest) {
		c := rest[i]
		if (c < '0' || c > '9') && (!hex || c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// pattern is a canonical domain of a rule: a name, or all of those below and
// itself.
type pattern struct {
	name string
	wild bool
}

// parsePattern reads `x` or `*.x`.
func parsePattern(raw string) (pattern, error) {
	rest, wild := strings.CutPrefix(raw, "*.")
	name, err := Name(rest)
	return pattern{name: name, wild: wild}, err
}

// matches says whether a canonical name is meant.
func (p pattern) matches(name string) bool {
	return name == p.name || p.wild && strings.HasSuffix(name, "."+p.name)
}
