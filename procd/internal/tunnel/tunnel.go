// Package tunnel connects a stream of the host's with a service inside the
// sandbox.
//
// It dials the loopback or a function's socket and copies bytes both ways until
// both are done, an end of input on either side at a time. It owns the
// connections of its tunnels and counts them; it knows nothing of what they carry.
package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	dialTimeout = 5 * time.Second // on a loopback only a listener with a full backlog takes time
	copyBytes   = 32 << 10
)

// Target is a listener inside the sandbox.
type Target struct {
	network   string
	addresses []string // tried in this order
}

// Port is a TCP listener on the loopback, of IPv4 or else of IPv6.
func Port(port uint16) Target {
	p := strconv.Itoa(int(port))
	return Target{"tcp", []string{net.JoinHostPort("127.0.0.1", p), net.JoinHostPort("::1", p)}}
}

// Function is the listener of a function service.
func Function(service string) Target {
	return Target{"unix", []string{procapi.FunctionSocket(service)}}
}

// Dialer opens tunnels. The zero value is ready; it is safe for concurrent use.
type Dialer struct{ open atomic.Int64 }

// Tunnel is one open connection to a service. Its owner calls Close.
type Tunnel struct {
	conn     halfConn
	close    func()
	complete atomic.Bool // the input has come to its end
}

// halfConn is what both TCP and unix sockets are.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// Dial connects to a target. It fails with the codes of procapi.
func (d *Dialer) Dial(ctx context.Context, to Target) (*Tunnel, error) {
	if d.open.Add(1) > procapi.MaxTunnels {
		d.open.Add(-1)
		return nil, errdefs.WithCode(errdefs.Exhausted, procapi.CodeTooManyTunnels, "more than %d connections at once", procapi.MaxTunnels)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var failed []error
	for _, address := range to.addresses {
		conn, err := new(net.Dialer).DialContext(ctx, to.network, address)
		if err == nil {
			return &Tunnel{conn: conn.(halfConn), close: sync.OnceFunc(func() {
				conn.Close()
				d.open.Add(-1)
			})}, nil
		}
		failed = append(failed, err)
	}
	d.open.Add(-1)
	return nil, errdefs.WithCode(errdefs.Unavailable, procapi.CodePortRefused, "nothing listens there").WithCause(errors.Join(failed...))
}

// Close ends the tunnel in both directions at once. Input that has not come to
// its end breaks the connection: to the service a clean end would look complete.
func (t *Tunnel) Close() {
	if tcp, ok := t.conn.(*net.TCPConn); ok && !t.complete.Load() {
		_ = tcp.SetLinger(0)
	}
	t.close()
}

// Peer is the host's end of a tunnel.
type Peer struct {
	Input io.Reader          // what is for the service
	Stop  func()             // ends a Read of Input that waits
	Write func([]byte) error // sends a piece of what comes from the service, at once
}

// Carry copies both ways. It returns nil at the service's end and when ctx ends.
func (t *Tunnel) Carry(ctx context.Context, peer Peer) error {
	defer context.AfterFunc(ctx, t.Close)()
	var sending sync.WaitGroup
	sending.Go(func() { t.send(peer.Input) })
	defer sending.Wait()
	defer peer.Stop()
	buf := make([]byte, copyBytes)
	for {
		n, err := t.conn.Read(buf)
		if n > 0 {
			if err := peer.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			t.Close() // input that follows is nobody's
			return nil
		case err != nil:
			return err
		}
	}
}

// send copies input to the service.
func (t *Tunnel) send(input io.Reader) {
	buf := make([]byte, copyBytes)
	_, err := io.CopyBuffer(struct{ io.Writer }{t.conn}, struct{ io.Reader }{input}, buf)
	if err == nil {
		t.complete.Store(true)
		err = t.conn.CloseWrite()
	}
	if err != nil {
		t.Close()
	}
}
