package kubetest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Binary finds a program that hack/tools.sh or make built, from any of the repository's
// modules.
func Binary(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "hack", "tools.sh")); err != nil {
			continue
		}
		path := filepath.Join(dir, "build", "bin", name)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%s is not built: run `make kube-tools build`", name)
		}
		return path
	}
	t.Fatal("this is not the repository")
	return ""
}

// New starts a cluster for the test, which fails where kubeall is not built.
func New(t testing.TB) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Config{Dir: t.TempDir(), Binary: Binary(t, "kubeall")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.binary, append([]string{"kubectl"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Admin(), "HOME="+c.Dir)
	return cmd
}
