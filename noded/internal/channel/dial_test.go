package channel

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
)

// Where procd can't dial the channel does: until somebody answers, and again when
// that connection has ended, but not before.
func TestTheChannelDials(t *testing.T) {
	t.Parallel()
	var dials atomic.Int32
	ends := make(chan net.Conn, 1)
	h := startWith(t, Config{Dir: t.TempDir(), Dial: func(ctx context.Context) (net.Conn, error) {
		if dials.Add(1) == 1 {
			return nil, errors.New("the machine is not there yet")
		}
		ours, theirs := net.Pipe()
		select {
		case ends <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}})
	procdIs := func(boot string) (hangup func()) {
		mux := http.NewServeMux()
		mux.Handle("GET /hello", hello(boot))
		select {
		case conn := <-ends:
			return serve(t, conn, mux)
		case <-bounded(t).Done():
			t.Fatal("nobody dials")
			return nil
		}
	}
	hangup := procdIs("first")
	mustHello(t, h, "first")
	if n := dials.Load(); n != 2 {
		t.Errorf("%d dials for one connection after one failure", n)
	}
	hangup()
	hangup = procdIs("second")
	mustHello(t, h, "second")
	h.stop()
	hangup()
	if n := dials.Load(); n != 3 {
		t.Errorf("%d dials for two connections after one failure", n)
	}
}

// A channel that has ended dials no more, though nobody is connected.
func TestAChannelThatEndedDoesNotDial(t *testing.T) {
	t.Parallel()
	dials := 0
	c, err := Listen(Config{Dir: t.TempDir(), Dial: func(context.Context) (net.Conn, error) {
		dials++
		return nil, errors.New("nobody is there")
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.next(t.Context()); err == nil || dials != 1 {
		t.Fatalf("%v, %d dials", err, dials)
	}
	c.Close()
	if _, err := c.next(t.Context()); !errors.Is(err, net.ErrClosed) || dials != 1 {
		t.Errorf("%v, %d dials", err, dials)
	}
}
