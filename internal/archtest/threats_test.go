package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	namedTest = regexp.MustCompile("`((?:Test|Fuzz)\\w+)` \\(([\\w/.-]+)\\)")
	rowOf     = regexp.MustCompile(`(?m)^\| ([A-Z]\d\d) \|.*$`)
	testFunc  = regexp.MustCompile(`func ((?:Test|Fuzz)\w+)\(|t\.Run\("(Test\w+)"`)
)

// The pages in docs/threats name a test for each row, and the tests are there.
func TestThreatsHaveTheirTests(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/threats/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rowOf.FindAllStringSubmatch(string(text), -1) {
			named := namedTest.FindAllStringSubmatch(row[0], -1)
			if len(named) == 0 {
				t.Errorf("%s: %s names no test", filepath.Base(page), row[1])
			}
			for _, n := range named {
				if !strings.Contains(n[1], row[1]) {
					t.Errorf("%s: the name of %s does not have the id %s", filepath.Base(page), n[1], row[1])
				}
				if !slices.Contains(testsIn(t, n[2]), n[1]) {
					t.Errorf("%s: there is no %s in %s", filepath.Base(page), n[1], n[2])
				}
			}
		}
	}
}

// testsIn lists the tests of a folder, those that others run included.
func testsIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := fs.Glob(os.DirFS("../.."), dir+"/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunc.FindAllSubmatch(b, -1) {
			names = append(names, string(m[1])+string(m[2]))
		}
	}
	return names
}
