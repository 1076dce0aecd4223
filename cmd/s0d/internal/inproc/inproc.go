// Package inproc connects the parts of one process: who dials a [Listener] has one end of
// a pipe, who accepts the other. A call between them enters no kernel and wakes no thread.
//
// A Listener owns the connections that nobody has accepted yet. What is sent on one is the
// business of its ends; deadlines work as on a socket.
package inproc

import (
	"context"
	"net"
	"sync"
)

// Listener is a net.Listener that is reached through Dial alone.
type Listener struct {
	dialled chan net.Conn
	closed  chan struct{}
	close   sync.Once
}

// Listen makes a Listener.
func Listen() *Listener {
	return &Listener{dialled: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial waits until it is accepted. Its errors are net.ErrClosed and ctx's.
func (l *Listener) Dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.dialled <- far:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.dialled:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Connections that were accepted stay.
func (l *Listener) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "inproc" }
func (addr) String() string  { return "inproc" }
