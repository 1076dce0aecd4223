package search

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/procapi"
)

// tree makes files and returns their directory.
func tree(t *testing.T, holds map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range holds {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func search(t *testing.T, req procapi.Search) ([]procapi.SearchMatch, procapi.SearchSummary) {
	t.Helper()
	q, err := Compile(files.Tree{}, req)
	if err != nil {
		t.Fatal(err)
	}
	var got []procapi.SearchMatch
	summary, err := q.Run(t.Context(), func(m procapi.SearchMatch) error {
		got = append(got, m)
		return nil
	})
	if err != nil || summary.Matches != len(got) {
		t.Fatalf("Run = %+v, %v, with %d matches", summary, err, len(got))
	}
	return got, summary
}

// want compares matches in the form path:line:column:text, or path when by name.
func want(t *testing.T, dir string, got []procapi.SearchMatch, want ...string) {
	t.Helper()
	var lines []string
	for _, m := range got {
		rel, _ := filepath.Rel(dir, m.Path)
		if m.Line > 0 {
			rel = fmt.Sprintf("%s:%d:%d:%s", rel, m.Line, m.Column, m.Text)
		} else if m.Type != "file" {
			rel += " " + m.Type
		}
		lines = append(lines, rel)
	}
	slices.Sort(lines)
	if !slices.Equal(lines, want) {
		t.Errorf("got  %q\nwant %q", lines, want)
	}
}

func TestContent(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{
		"a.go": "package a\n\nfunc Foo() {}\n// foo\n", "sub/b.go": "func foo() { Foo() }", "c.txt": "Foo\r\nfoo.bar\n\nfooxbar",
		"bin": "Foo\x00Foo", "node_modules/x.go": "Foo", "empty": "",
	})
	got, summary := search(t, procapi.Search{Path: dir, Pattern: "Foo", Exclude: []string{"node_modules"}})
	want(t, dir, got, "a.go:3:6:func Foo() {}", "c.txt:1:1:Foo", "sub/b.go:1:14:func foo() { Foo() }")
	if summary.Files != 5 || summary.Skipped != 1 || summary.Stopped != "" {
		t.Errorf("summary %+v", summary)
	}
	got, _ = search(t, procapi.Search{Path: dir, Pattern: "foo.b", IgnoreCase: true})
	want(t, dir, got, "c.txt:2:1:foo.bar")
	got, _ = search(t, procapi.Search{Path: dir, Pattern: "foo.b", Regexp: true})
	want(t, dir, got, "c.txt:2:1:foo.bar", "c.txt:4:1:fooxbar")
	got, _ = search(t, procapi.Search{Path: dir, Pattern: `^FUNC\s`, Regexp: true, IgnoreCase: true, Include: []string{"*.go"}})
	want(t, dir, got, "a.go:3:1:func Foo() {}", "sub/b.go:1:1:func foo() { Foo() }")
	got, _ = search(t, procapi.Search{Path: filepath.Join(dir, "c.txt"), Pattern: "Foo"})
	want(t, dir, got, "c.txt:1:1:Foo")
}

func TestNames(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"a.go": "", "b.txt": "", "x/y/c.go": "", "x/y/c_test.go": "", "x/z/d.go": ""})
	if err := os.Symlink("nowhere", filepath.Join(dir, "l.go")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		include, exclude []string
		want             []string
	}{
		{[]string{"*.go"}, nil, []string{"a.go", "l.go symlink", "x/y/c.go", "x/y/c_test.go", "x/z/d.go"}},
		{[]string{"*.go"}, []string{"*_test.go", "x/z"}, []string{"a.go", "l.go symlink", "x/y/c.go"}},
		{[]string{"/*.go"}, nil, []string{"a.go", "l.go symlink"}},
		{[]string{"x/*"}, nil, []string{"x/y dir", "x/z dir"}},
		{[]string{"x/**"}, nil, []string{"x/y dir", "x/y/c.go", "x/y/c_test.go", "x/z dir", "x/z/d.go"}},
		{[]string{"**/y/*.go"}, nil, []string{"x/y/c.go", "x/y/c_test.go"}},
		{[]string{"[!a-c]*.go", "?.{txt,md}"}, nil, []string{"b.txt", "l.go symlink", "x/z/d.go"}},
		{[]string{"*.GO"}, nil, nil},
	} {
		got, _ := search(t, procapi.Search{Path: dir, Include: c.include, Exclude: c.exclude})
		want(t, dir, got, c.want...)
	}
}

