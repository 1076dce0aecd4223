package search

import (
	"path"
	"regexp"
	"strings"

	"s0.run/internal/procapi"
)

// globs match paths below the root: one without a slash the last element alone, one
// with a slash the whole path, from its beginning. `*` and `?` do not match a slash,
// `**` as an element matches any number of them, `[a-z]` and `[!a-z]` one character
// of a set, `{a,b}` one of several words. They become RE2: matching takes linear time.
type globs struct{ name, whole *regexp.Regexp }

func compileGlobs(field string, patterns []string) (*globs, error) {
	if len(patterns) > procapi.MaxSearchGlobs {
		return nil, invalid("%s: at most %d globs", field, procapi.MaxSearchGlobs)
	}
	var name, whole []string
	for _, p := range patterns {
		if p == "" || len(p) > procapi.MaxSearchGlob {
			return nil, invalid("%s: a glob has 1 to %d bytes", field, procapi.MaxSearchGlob)
		}
		expr, ok := translate(strings.TrimPrefix(p, "/"))
		if !ok {
			return nil, invalid("%s: malformed glob %.100q", field, p)
		}
		if strings.Contains(p, "/") {
			whole = append(whole, expr)
		} else {
			name = append(name, expr)
		}
	}
	var g globs
	var err error
	if g.name, err = anyOf(name); err == nil {
		g.whole, err = anyOf(whole)
	}
	if err != nil {
		return nil, invalid("%s: malformed glob", field)
	}
	return &g, nil
}

func anyOf(exprs []string) (*regexp.Regexp, error) {
	if len(exprs) == 0 {
		return nil, nil
	}
	return regexp.Compile(`(?s)\A(?:` + strings.Join(exprs, "|") + `)\z`)
}

func (g *globs) empty() bool { return g.name == nil && g.whole == nil }

func (g *globs) match(rel string) bool {
	return g.name != nil && g.name.MatchString(path.Base(rel)) || g.whole != nil && g.whole.MatchString(rel)
}

// translate turns a glob into a regular expression.
func translate(glob string) (string, bool) {
	var b strings.Builder
	braces := 0
	for i := 0; i < len(glob); {
		rest := glob[i:]
		atStart := i == 0 || glob[i-1] == '/'
		switch {
		case atStart && strings.HasPrefix(rest, "**/"):
			b.WriteString(`(?:[^/]*/)*`)
			i += 3
		case atStart && rest == "**":
			b.WriteString(`.*`)
			i += 2
		case rest[0] == '*':
			b.WriteString(`[^/]*`)
			i++
		case rest[0] == '?':
			b.WriteString(`[^/]`)
			i++
		case rest[0] == '[':
			set, n := charSet(rest)
			if n == 0 {
				return "", false
			}
			b.WriteString(set)
			i += n
		case rest[0] == '{':
			braces++
			b.WriteString(`(?:`)
			i++
		case rest[0] == '}' && braces > 0:
			braces--
			b.WriteString(`)`)
			i++
		case rest[0] == ',' && braces > 0:
			b.WriteString(`|`)
			i++
		default:
			n := literal(rest)
			b.WriteString(regexp.QuoteMeta(strings.TrimPrefix(rest[:n], `\`)))
			i += n
		}
	}
	return b.String(), braces == 0
}

// literal is how many bytes stand for themselves: all up to the next special one,
// or an escaped character.
func literal(s string) int {
	if s[0] == '\\' && len(s) > 1 {
		return 2
	}
	if n := strings.IndexAny(s[1:], `*?[{},\/`); n >= 0 {
		return n + 1
	}
	return len(s)
}

// charSet translates the set that s begins with; n is its length, 0 if it is none.
func charSet(s string) (expr string, n int) {
	body := s[1:]
	not := strings.HasPrefix(body, "!") || strings.HasPrefix(body, "^")
	if not {
		body = body[1:]
	}
	end := strings.IndexByte(body[min(1, len(body)):], ']') // one that comes first is a member
	if end < 0 {
		return "", 0
	}
	set := body[:end+1]
	expr = strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `^`, `\^`, `&`, `\&`).Replace(set)
	if not {
		expr = `^/` + expr
	}
	return `[` + expr + `]`, len(s) - len(body) + end + 2
}
