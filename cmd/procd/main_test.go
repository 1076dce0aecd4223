package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"s0.run/internal/s0test"
)

// maxBinary is what procd may weigh: it is in every sandbox, and part of its
// attack surface.
const maxBinary = 10 << 20

// binary builds procd as it is shipped.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "procd-binary")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "procd")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=test", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", &buildError{out, err}
	}
	return path, nil
})

type buildError struct {
	out []byte
	err error
}

func (e *buildError) Error() string { return e.err.Error() + "\n" + string(e.out) }

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == initArg {
		beInit(os.Args[2:])
	}
	code := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func build(t testing.TB) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBinaryIsSmallAndStatic(t *testing.T) {
	t.Parallel()
	path := build(t)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("procd has %.1f MB", float64(st.Size())/1e6)
	if st.Size() > maxBinary {
		t.Errorf("procd has %d bytes, more than %d", st.Size(), maxBinary)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("ld-linux")) || bytes.Contains(b, []byte("ld-musl")) {
		t.Error("procd needs a dynamic linker")
	}
	if dir := s0test.ModuleRoot(t); bytes.Contains(b, []byte(dir)) {
		t.Errorf("procd tells where it was built: %s", dir)
	}
}

// mayImport is everything beside the standard library that procd is made of.
var mayImport = []string{"s0.run/cmd/procd", "s0.run/procd", "s0.run/internal/procapi", "s0.run/internal/errdefs", "s0.run/internal/warm", "s0.run/internal/files", "s0.run/internal/vsock", "golang.org/x/sys"}

// mustNot are parts of the standard library that have no business in PID 1. Searches
// need regexp; archive/tar brings os/user, whose look-ups we never call.
var mustNot = []string{"os/exec", "plugin", "html/template", "text/template", "net/http/pprof", "expvar", "go/parser", "database/sql", "testing", "C"}

func TestImports(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); n++ {
		var p struct {
			ImportPath string
			Standard   bool
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if p.Standard {
			for _, bad := range mustNot {
				if p.ImportPath == bad {
					t.Errorf("procd imports %s", bad)
				}
			}
		} else if !allowed(p.ImportPath) {
			t.Errorf("procd imports %s", p.ImportPath)
		}
	}
	if n < 50 {
		t.Fatalf("go list named only %d packages", n)
	}
}

func allowed(path string) bool {
	for _, m := range mayImport {
		if path == m || strings.HasPrefix(path, m+"/") {
			return true
		}
	}
	return false
}
