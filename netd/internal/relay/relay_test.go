package relay

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

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
	go func() { done <- Splice(client, upstream, []byte(head), flow) }()
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
