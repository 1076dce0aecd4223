package sshproxy

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"s0.run/internal/errdefs"
)

// hostKeys are the keys that lines of known_hosts have for a server. A line that is not
// understood ends it: what it was to say could be that a key is no longer good.
func hostKeys(lines []string, host string, port uint16) (keys []ssh.PublicKey, _ error) {
	for _, l := range lines {
		marker, hosts, key, _, _, err := ssh.ParseKnownHosts([]byte(l))
		if err != nil || marker != "" {
			return nil, errdefs.New(errdefs.Unavailable, "knownHosts has a line that is not understood")
		}
		if matches(hosts, host, port) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// matches says whether a server is among a line's patterns, and none that begins with !
// has it.
func matches(patterns []string, host string, port uint16) (found bool) {
	for _, p := range patterns {
		p, not := strings.CutPrefix(p, "!")
		if !has(strings.ToLower(p), host, port) {
			continue
		}
		if not {
			return false
		}
		found = true
	}
	return found
}

// has matches one pattern: `host`, which is about port 22, or `[host]:port`.
func has(pattern, host string, port uint16) bool {
	of := "22"
	if inner, after, ok := strings.Cut(strings.TrimPrefix(pattern, "["), "]:"); ok && pattern[0] == '[' {
		pattern, of = inner, after
	}
	if of != strconv.Itoa(int(port)) && of != "*" || strings.ContainsAny(pattern, `[]\/|`) {
		return false
	}
	ok, err := path.Match(pattern, host)
	return err == nil && ok
}

func is(authorized string, key ssh.PublicKey) bool {
	known, _, _, _, err := ssh.ParseAuthorizedKey([]byte(authorized))
	return err == nil && same(known, key)
}

func same(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// algorithms has upstream show a key of a kind that it is known by.
func algorithms(keys []ssh.PublicKey) (all []string) {
	for _, k := range keys {
		kinds := []string{k.Type()}
		if k.Type() == ssh.KeyAlgoRSA {
			kinds = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
		}
		for _, kind := range kinds {
			if !slices.Contains(all, kind) {
				all = append(all, kind)
			}
		}
	}
	return all
}
