package lifecycle_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
)

// guests are virtual machines: their procd, which here dials as everywhere, is met at
// its socket, and whoever dials in shows a token first.
type guests struct {
	t   *testing.T
	run string // the manager's RunDir

	mu        sync.Mutex
	listeners map[sandbox.ID]net.Listener
	shown     map[sandbox.ID][]string // tokens, in order
}

func newGuests(t *testing.T, m *machine) *guests {
	g := &guests{t: t, run: filepath.Join(m.dir, "run"), listeners: map[sandbox.ID]net.Listener{}, shown: map[sandbox.ID][]string{}}
	t.Cleanup(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, l := range g.listeners {
			l.Close()
		}
	})
	return g
}

func (g *guests) listen(id sandbox.ID) (net.Listener, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l := g.listeners[id]; l != nil {
		return l, nil
	}
	dir, err := os.Open(filepath.Join(g.run, string(id)))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(procapi.Socket)))
	if err == nil {
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		g.listeners[id] = l
	}
	return l, err
}

// Dial implements lifecycle.Guests.
func (g *guests) Dial(_ context.Context, id sandbox.ID) (net.Conn, error) {
	l, err := g.listen(id)
	if err != nil {
		return nil, err
	}
	procd, err := l.Accept()
	if err != nil {
		return nil, err
	}
	node, host := net.Pipe()
	go func() {
		defer procd.Close()
		defer host.Close()
		token := make([]byte, procapi.TokenBytes)
		if _, err := io.ReadFull(host, token); err != nil {
			return
		}
		g.mu.Lock()
		g.shown[id] = append(g.shown[id], string(token))
		g.mu.Unlock()
		go func() {
			defer procd.Close()
			_, _ = io.Copy(procd, host)
		}()
		_, _ = io.Copy(host, procd)
	}()
	return node, nil
}

func (g *guests) tokens(id sandbox.ID) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shown[id]
}

// A sandbox that is a virtual machine is reached by noded, which shows its own token
// each time, also after it has restarted. Its memory is the template's, and the node
// gives it what the hypervisor needs beside that.
func TestC07_MachinesAreDialledWithTheirOwnToken(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	g := newGuests(t, m)
	with := func(cfg *lifecycle.Config) { cfg.Guests = g }
	n := m.boot(with)
	kata := spec
	kata.RuntimeClass = sandbox.Kata
	for range 2 {
		if err := n.Create(n.ctx(), "pool", kata, nil); err != nil {
			t.Fatal(err)
		}
	}
	slots := n.free()
	if len(slots) != 2 {
		t.Fatalf("%d slots", len(slots))
	}
	seen := map[string]bool{}
	for _, id := range slots {
		file, err := os.Stat(filepath.Join(m.dir, "run", string(id), filepath.Base(procapi.TokenFile)))
		if err != nil || file.Mode() != 0o400 {
			t.Errorf("%s: who may read its token: %v, %v", id, file, err)
		}
		for _, token := range g.tokens(id) {
			if seen[token] || len(token) != procapi.TokenBytes {
				t.Errorf("%s: its token is another's", id)
			}
			seen[token] = true
		}
		if len(seen) == 0 {
			t.Errorf("%s: no token was shown", id)
		}
	}
	const more = 512 << 20
	if _, _, err := n.Claim(n.ctx(), lifecycle.ClaimRequest{ClaimID: "c", Team: "t", Slot: slots[0], MemoryBytes: more}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a claim with more memory: %v", err)
	}
	n.claim(slots[0]) // whom that has not cost his slot
	if _, err := n.Update(n.ctx(), lifecycle.UpdateRequest{ID: slots[0], MemoryBytes: more}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("more memory: %v", err)
	}
	if l := (noop.Groups{Node: m.node}).Limits(slots[0]); l.MemoryBytes <= kata.MemoryBytes {
		t.Errorf("its group has %d bytes, and the hypervisor none", l.MemoryBytes)
	}
	first := g.tokens(slots[0])
	n.stop()

	m.boot(with)
	eventually(t, "it is dialled again", func() bool { return len(g.tokens(slots[0])) > len(first) })
	if again := g.tokens(slots[0]); again[len(first)] != first[0] {
		t.Error("after a restart another token is shown")
	}
}
