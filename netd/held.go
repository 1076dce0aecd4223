package netd

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"s0.run/internal/daemon"
	"s0.run/internal/netdapi"
	"s0.run/netd/internal/proxy"
)

const (
	// holdTimeout is for noded to take one connection: who doesn't gets no other.
	holdTimeout = time.Second
	// acceptPause is waited after a failure to accept: a process out of descriptors must
	// not spin, and what is held is worth no end of it.
	acceptPause = 50 * time.Millisecond
)

// held passes spliced connections on to the next netd: noded, which connects, keeps
// their sockets in between, and gives them back to whoever comes after.
type held struct {
	listener unixListener
	back     chan proxy.Handover // what an earlier netd has left

	mu     sync.Mutex
	holder *net.UnixConn // nil: nobody
}

// unixListener is a [net.UnixListener].
type unixListener interface {
	AcceptUnix() (*net.UnixConn, error)
	Close() error
}

func listenHeld(socket string) (*held, error) {
	l, err := daemon.ListenUnixPacket(netdapi.HeldSocket(socket))
	if err != nil {
		return nil, err
	}
	return &held{listener: l, back: make(chan proxy.Handover)}, nil
}

// Run serves whoever holds connections until ctx ends. The newest is the one.
func (h *held) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() {
		h.listener.Close()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.drop()
	})()
	for {
		conn, err := h.listener.AcceptUnix()
		if err != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(acceptPause):
			}
			continue
		}
		if err := h.hold(conn); err != nil {
			continue
		}
		wg.Go(func() { h.takeBack(ctx, conn) })
	}
}

// hold makes a connection the one that is used, if it takes the first word: nothing may
// come before that.
func (h *held) hold(conn *net.UnixConn) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := conn.SetWriteDeadline(time.Now().Add(holdTimeout))
	if err == nil {
		err = netdapi.NewHeldConn(conn).Ready()
	}
	if err != nil {
		conn.Close()
		return err
	}
	h.drop()
	h.holder = conn
	return nil
}

// drop has nobody hold connections. It is called with mu held.
func (h *held) drop() {
	if h.holder != nil {
		h.holder.Close()
		h.holder = nil
	}
}

// takeBack takes what was held, until the connection ends.
func (h *held) takeBack(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() // which may have come as it ended
	from := netdapi.NewHeldConn(conn)
	for {
		one, err := from.Receive()
		if err != nil {
			return
		}
		back, err := resumable(one)
		if err != nil {
			continue
		}
		select {
		case h.back <- back:
		case <-ctx.Done():
			back.Cut()
			return
		}
	}
}

// resumable has the sockets be connections of this process.
func resumable(h netdapi.Held) (proxy.Handover, error) {
	client, err := connection(h.Client)
	upstream, err2 := connection(h.Upstream)
	back := proxy.Handover{Sandbox: h.Sandbox, Generation: h.Generation, State: h.State, Client: client, Upstream: upstream}
	if err = errors.Join(err, err2); err != nil {
		back.Cut()
	}
	return back, err
}

// connection takes a socket, whose ordinary end is one again.
func connection(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "held")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, errors.New("a socket that is not TCP")
	}
	if err := tcp.SetLinger(-1); err != nil {
		tcp.Close()
		return nil, err
	}
	return tcp, nil
}

// keep gives a connection to whoever holds them.
func (h *held) keep(c proxy.Handover) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holder == nil {
		return errors.New("nobody holds connections")
	}
	// Whoever has them last, and ends without a word, breaks the connection: it must not
	// look complete.
	err := errors.Join(c.Client.SetLinger(0), c.Upstream.SetLinger(0))
	if err != nil {
		return err
	}
	var failed error // the holder, not the connection
	err = withSockets(c, func(client, upstream int) error {
		if failed = h.holder.SetWriteDeadline(time.Now().Add(holdTimeout)); failed == nil {
			failed = netdapi.NewHeldConn(h.holder).Send(netdapi.Held{Sandbox: c.Sandbox, Generation: c.Generation, State: c.State, Client: client, Upstream: upstream})
		}
		return failed
	})
	if op := new(net.OpError); errors.As(failed, &op) { // and no other is kept waiting for him
		h.drop()
	}
	return err
}

// withSockets has f use a connection's sockets, which stay ours.
func withSockets(c proxy.Handover, f func(client, upstream int) error) error {
	client, err := c.Client.SyscallConn()
	if err != nil {
		return err
	}
	upstream, err := c.Upstream.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = client.Control(func(a uintptr) {
		gone := upstream.Control(func(b uintptr) { failed = f(int(a), int(b)) })
		failed = errors.Join(failed, gone)
	})
	return errors.Join(err, failed)
}
