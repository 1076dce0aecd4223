package guest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

const id = sandbox.ID("local-aaaaaaaaaaaaaaaaaaaaaaaaaa")

// shim answers as Kata's does; its socket is in one of two directories.
func shim(t *testing.T, status int, answer string) Guests {
	t.Helper()
	golang, rust := shortDir(t), shortDir(t)
	dir := filepath.Join(rust, string(id))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := listen(t, filepath.Join(dir, shimSocket))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/agent-url" {
			status = http.StatusNotFound
		}
		w.WriteHeader(status)
		io.WriteString(w, answer)
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-ended })
	return Guests{Dirs: []string{golang, rust}}
}

// shortDir is one in which sockets can be: their paths have 107 bytes at most.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// hypervisor takes one connection, and greets who asks for procd's port.
func hypervisor(t *testing.T, greeting string) (socket string) {
	t.Helper()
	socket = filepath.Join(shortDir(t), "kata.hvsock")
	l := listen(t, socket)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		if line, _ := r.ReadString('\n'); line != fmt.Sprintf("CONNECT %d\n", procapi.GuestPort) {
			return
		}
		io.WriteString(conn, greeting)
		io.Copy(conn, r) // procd, who says what he hears
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return socket
}

// Through a hypervisor's socket whatever is said arrives, from the first byte on.
func TestDialThroughAHypervisor(t *testing.T) {
	t.Parallel()
	g := shim(t, 200, "hvsock://"+hypervisor(t, "OK 1073741824\nfirst,")+":1024\n")
	conn, err := g.Dial(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := bufio.NewReader(conn).ReadString('\n'); err != nil || got != "first,hello\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// What a shim or a hypervisor says that is not understood reaches nobody.
func TestDialRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		answer string
		want   string
	}{
		"a shim that fails":         {500, "no sandbox", "it answers 500"},
		"the host itself":           {200, "vsock://2:1024", "no machine's context id"},
		"anybody":                   {200, "vsock://4294967295:1024", "no machine's context id"},
		"no number":                 {200, "vsock://x:1024", "no machine's context id"},
		"a relative socket":         {200, "hvsock:kata.hvsock:1024", "no socket's path"},
		"a way up":                  {200, "hvsock:///run/../etc/x:1024", "no socket's path"},
		"a machine elsewhere":       {200, "remote:///run/peerpod/x.sock", "can't be reached"},
		"nothing":                   {200, "", "can't be reached"},
		"a hypervisor that refuses": {200, "hvsock://" + hypervisor(t, "NO way\n") + ":1024", `answers "NO way"`},
		"one that goes on":          {200, "hvsock://" + hypervisor(t, strings.Repeat("x", 1000)) + ":1024", "the hypervisor answers"},
		"one that hangs up":         {200, "hvsock://" + hangsUp(t) + ":1024", "EOF"},
	} {
		conn, err := shim(t, c.status, c.answer).Dial(t.Context(), id)
		if err == nil {
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// hangsUp is a hypervisor in whose machine nobody listens.
func hangsUp(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(shortDir(t), "kata.hvsock")
	l := listen(t, socket)
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = bufio.NewReader(conn).ReadString('\n')
			conn.Close()
		}
	}()
	return socket
}

// Before the machine is there, and when the hypervisor says nothing, a dial ends.
func TestDialEnds(t *testing.T) {
	t.Parallel()
	if _, err := (Guests{Dirs: []string{t.TempDir()}}).Dial(t.Context(), id); err == nil {
		t.Error("a sandbox that is not there was reached")
	}
	socket := filepath.Join(shortDir(t), "kata.hvsock")
	listen(t, socket) // accepts nobody
	g := shim(t, 200, "hvsock://"+socket+":1024")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := g.Dial(ctx, id); err == nil {
		t.Error("a hypervisor that says nothing let somebody in")
	}
}
