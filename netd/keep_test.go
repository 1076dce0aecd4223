package netd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/proxy"
)

// keeper is a netd's end of held connections, and whoever holds them.
func keeper(t *testing.T) (*held, *netdapi.HeldConn) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "netd")
	h, err := listenHeld(socket)
	if err != nil {
		t.Fatal(err)
	}
	serveHeld(t, h)
	return h, dialHeld(t, socket)
}

func serveHeld(t *testing.T, h *held) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func dialHeld(t *testing.T, socket string) *netdapi.HeldConn {
	t.Helper()
	conn, err := netdapi.NewClient(socket).DialHeld(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// exhausted fails to accept at first, as a process without descriptors does.
type exhausted struct {
	unixListener
	fails atomic.Int32
}

func (l *exhausted) AcceptUnix() (*net.UnixConn, error) {
	if l.fails.Add(-1) >= 0 {
		return nil, syscall.EMFILE
	}
	return l.unixListener.AcceptUnix()
}

// D08: whoever holds connections gets through when there are descriptors again.
func TestD08_HeldConnectionsWaitForDescriptors(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "netd")
	h, err := listenHeld(socket)
	if err != nil {
		t.Fatal(err)
	}
	l := &exhausted{unixListener: h.listener}
	l.fails.Store(2)
	h.listener = l
	serveHeld(t, h)
	dialHeld(t, socket)
}

// X31: what is held looks broken, not complete, when whoever has it ends without a word,
// and what goes on ends as it should.
func TestX31_WhatIsHeldBreaksWithItsHolder(t *testing.T) {
	t.Parallel()
	h, holder := keeper(t)
	c, guest, server := spliced(t)
	if err := h.keep(c); err != nil {
		t.Fatal(err)
	}
	c.Client.Close() // netd is gone
	c.Upstream.Close()
	one, err := holder.Receive()
	if err != nil {
		t.Fatal(err)
	}
	one.Close()
	endIn(t, syscall.ECONNRESET, guest, server)

	c, guest, server = spliced(t)
	if err := h.keep(c); err != nil {
		t.Fatal(err)
	}
	c.Client.Close()
	c.Upstream.Close()
	if one, err = holder.Receive(); err != nil {
		t.Fatal(err)
	}
	next, err := resumable(one)
	if err != nil {
		t.Fatal(err)
	}
	next.Client.Close()
	next.Upstream.Close()
	endIn(t, io.EOF, guest, server)
}

func endIn(t *testing.T, want error, all ...*net.TCPConn) {
	t.Helper()
	for _, c := range all {
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("it ended in %v, not %v", err, want)
		}
	}
}

// spliced is a connection that could be handed over, and its far ends.
func spliced(t *testing.T) (h proxy.Handover, guest, server *net.TCPConn) {
	t.Helper()
	guest, client := tcpPair(t)
	upstream, server := tcpPair(t)
	id, err := sandbox.NewID("t")
	if err != nil {
		t.Fatal(err)
	}
	return proxy.Handover{Sandbox: id, Generation: 1, State: []byte(`{}`), Client: client, Upstream: upstream}, guest, server
}

func tcpPair(t *testing.T) (dialled, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() })
	accepted, err = l.AcceptTCP() // the only one that is there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return dialled, accepted
}

// X31: a connection that can't be handed over costs no other: who holds them is there
// for the next.
func TestX31_WhatCannotBeKeptCostsNoOther(t *testing.T) {
	t.Parallel()
	h, holder := keeper(t)
	good := func() {
		t.Helper()
		c, _, _ := spliced(t)
		if err := h.keep(c); err != nil {
			t.Fatal(err)
		}
		one, err := holder.Receive()
		if err != nil {
			t.Fatal(err)
		}
		one.Close()
	}
	good()
	aborted, _, _ := spliced(t)
	aborted.Client.Close()
	aborted.Upstream.Close()
	if h.keep(aborted) == nil {
		t.Error("a closed connection was kept")
	}
	good()
	long, _, _ := spliced(t)
	long.State = append(append([]byte{'"'}, bytes.Repeat([]byte{'x'}, 1<<20)...), '"')
	if h.keep(long) == nil {
		t.Error("a connection was kept that takes a megabyte to tell")
	}
	good()
}
