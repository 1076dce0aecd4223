package relay

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/sandbox"
)

// pair is two ends of one TCP connection.
func pair(tb testing.TB) (a, b *net.TCPConn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	type accepted struct {
		c   net.Conn
		err error
	}
	got := make(chan accepted, 1)
	go func() { c, err := l.Accept(); got <- accepted{c, err} }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	other := <-got
	if other.err != nil {
		tb.Fatal(other.err)
	}
	tb.Cleanup(func() { c.Close(); other.c.Close() })
	return c.(*net.TCPConn), other.c.(*net.TCPConn)
}

// line is a sandbox and a server with a relay between.
func line(tb testing.TB, head string) (guest, server *net.TCPConn, flow *Flow, done chan error) {
	tb.Helper()
	guest, client := pair(tb)
	upstream, server := pair(tb)
	flow, done = &Flow{Sandbox: "s"}, make(chan error, 1)
	line := &Line{Client: client, Upstream: upstream, Flow: flow}
	go func() { done <- line.Pass([]byte(head)) }()
	return guest, server, flow, done
}

func TestE20_HalfClosedBothWays(t *testing.T) {
	t.Parallel()
	guest, server, flow, done := line(t, "head ")
	io.WriteString(guest, "question")
	guest.CloseWrite()
	if got, err := io.ReadAll(server); err != nil || string(got) != "head question" {
		t.Fatalf("%q, %v", got, err)
	}
	io.WriteString(server, "a long answer")
	server.Close()
	if got, err := io.ReadAll(guest); err != nil || string(got) != "a long answer" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if up, down := flow.Bytes(); up != 13 || down != 13 {
		t.Errorf("counted %d up, %d down", up, down)
	}
}

func TestE20_AResetIsAReset(t *testing.T) {
	t.Parallel()
	for _, fromServer := range []bool{true, false} {
		guest, server, _, done := line(t, "")
		from, to := guest, server
		if fromServer {
			from, to = server, guest
		}
		io.WriteString(from, "x")
		io.ReadFull(to, make([]byte, 1))
		from.SetLinger(0)
		from.Close()
		if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("from the server %v: %v", fromServer, err)
		}
		if err := <-done; err == nil {
			t.Error("a broken flow ended well")
		}
	}
}

func TestLargeTransfersArriveWhole(t *testing.T) {
	t.Parallel()
	guest, server, flow, done := line(t, "")
	data := make([]byte, 8<<20)
	rand.Read(data)
	go func() { guest.Write(data); guest.CloseWrite() }()
	go func() { server.Write(data); server.CloseWrite() }()
	up := make(chan []byte)
	go func() { b, _ := io.ReadAll(server); up <- b }()
	down, err := io.ReadAll(guest)
	if err != nil || !bytes.Equal(down, data) || !bytes.Equal(<-up, data) {
		t.Fatalf("%d bytes down: %v", len(down), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if up, down := flow.Bytes(); up != 8<<20 || down != 8<<20 {
		t.Errorf("counted %d up, %d down", up, down)
	}
}

// A line that is paused at any moment loses nothing: whoever goes on with its sockets
// brings every byte, once, and every end.
func TestX31_APausedLineGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	guest, client := pair(t)
	upstream, server := pair(t)
	data := make([]byte, 8<<20)
	rand.Read(data)
	send := func(c *net.TCPConn) { c.Write(data); c.CloseWrite() }
	go send(guest)
	go send(server)
	all := make(chan []byte, 2)
	for _, c := range []*net.TCPConn{guest, server} {
		go func() { b, _ := io.ReadAll(c); all <- b }()
	}
	flow, up, down := &Flow{}, false, false
	pauses := 0
	for done := false; !done; {
		next := &Flow{}
		next.Resume(flow.Bytes())
		flow = next
		line := &Line{Client: client, Upstream: upstream, Flow: flow, UpDone: up, DownDone: down}
		result := make(chan error, 1)
		go func() { result <- line.Pass(nil) }()
		if pauses < 50 {
			line.Pause(time.Minute)
			pauses++
		}
		switch err := <-result; {
		case errors.Is(err, ErrPaused):
			up, down = line.UpDone, line.DownDone
			client.SetReadDeadline(time.Time{})
			upstream.SetReadDeadline(time.Time{})
		case err != nil:
			t.Fatal(err)
		default:
			done = true
		}
	}
	for range 2 {
		if got := <-all; !bytes.Equal(got, data) {
			t.Errorf("%d bytes arrived, of %d", len(got), len(data))
		}
	}
	if up, down := flow.Bytes(); up != 8<<20 || down != 8<<20 {
		t.Errorf("counted %d up, %d down after %d pauses", up, down, pauses)
	}
}

// A side that takes nothing holds no pause up: the line is cut.
func TestX31_AStuckLineIsCut(t *testing.T) {
	t.Parallel()
	guest, client := pair(t)
	upstream, server := pair(t)
	go io.Copy(guest, endless{})
	err := ErrPaused
	for end := time.Now().Add(time.Minute); err == ErrPaused; { //nolint:errorlint // that and no other; while it takes more
		if time.Now().After(end) {
			t.Fatal("it takes everything")
		}
		client.SetReadDeadline(time.Time{})
		upstream.SetReadDeadline(time.Time{})
		line := &Line{Client: client, Upstream: upstream, Flow: &Flow{}}
		result := make(chan error, 1)
		go func() { result <- line.Pass(nil) }()
		awaitFull(t, upstream)
		line.Pause(time.Millisecond)
		err = <-result
	}
	if err == nil || errors.Is(err, ErrPaused) {
		t.Errorf("it ended in %v", err)
	}
	if _, err := io.Copy(io.Discard, server); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what was cut looks complete: %v", err)
	}
}

