package bucket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/publicnet"
)

const (
	socketName = "dial"
	// dialTimeout bounds a connection, and what a process may take to get it.
	dialTimeout, handTimeout = 10 * time.Second, time.Second
	// maxDials of one process are under way: it keeps fewer connections.
	maxDials = 16
	// acceptPause is before the next try where this process has no descriptor left.
	acceptPause = time.Second
)

// The answers to a process that wants a connection; with dialled comes the descriptor.
const (
	dialled byte = iota
	unreached
	forbidden
)

// dials gives connections to a process.
type dials struct {
	to       string
	dialer   net.Dialer
	listener *net.UnixListener
	log      *slog.Logger
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

// serveDials gives connections to one address to who asks at a place's socket.
func (m *Manager) serveDials(p place, to string) (*dials, error) {
	if err := gone(os.Remove(p.socket())); err != nil {
		return nil, err
	}
	dir, err := os.Open(p.jail())
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// The path of a socket must be short.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)                           // it is another's by then
	if err := os.Chmod(p.socket(), 0o666); err != nil { // nobody else reaches it
		return nil, errors.Join(err, l.Close())
	}
	d := &dials{to: to, listener: l, log: m.cfg.Log, dialer: net.Dialer{Timeout: dialTimeout, ControlContext: m.control}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.running.Go(d.accept)
	return d, nil
}

func (d *dials) close() {
	d.cancel()
	d.listener.Close()
	d.running.Wait()
}

// accept goes on for as long as the mount is there, whatever fails.
func (d *dials) accept() {
	busy := make(chan struct{}, maxDials)
	for {
		busy <- struct{}{}
		conn, err := d.listener.AcceptUnix()
		if err != nil {
			<-busy
			if d.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			d.log.Error("a bucket gets no connection", "to", d.to, "error", err)
			d.pause()
			continue
		}
		d.running.Go(func() {
			defer func() { <-busy }()
			defer conn.Close()
			if err := d.give(conn); err != nil {
				d.log.Debug("giving a connection", "error", err) // who wanted it has gone
			}
		})
	}
}

func (d *dials) pause() {
	select {
	case <-time.After(acceptPause):
	case <-d.ctx.Done():
	}
}

// give dials, and passes the connection on.
func (d *dials) give(to *net.UnixConn) error {
	conn, err := d.dialer.DialContext(d.ctx, "tcp", d.to)
	if err := to.SetDeadline(time.Now().Add(handTimeout)); err != nil {
		return err
	}
	if err != nil {
		d.log.Warn("a bucket's store is not reached", "to", d.to, "error", err)
		answer := unreached
		if errors.Is(err, publicnet.ErrNotPublic) {
			answer = forbidden
		}
		_, err := to.Write([]byte{answer})
		return err
	}
	defer conn.Close()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = to.WriteMsgUnix([]byte{dialled}, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, sent)
}

// control refuses addresses that are not a store's to be at, after its name was looked up:
// those of private networks, unless they are allowed, and this machine's own.
func (m *Manager) control(ctx context.Context, network, address string, c syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return publicnet.ErrNotPublic
	}
	if m.cfg.AllowPrivate && publicnet.IsPrivate(to.Addr()) {
		return nil
	}
	if !m.cfg.AllowPrivate && own(to.Addr()) {
		return publicnet.ErrNotPublic
	}
	return publicnet.Control(ctx, network, address, c)
}

// own reports whether an address is this machine's: what listens on all of them trusts
// whoever comes from here.
func own(ip netip.Addr) bool {
	list, _ := net.InterfaceAddrs() // without it the networks still hold
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if has, ok := netip.AddrFromSlice(n.IP); ok && has.Unmap() == ip.Unmap() {
				return true
			}
		}
	}
	return false
}

// errForbidden is what a process gets that wants what it can't have.
var errForbidden = errors.New("the address of the bucket's store is not allowed")

// ask gets a connection: the other side of give.
func ask(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if until, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(until); err != nil {
			return nil, err
		}
	}
	said, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, had, _, _, err := c.(*net.UnixConn).ReadMsgUnix(said, rights)
	switch {
	case err != nil:
		return nil, err
	case n == 0:
		return nil, errors.New("no connections are given")
	case said[0] == forbidden:
		return nil, errForbidden
	case said[0] != dialled:
		return nil, errors.New("the store can't be reached")
	}
	return received(rights[:had])
}

func received(rights []byte) (net.Conn, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, errors.New("a connection without its descriptor"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, errors.New("a connection without its descriptor"))
	}
	f := os.NewFile(uintptr(fds[0]), "store")
	defer f.Close()
	return net.FileConn(f)
}
