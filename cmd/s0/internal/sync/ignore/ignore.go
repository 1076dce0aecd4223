// Package ignore tells which files of a directory git would ignore, from the words of
// its .gitignore files.
//
// A Matcher is a value: With adds the rules of a deeper directory and leaves the other as
// it was. The files are hostile input (they are synced, too): rules and their length are
// bounded, and matching takes at most the product of the pattern's and the path's length.
// The package reads nothing by itself; .git/info/exclude and a user's own excludes are
// not known to it.
package ignore

import (
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxRules   = 1000 // that hold in a directory
	maxPattern = 1024
)

// MaxFile bounds what is read of a .gitignore.
const MaxFile = 64 << 10

// rule is a line of a .gitignore.
type rule struct {
	dir      string   // of the file, with a slash at its end; empty for the root's
	segments []string // between slashes; "**" stands for any number of them
	anywhere bool     // the one segment is a name at any depth
	dirs     bool     // directories alone
	again    bool     // not to be ignored after all
}

// Matcher is the rules that hold in a directory.
type Matcher struct{ rules []rule }

// With is m and the rules of the .gitignore in dir, a path relative to the root ("" is
// the root itself).
func (m Matcher) With(dir, text string) Matcher {
	if dir != "" {
		dir += "/"
	}
	rules := slices.Clone(m.rules)
	for line := range strings.Lines(text) {
		r, ok := parse(strings.TrimRight(line, "\r\n"))
		if !ok {
			continue
		}
		if len(rules) == maxRules {
			break
		}
		r.dir = dir
		rules = append(rules, r)
	}
	return Matcher{rules}
}

// Match reports whether the rules ignore a path, whose directories they do not ignore:
// what is below an ignored directory is ignored whatever they say of it.
func (m Matcher) Match(path string, dir bool) bool {
	for _, r := range slices.Backward(m.rules) {
		below, found := strings.CutPrefix(path, r.dir)
		if found && (dir || !r.dirs) && r.match(below) {
			return !r.again
		}
	}
	return false
}

func parse(line string) (r rule, ok bool) {
	line = trimSpaces(line)
	if line == "" || line[0] == '#' || len(line) > maxPattern {
		return r, false
	}
	if rest, is := strings.CutPrefix(line, "!"); is {
		r.again, line = true, rest
	}
	line, r.dirs = strings.CutSuffix(line, "/")
	r.anywhere = !strings.Contains(line, "/")
	line = strings.TrimPrefix(line, "/")
	if line == "" {
		return r, false
	}
	r.segments = strings.Split(line, "/")
	return r, true
}

// trimSpaces takes the spaces at a line's end away that no backslash protects.
func trimSpaces(line string) string {
	for strings.HasSuffix(line, " ") {
		before := strings.TrimRight(line[:len(line)-1], `\`)
		if (len(line)-1-len(before))%2 == 1 {
			break
		}
		line = line[:len(line)-1]
	}
	return line
}

func (r *rule) match(path string) bool {
	if r.anywhere {
		return glob(r.segments[0], path[strings.LastIndexByte(path, '/')+1:])
	}
	return segments(r.segments, strings.Split(path, "/"))
}

// segments matches names against a pattern's, going back to the last "**" alone.
func segments(pattern, names []string) bool {
	p, n, star, from := 0, 0, -1, 0
	for n < len(names) {
		switch {
		case p < len(pattern) && pattern[p] == "**":
			star, from = p, n
			if p == len(pattern)-1 {
				return true // at least one name is left
			}
			p++
		case p < len(pattern) && glob(pattern[p], names[n]):
			p, n = p+1, n+1
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	return p == len(pattern)
}

// glob matches a name against a pattern without slashes, going back to the last star
// alone.
func glob(pattern, name string) bool {
	star, from := "", ""
	starred := false
	for name != "" {
		if pattern != "" && pattern[0] == '*' {
			pattern = strings.TrimLeft(pattern, "*")
			star, from, starred = pattern, name, true
			continue
		}
		letter, size := utf8.DecodeRuneInString(name)
		if rest, ok := one(pattern, letter); ok {
			pattern, name = rest, name[size:]
			continue
		}
		if !starred {
			return false
		}
		_, size = utf8.DecodeRuneInString(from)
		from = from[size:]
		pattern, name = star, from
	}
	return strings.Trim(pattern, "*") == ""
}

// one matches a letter against the beginning of a pattern and returns its rest.
func one(pattern string, letter rune) (rest string, ok bool) {
	if pattern == "" {
		return "", false
	}
	first, size := utf8.DecodeRuneInString(pattern)
	switch {
	case first == '?':
		return pattern[1:], true
	case first == '[':
		return class(pattern[1:], letter)
	case first == '\\' && len(pattern) > 1:
		first, size = utf8.DecodeRuneInString(pattern[1:])
		return pattern[1+size:], first == letter
	}
	return pattern[size:], first == letter
}

// class matches a letter against what follows a "[". One that is not closed matches
// nothing.
func class(pattern string, letter rune) (rest string, ok bool) {
	not := pattern != "" && (pattern[0] == '!' || pattern[0] == '^')
	if not {
		pattern = pattern[1:]
	}
	next := func() (r rune) {
		pattern = strings.TrimPrefix(pattern, `\`)
		r, size := utf8.DecodeRuneInString(pattern)
		pattern = pattern[size:]
		return r
	}
	in := false
	for first := true; pattern != "" && (first || pattern[0] != ']'); first = false {
		low := next()
		high := low
		if len(pattern) > 1 && pattern[0] == '-' && pattern[1] != ']' {
			pattern = pattern[1:]
			high = next()
		}
		in = in || low <= letter && letter <= high
	}
	rest, closed := strings.CutPrefix(pattern, "]")
	return rest, closed && in != not
}
