package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// What netd connects to passes one place, where the address is looked at.
func TestNetdDialsInOnePlace(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, p := range packages(t) {
		if !below(p.ImportPath, module+"/netd") {
			continue
		}
		for _, f := range p.GoFiles {
			calls := dials(t, filepath.Join(p.Dir, f))
			seen += len(calls)
			if len(calls) > 0 && p.ImportPath != module+"/netd/internal/dial" {
				t.Errorf("%s/%s uses net.%s; only netd/internal/dial may", p.ImportPath, f, calls[0])
			}
		}
	}
	if seen == 0 {
		t.Error("nobody dials: the test does not see what it looks for")
	}
}

func dials(t *testing.T, file string) (names []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "net" && strings.HasPrefix(sel.Sel.Name, "Dial") {
				names = append(names, sel.Sel.Name)
			}
		}
		return true
	})
	return names
}
