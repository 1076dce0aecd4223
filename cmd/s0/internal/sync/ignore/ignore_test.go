package ignore

import (
	"strings"
	"testing"
)

// The lines are what git's documentation says of each form.
func TestMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, yes, no string }{
		{"", "", "a a/b"},
		{"# a\n\n  \n", "", "a #"},
		{`\#a`, "#a", "a"},
		{`\!a`, "!a", "a"},
		{"a", "a a/ d/a d/e/a/", "ab d/ab"},
		{"a ", "a", "ab"},
		{"a/", "a/ d/a/", "a d/a"},
		{"/a", "a a/", "d/a"},
		{"d/a", "d/a", "e/d/a a"},
		{"doc/frotz/", "doc/frotz/", "a/doc/frotz/ doc/frotz"},
		{"frotz/", "frotz/ a/frotz/", "frotz"},
		{"foo/*", "foo/test.json foo/bar/", "foo/bar/hello.c"},
		{"*.o", "a.o d/a.o .o", "a.ob o"},
		{"*.[oa]", "a.o a.a", "a.b a.oa"},
		{"a?c", "abc aéc", "ac abbc"},
		{"[a-c]x", "ax bx cx", "dx x"},
		{"[!a-c]x", "dx", "ax"},
		{"[^a-c]x", "dx", "ax"},
		{"[]a]x", "]x ax", "bx"},
		{`[a\-c]x`, "ax -x cx", "bx"},
		{"[a", "", "a [a"},
		{"**/foo", "foo a/foo a/b/foo", "foob"},
		{"**/foo/bar", "foo/bar a/foo/bar", "foo/a/bar"},
		{"abc/**", "abc/a abc/a/b", "abc/ abc d/abc/a"},
		{"a/**/b", "a/b a/x/b a/x/y/b", "a/xb b"},
		{"a/**/b/**/c", "a/b/c a/x/b/y/z/c a/b/b/c", "a/c b/c"},
		{"*\n!a", "b a/b", "a d/a"},
		{"!a\n*", "a b", ""},
		{"*a*b*", "ab xaybz aab", "ba"},
		{"node_modules/\n*.log\n!keep.log", "node_modules/ x/node_modules/ a.log", "keep.log node_modules"},
		{`a\*`, "a*", "ab"},
		{"ä*", "äb", "ab"},
	} {
		m := Matcher{}.With("", c.text)
		for _, path := range strings.Fields(c.yes) {
			if p, dir := strings.CutSuffix(path, "/"); !m.Match(p, dir) {
				t.Errorf("%q does not ignore %s", c.text, path)
			}
		}
		for _, path := range strings.Fields(c.no) {
			if p, dir := strings.CutSuffix(path, "/"); m.Match(p, dir) {
				t.Errorf("%q ignores %s", c.text, path)
			}
		}
	}
}

func TestTrailingSpaces(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"a  ": "a", `a\ `: `a\ `, `a\  `: `a\ `, `a\\ `: `a\\`} {
		if got := trimSpaces(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if !(Matcher{}).With("", `a\ `).Match("a ", false) {
		t.Error("a space behind a backslash is part of the name")
	}
}

func TestDeeperRulesWin(t *testing.T) {
	t.Parallel()
	root := Matcher{}.With("", "*.log\n/only")
	deep := root.With("d", "!*.log\n/x\ne/y")
	for path, want := range map[string]bool{
		"a.log": true, "d/a.log": false, "d/f/a.log": false, "d/x": true, "x": false, "d/f/x": false, "d/e/y": true, "e/y": false, "only": true, "d/only": false, "dd/x": false,
	} {
		if got := deep.Match(path, false); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if !root.Match("d/a.log", false) {
		t.Error("the rules of a deeper directory changed the shallower one's")
	}
}

// A file that wants to keep its reader busy: stars that match in many ways, lines
// without end.
func TestHostileRules(t *testing.T) {
	t.Parallel()
	m := Matcher{}.With("", strings.Repeat("*a", 400)+"b\n"+strings.Repeat("**/a/", 150)+"b\n"+strings.Repeat("x", 1<<20)+"\n"+strings.Repeat("y\n", 20_000))
	if len(m.rules) > maxRules {
		t.Errorf("%d rules", len(m.rules))
	}
	if m.Match(strings.Repeat("a", 255), false) || m.Match(strings.Repeat("a/", 2000)+"c", false) {
		t.Error("nothing of it matches")
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a/**/[b-c]*\n!x", "a/q/bz")
	f.Add("[", "[")
	f.Fuzz(func(t *testing.T, text, path string) {
		m := Matcher{}.With("", text)
		if len(m.rules) > maxRules {
			t.Fatal("too many rules")
		}
		m.Match(path, true)
		// Whatever the rules are, one that names everything again has the last word.
		if m.With("", "!**").Match(path, true) && path != "" {
			t.Errorf("%q is ignored against the last rule", path)
		}
	})
}
