package compat

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"s0.run/internal/s0test"
	"s0.run/internal/s0test/contract"
)

// warm is more than the tests claim at the same time.
const warm = 4

// TestClients is a public client, unmodified, and what such clients are known to do.
func TestClients(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: warm, MaxSandboxes: 20, Flags: []string{"--webhook-allow-private", "--volumes"}})
	if _, err := os.Stat(filepath.Join("client", "node_modules", "sandbox0")); err != nil {
		t.Fatalf("the client is not installed: run `make test-deps`: %v", err)
	}
	checker, err := contract.New()
	if err != nil {
		t.Fatal(err)
	}
	server := checker.Proxy(t, s.URL)
	t.Run("habits", func(t *testing.T) { testHabits(t, s, server) })
	t.Run("JavaScript", func(t *testing.T) { testJavaScript(t, s, server) })
}

// testJavaScript runs the tests under client/ with Node.
func testJavaScript(t *testing.T, s *s0test.Stack, server string) {
	cmd := exec.Command("node", "main.mjs")
	cmd.Dir = "client"
	cmd.Env = append(os.Environ(), "S0_URL="+server, "S0_TOKEN="+s.Key())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("node main.mjs: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}
