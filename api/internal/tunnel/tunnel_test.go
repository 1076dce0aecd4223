package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/dataplane"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

var to = dataplane.Target{Team: uuid.New(), ID: "local-a"}

// plane answers with a sandbox' end of the connection.
type plane func(ctx context.Context, req dataplane.Request) (io.ReadCloser, error)

func (p plane) Stream(ctx context.Context, _ dataplane.Target, req dataplane.Request) (*http.Response, error) {
	body, err := p(ctx, req)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: body}, nil
}

// echo answers the query, then in upper case what it gets, until that ends.
func echo(ctx context.Context, req dataplane.Request) (io.ReadCloser, error) {
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(context.Canceled) })
	go func() {
		io.WriteString(w, req.Query.Encode()+"\n")
		buf := make([]byte, 8)
		for {
			n, err := req.Body.Read(buf)
			w.Write(bytes.ToUpper(buf[:n]))
			if err != nil {
				w.CloseWithError(err)
				return
			}
		}
	}()
	return r, nil
}

func TestConnection(t *testing.T) {
	t.Parallel()
	d := New(plane(echo))
	for want, l := range map[string]Listener{"port=80\n": {Port: "80"}, "function=f\n": {Function: "f"}} {
		c, err := d.Dial(t.Context(), to, l)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			io.WriteString(c, "hello, world")
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		if b, err := io.ReadAll(c); err != nil || string(b) != want+"HELLO, WORLD" {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
		c.Close()
	}
	if len(d.bySandbox)+len(d.byTeam) != 0 {
		t.Errorf("%v %v are left", d.bySandbox, d.byTeam)
	}
}

func TestAConnectionOutlivesTheDialling(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := New(plane(echo)).Dial(ctx, to, Listener{Port: "80"})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	go io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, len("port=80\nX"))); err != nil {
		t.Error(err)
	}
	read := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	c.Close()
	if err := <-read; err == nil {
		t.Error("a read outlives the connection")
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a write outlives the connection")
	}
}

func TestDiallingEndsWithItsContext(t *testing.T) {
	t.Parallel()
	d := New(plane(func(ctx context.Context, _ dataplane.Request) (io.ReadCloser, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Dial(ctx, to, Listener{Port: "80"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(d.bySandbox) != 0 {
		t.Error("a failed dial is counted")
	}
}

func TestA23_ConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	d := New(plane(echo))
	var open []net.Conn
	dial := func(id sandbox.ID) error {
		c, err := d.Dial(t.Context(), dataplane.Target{Team: to.Team, ID: id}, Listener{Port: "80"})
		if err == nil {
			open = append(open, c)
		}
		return err
	}
	for i := range perSandbox {
		if err := dial("local-a"); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if err := dial("local-a"); !errdefs.Is(err, errdefs.Exhausted) || errdefs.From(err).Code != "unavailable" {
		t.Errorf("one more: %v", err)
	}
	if err := dial("local-b"); err != nil {
		t.Errorf("another sandbox: %v", err)
	}
	for _, c := range open {
		c.Close()
	}
	if err := dial("local-a"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	open[len(open)-1].Close()
	if len(d.bySandbox)+len(d.byTeam) != 0 {
		t.Errorf("%v %v are left", d.bySandbox, d.byTeam)
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, err := New(plane(echo)).Dial(t.Context(), to, Listener{Port: "80"})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var reading sync.WaitGroup
		reading.Go(func() { io.Copy(io.Discard, c) })
		time.Sleep(idleTimeout - time.Second)
		io.WriteString(c, "still here")
		reading.Wait()
		if lived := time.Since(began); lived != 2*idleTimeout-time.Second {
			t.Errorf("ended after %s", lived)
		}
	})
}
