package command

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func run(t *testing.T, args ...string) error {
	t.Helper()
	cmd := root("test")
	cmd.SetArgs(args)
	return cmd.ExecuteContext(t.Context())
}

func TestProbe(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "s0p-") // short, for it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "a.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not yet", http.StatusServiceUnavailable)
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	if err := run(t, "probe", socket, "/healthz"); err != nil {
		t.Error(err)
	}
	if err := run(t, "probe", socket, "/readyz"); err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("who is not ready is reported as %v", err)
	}
	if err := run(t, "probe", filepath.Join(dir, "none"), "/healthz"); err == nil {
		t.Error("nobody is well")
	}
}

func TestInstall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "secret"), filepath.Join(dir, "keys")
	if err := os.WriteFile(from, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(t, "install", from, to); err == nil {
		t.Error("a directory was made that nobody asked for")
	}
	if err := run(t, "install", "--mkdir", "--mode=0600", from, to); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(to, "secret"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("installed is %v, %v", info, err)
	}
	if err := run(t, "install", "--mode=0999", from, to); err == nil {
		t.Error("a mode that is none was taken")
	}
}