// A line of which one way is paused and the other breaks is no paused one.
func TestX31_ABrokenLineIsNotPaused(t *testing.T) {
	t.Parallel()
	other := errors.New("broken")
	for _, ways := range [][]error{{ErrPaused, other}, {other, ErrPaused}, {ErrPaused, ErrPaused}, {nil, ErrPaused}, {nil, nil}} {
		if err := broken(ways...); err == nil || errors.Is(err, ErrPaused) || slices.Contains(ways, other) != errors.Is(err, other) {
			t.Errorf("%v: it ends in %v", ways, err)
		}
	}
}

// awaitFull waits until a connection takes no more for a moment.
func awaitFull(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		writable := false
		raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			n, err := unix.Poll(fds, 0)
			writable = err != nil || n > 0
		})
		if !writable {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it takes everything")
		}
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestE21_WhatIsNoLongerAllowedIsCut(t *testing.T) {
	t.Parallel()
	r := NewRegistry()
	allowed := true
	var gone, left int
	bad := &Flow{Sandbox: "s", Cut: func() { gone++ }, Allowed: func() bool { return allowed }}
	good := &Flow{Sandbox: "s", Cut: func() { left++ }, Allowed: func() bool { return true }}
	other := &Flow{Sandbox: "t", Cut: func() { left++ }, Allowed: func() bool { return false }}
	for _, f := range []*Flow{bad, good, other} {
		defer r.Add(f)()
	}
	if n := r.Rejudge("s"); n != 0 {
		t.Errorf("%d were cut that are allowed", n)
	}
	allowed = false
	if n := r.Rejudge("s"); n != 1 || gone != 1 || left != 0 || !bad.WasCut() {
		t.Errorf("%d were cut", n)
	}
	if r.Rejudge("s"); gone != 1 {
		t.Error("cut twice")
	}
}

func TestD15_WhatHardlyMovesIsCut(t *testing.T) {
	t.Parallel()
	r := NewRegistry()
	cut := map[string]bool{}
	add := func(name string, bytes int) *Flow {
		f := &Flow{Sandbox: sandbox.ID(name), Cut: func() { cut[name] = true }}
		r.Add(f)
		f.addUp(bytes)
		return f
	}
	slow, quick := add("slow", minBytes-1), add("quick", minBytes)
	start := slow.since
	r.sweep(start.Add(window / 2))
	if len(cut) != 0 {
		t.Errorf("cut early: %v", cut)
	}
	r.sweep(quick.since.Add(window))
	if !cut["slow"] || cut["quick"] {
		t.Errorf("cut: %v", cut)
	}
	r.sweep(quick.since.Add(window + time.Second))
	if !cut["quick"] {
		t.Error("it moved once, long ago, and is open")
	}
	r.remove(slow)
	r.remove(quick)
	if len(r.flows) != 0 {
		t.Errorf("left: %v", r.flows)
	}
}

func BenchmarkPingPong(b *testing.B) {
	guest, server, _, _ := line(b, "")
	go io.Copy(server, server)
	buf := make([]byte, 64)
	for b.Loop() {
		guest.Write(buf)
		if _, err := io.ReadFull(guest, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBulk(b *testing.B) {
	guest, server, _, _ := line(b, "")
	go io.Copy(io.Discard, server)
	buf := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		if _, err := guest.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBulkIOCopy(b *testing.B) {
	guest, client := pair(b)
	upstream, server := pair(b)
	go io.Copy(upstream, client)
	go io.Copy(io.Discard, server)
	buf := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		if _, err := guest.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
