package group

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
)

// answering is a shim that expects every container.
type answering struct {
	taskapi.TTRPCTaskService
	joined chan string
}

func (a answering) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	id, _ := Announced(r)
	a.joined <- id
	return &taskapi.ConnectResponse{}, nil
}

// serve answers on a listener until the test ends.
func serve(t *testing.T, f *os.File) answering {
	t.Helper()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	a := answering{joined: make(chan string, 10)}
	taskapi.RegisterTTRPCTaskService(srv, a)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return a
}

func testSocket(t *testing.T) Socket {
	t.Helper()
	dir, err := os.MkdirTemp("", "s0g-") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return SocketIn(dir, Key{Containerd: "/c.sock", Namespace: "ns", Group: "g"})
}

func TestSocketNames(t *testing.T) {
	t.Parallel()
	const longest = 42 // what containerd allows for the directory
	seen := map[string]bool{}
	for _, k := range []Key{{"c", "n", "g"}, {"c", "n", "h"}, {"c", "m", "g"}, {"d", "n", "g"}, {"c", "n", strings.Repeat("x", 1000)}, {"c", "", "ng"}, {"c", "ng", ""}} {
		s := SocketIn(strings.Repeat("d", longest), k)
		if len(s.path) > 106 || seen[s.path] {
			t.Errorf("%v: %d bytes, or not its own: %s", k, len(s.path), s.path)
		}
		seen[s.path] = true
		if SocketAt(s.Address()) != s {
			t.Errorf("%s does not come back from its address", s.path)
		}
	}
}

func TestFoundThenJoin(t *testing.T) {
	t.Parallel()
	s := testSocket(t)
	ctx := context.Background()
	if s.Join(ctx, "a") == nil {
		t.Fatal("joined nobody")
	}
	dead := SocketIn(filepath.Dir(s.path), Key{Group: "dead"})
	for _, other := range []Socket{s, dead} { // left by dead ones
		l, err := other.listen()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	foreign := filepath.Join(filepath.Dir(s.path), "foreign")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var a answering
	if err := s.Found(ctx, "a", func(f *os.File) error { a = serve(t, f); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := dead.Mark(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dead group's socket is still there: %v", err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("another shim's file was touched: %v", err)
	}
	if fi, err := os.Stat(s.path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("C07: socket has mode %v, %v", fi.Mode(), err)
	}
	if err := s.Join(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	// Who comes second to found joins.
	if err := s.Found(ctx, "c", func(*os.File) error { return errors.New("founded twice") }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"b", "c"} {
		if got := <-a.joined; got != want {
			t.Errorf("%s joined, want %s", got, want)
		}
	}
	if err := s.Bury(); err != nil {
		t.Error(err)
	}
	if err := s.Join(ctx, "d"); err != nil {
		t.Errorf("a living one was buried: %v", err)
	}
}

func TestFailedFoundLeavesNothing(t *testing.T) {
	t.Parallel()
	s := testSocket(t)
	boom := errors.New("boom")
	if err := s.Found(context.Background(), "a", func(*os.File) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(s.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestRetireLeavesAnothersSocket(t *testing.T) {
	t.Parallel()
	s := testSocket(t)
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		t.Fatal(err)
	}
	mine, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	mark, err := s.Mark()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Inherited(int(mine.Fd())); err != nil || got != s {
		t.Errorf("inherited %v, %v", got, err)
	}
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	other, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := s.Retire(mark); err != nil {
		t.Fatal(err)
	}
	if mark, err = s.Mark(); err != nil {
		t.Fatalf("another's socket was removed: %v", err)
	}
	for range 2 {
		if err := s.Retire(mark); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Mark(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("own socket is still there: %v", err)
	}
}

func TestBuryRemovesDeadSocket(t *testing.T) {
	t.Parallel()
	s := testSocket(t)
	l, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for range 2 {
		if err := s.Bury(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Mark(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead one's socket is still there: %v", err)
	}
}

// A process that hangs still listens; one that died leaves a file on which nobody does.
func TestServed(t *testing.T) {
	t.Parallel()
	s := testSocket(t)
	if s.Served(t.Context()) {
		t.Error("no socket is served")
	}
	l, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	if !s.Served(t.Context()) {
		t.Error("a listener that accepts nothing is not served")
	}
	l.Close()
	if s.Served(t.Context()) {
		t.Error("a dead process's socket is served")
	}
}