func TestGlobs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		glob, path string
		want       bool
	}{
		{"*", "a/b", true}, {"a.c", "abc", false}, {"a+", "a+", true}, {`\*`, "*", true}, {`\*`, "x", false}, {"[]]", "]", true}, {"[]a]x", "ax", true},
		{"[^/]", "x", true}, {`[\]`, `\`, true}, {"**/a", "a", true}, {"**/a", "x/y/a", true}, {"a/**/b", "a/b", true}, {"a/**/b", "a/x/b", true}, {"a/**", "a", false},
		{"{a,b{c,d}}", "bd", true}, {"a,b", "a,b", true}, {"a}b", "a}b", true}, {"größ?", "größe", true}, {"*.go", "x\n.go", true}, {"(?i)a", "A", false},
	} {
		g, err := compileGlobs("include", []string{c.glob})
		if err != nil {
			t.Errorf("%q: %v", c.glob, err)
		} else if got := g.match(c.path); got != c.want {
			t.Errorf("%q on %q: %v", c.glob, c.path, got)
		}
	}
	for _, bad := range []string{"", "[", "[a", "[z-a]", "{a", strings.Repeat("x", procapi.MaxSearchGlob+1)} {
		if _, err := compileGlobs("include", []string{bad}); errdefs.From(err).Code != "invalid_request" {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

// FuzzGlobs: no glob makes trouble, and a path without special characters is a glob
// for itself.
func FuzzGlobs(f *testing.F) {
	f.Add("a/**/[!b]*.{c,d}", "a/x/y.c")
	f.Fuzz(func(t *testing.T, glob, path string) {
		if g, err := compileGlobs("include", []string{glob}); err == nil {
			g.match(path)
		}
		if path == "" || len(path) > procapi.MaxSearchGlob || strings.ContainsAny(path, `*?[{}\/`) {
			return
		}
		g, err := compileGlobs("include", []string{path})
		if err == nil && strings.ToValidUTF8(path, "") == path && !g.match(path) {
			t.Errorf("%q does not match itself", path)
		}
	})
}

func TestLongLines(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2*blockBytes) + "needle" + strings.Repeat("y", 2*blockBytes) + "\nneedle\n"
	dir := tree(t, map[string]string{"f": long, "g": strings.Repeat("line\n", blockBytes) + "needle"})
	got, _ := search(t, procapi.Search{Path: dir, Pattern: "needle"})
	if len(got) != 3 || got[0].Line != 1 || got[0].Column != 2*blockBytes+1 || !got[0].Truncated || len(got[0].Text) != procapi.MaxSearchText || !strings.Contains(got[0].Text, "needle") {
		t.Fatalf("got %+v", got)
	}
	if got[1].Line != 2 || got[1].Column != 1 || got[2].Line != blockBytes+1 || got[2].Column != 1 {
		t.Errorf("got %+v", got[1:])
	}
	byRE, _ := search(t, procapi.Search{Path: dir, Pattern: "needl[e]", Regexp: true})
	if !slices.Equal(got, byRE) {
		t.Errorf("the regular expression finds %+v", byRE)
	}
}

func TestResultsAreBounded(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"f": strings.Repeat("x\n", 100), "large": "x" + strings.Repeat(" ", 2000)})
	got, summary := search(t, procapi.Search{Path: dir, Pattern: "x", MaxResults: 10, MaxFileBytes: 1000})
	if len(got) != 10 || summary.Stopped != procapi.SearchResults {
		t.Errorf("%d matches, %+v", len(got), summary)
	}
	got, summary = search(t, procapi.Search{Path: dir, Pattern: "x", MaxResults: 100, MaxFileBytes: 1000})
	if len(got) != 100 || summary.Stopped != "" || summary.Skipped != 1 {
		t.Errorf("%d matches, %+v", len(got), summary)
	}
}

func TestBadQueries(t *testing.T) {
	t.Parallel()
	many := make([]string, procapi.MaxSearchGlobs+1)
	for i := range many {
		many[i] = "x"
	}
	for name, req := range map[string]procapi.Search{
		"nothing": {}, "a bad expression": {Pattern: "(", Regexp: true}, "a backreference": {Pattern: `(a)\1`, Regexp: true},
		"a huge expression": {Pattern: "((x{100}){100}){10}", Regexp: true}, "a deep one": {Pattern: strings.Repeat("(", 500) + strings.Repeat(")", 500) + "{900}{900}", Regexp: true},
		"a long pattern": {Pattern: strings.Repeat("x", procapi.MaxSearchPattern+1)}, "two lines": {Pattern: "a\nb"},
		"too many results": {Pattern: "x", MaxResults: procapi.MaxSearchResults + 1}, "negative": {Pattern: "x", MaxResults: -1},
		"large files": {Pattern: "x", MaxFileBytes: procapi.MaxSearchFileBytes + 1}, "many globs": {Include: many}, "a path up": {Path: "../x", Pattern: "x"},
	} {
		if _, err := Compile(files.Tree{}, req); errdefs.From(err).Code != "invalid_request" {
			t.Errorf("%s: %v", name, err)
		}
	}
	q, err := Compile(files.Tree{}, procapi.Search{Path: "/no/such", Pattern: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Check(); errdefs.From(err).Code != "file_not_found" {
		t.Errorf("a missing directory: %v", err)
	}
}

// B03: what would block or never end is not opened.
func TestB03_SpecialFiles(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"f": "x"})
	if err := errors.Join(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644), os.Symlink("/dev/zero", filepath.Join(dir, "zero")), os.Symlink(dir, filepath.Join(dir, "loop"))); err != nil {
		t.Fatal(err)
	}
	got, _ := search(t, procapi.Search{Path: dir, Pattern: "x"})
	want(t, dir, got, "f:1:1:x")
	for _, path := range []string{"/proc", "/proc/self/mem", "/proc/self/environ", filepath.Join(dir, "fifo")} {
		q, err := Compile(files.Tree{}, procapi.Search{Path: path, Pattern: "x"})
		if err != nil {
			t.Fatal(err)
		}
		summary, err := q.Run(t.Context(), func(m procapi.SearchMatch) error { return fmt.Errorf("found %+v", m) })
		if path != "/proc" && errdefs.From(err).Code != "invalid_request" || path == "/proc" && (err != nil || summary.Files > 0) {
			t.Errorf("%s: %+v, %v", path, summary, err)
		}
	}
}

// B02: a directory that turns into a symlink while it is searched.
func TestB02_SearchWhileSymlinksSwap(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"from/d/f": "public", "outside/f": "secret"})
	a, b := filepath.Join(dir, "from/d"), filepath.Join(dir, "from/other")
	if err := os.Symlink(filepath.Join(dir, "outside"), b); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
		}
	}()
	for range 3000 {
		if got, _ := search(t, procapi.Search{Path: filepath.Join(dir, "from"), Pattern: "secret"}); len(got) > 0 {
			t.Fatalf("found %+v", got)
		}
	}
	stop()
	<-done
}

func TestGivenUp(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"f": "x"})
	q, err := Compile(files.Tree{}, procapi.Search{Path: dir, Pattern: "x"})
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	if _, err := q.Run(t.Context(), func(procapi.SearchMatch) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("the reader has gone: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.Run(ctx, func(procapi.SearchMatch) error { return nil }); err == nil {
		t.Error("a search that was given up succeeded")
	}
}
