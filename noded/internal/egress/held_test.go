package egress

import (
	"errors"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
)

// heldBy is netd's end of held connections.
func (n *node) heldBy() <-chan *netdapi.HeldConn {
	n.t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: netdapi.HeldSocket(n.socket), Net: "unixpacket"})
	if err != nil {
		n.t.Fatal(err)
	}
	got := make(chan *netdapi.HeldConn, 1)
	go func() {
		conn, err := l.AcceptUnix()
		l.Close()
		if err == nil {
			c := netdapi.NewHeldConn(conn)
			err = c.Ready()
			got <- c
		}
		if err != nil && !errors.Is(err, net.ErrClosed) {
			n.t.Error(err)
		}
		close(got)
	}()
	n.t.Cleanup(func() { l.Close() })
	return got
}

// sockets are a connection's two, and the far ends of both.
func sockets(t *testing.T, id sandbox.ID) (h netdapi.Held, far [2]int) {
	t.Helper()
	a, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	b, err2 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(a[1]); unix.Close(b[1]) })
	return netdapi.Held{Sandbox: id, Generation: 1, State: []byte(`"s"`), Client: a[0], Upstream: b[0]}, [2]int{a[1], b[1]}
}

// X31: what can't be handed on ends, and what comes after it goes on.
func TestX31_WhatCannotBeHandedOnEnds(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	s := slot(t, 1)
	n.agent.Attach(t.Context(), s, 1)
	var far [3][2]int
	for i := range far {
		var h netdapi.Held
		h, far[i] = sockets(t, s.ID)
		if i == 1 {
			h.State = []byte(`"` + strings.Repeat("x", 1<<20) + `"`) // more than a message holds
		}
		n.agent.putHeld(h)
	}
	n.startNetd()
	held := n.heldBy()
	n.run()
	netd := <-held
	defer netd.Close()
	for range 2 {
		h, err := netd.Receive()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
	}
	n.eventually("what was not handed on ends", func() bool { return ends(far[1][0]) && ends(far[1][1]) })
	for _, i := range []int{0, 2} {
		if ends(far[i][0]) || ends(far[i][1]) {
			t.Errorf("%d has ended, too", i)
		}
	}
}

// X31: where all is full, whoever has most gives way: a team that fills it with many
// sandboxes leaves every other its own.
func TestX31_WhoHoldsMostGivesWay(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	attached := func(index uint32, team string) sandbox.ID {
		s := slot(t, index)
		n.agent.Attach(t.Context(), s, 1)
		if err := n.agent.SetPolicy(t.Context(), s.ID, team, nil); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		return s.ID
	}
	put := func(id sandbox.ID) {
		n.agent.putHeld(netdapi.Held{Sandbox: id, Generation: 1, Client: -1, Upstream: -1})
	}
	var big []sandbox.ID
	for i := range uint32(100) { // each has fewer than the small one
		big = append(big, attached(i, "big"))
		for range maxHeld / 100 {
			put(big[i])
		}
	}
	small := attached(100, "small")
	for range 30 {
		put(small)
	}
	for _, id := range big {
		put(id)
	}
	count := 0
	for _, some := range n.agent.held {
		count += len(some)
	}
	if got := len(n.agent.held[small]); got != 30 || count != maxHeld || n.agent.heldCount != maxHeld {
		t.Errorf("the small one has %d of %d, which count as %d", got, count, n.agent.heldCount)
	}
}

// told is a log that tells when something is written to it.
type told chan struct{}

func (w told) Write(p []byte) (int, error) {
	select {
	case w <- struct{}{}:
	default:
	}
	return len(p), nil
}

// X31: a netd that takes no connections at first gets them later.
func TestX31_ANetdThatTakesNoneIsTriedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	refused := make(told, 1)
	n.agent.log = slog.New(slog.NewTextHandler(refused, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s := slot(t, 1)
	n.agent.Attach(t.Context(), s, 1)
	h, far := sockets(t, s.ID)
	n.agent.putHeld(h)
	n.startNetd()
	n.run()
	select {
	case <-refused:
	case <-time.After(deadline):
		t.Fatal("nobody has tried")
	}
	netd := <-n.heldBy()
	defer netd.Close()
	got, err := netd.Receive()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if ends(far[0]) || ends(far[1]) {
		t.Error("it has ended")
	}
}

// X31: connections go on when netd was told everything; a sandbox of which it can't be
// told holds the others' up a little, and no longer.
func TestX31_OneThatCannotBeToldHoldsUpNobody(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.full = true
	s, bad := slot(t, 1), slot(t, 2)
	n.agent.Attach(t.Context(), s, 1)
	n.agent.Attach(t.Context(), bad, 1)
	if err := n.agent.SetPolicy(t.Context(), bad.ID, "team", wants(intercepting)); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	h, _ := sockets(t, s.ID)
	n.agent.putHeld(h)
	n.startNetd()
	held := n.heldBy()
	n.run()
	netd := <-held
	defer netd.Close()
	n.mu.Lock()
	asked := n.asked
	n.mu.Unlock()
	if asked < patience {
		t.Errorf("connections went on after %d comparisons that failed", asked)
	}
	got, err := netd.Receive()
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
}

// ends reports whether the other side of a socket is closed.
func ends(fd int) bool {
	n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_DONTWAIT)
	return n == 0 && err == nil || errors.Is(err, syscall.ECONNRESET)
}

// X31: what one netd leaves the next one gets, when it knows every sandbox; what is of a
// sandbox that has ended meanwhile ends, and so does what is too much.
func TestX31_HeldConnectionsGoToTheNextNetd(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.startNetd()
	held := n.heldBy()
	n.run()
	n.eventually("netd is noticed", n.agent.Available)
	lives, dies, nobody := slot(t, 1), slot(t, 2), slot(t, 3)
	n.agent.Attach(t.Context(), lives, 1)
	n.agent.Attach(t.Context(), dies, 1)
	first := <-held
	var far [3][2]int
	for i, id := range []sandbox.ID{lives.ID, dies.ID, nobody.ID} {
		var h netdapi.Held
		h, far[i] = sockets(t, id)
		if err := first.Send(h); err != nil {
			t.Fatal(err)
		}
		h.Close()
	}
	var more [maxHeldEach][2]int
	for i := range more { // one more than there may be
		h, ends := sockets(t, lives.ID)
		if err := first.Send(h); err != nil {
			t.Fatal(err)
		}
		h.Close()
		more[i] = ends
	}
	n.eventually("nobody's ends", func() bool { return ends(far[2][0]) && ends(far[2][1]) })
	n.eventually("what is too much ends", func() bool { return ends(more[maxHeldEach-1][0]) })
	n.srv.Close()
	first.Close()
	n.eventually("its end is noticed", func() bool { return !n.agent.Available() })
	n.agent.Detach(t.Context(), dies.ID)
	if !ends(far[1][0]) || !ends(far[1][1]) {
		t.Error("the connection of a sandbox that has ended goes on")
	}
	held = n.heldBy()
	f := n.startNetd()
	second := <-held
	for i := range maxHeldEach {
		h, err := second.Receive()
		if err != nil || h.Sandbox != lives.ID || h.Generation != 1 || string(h.State) != `"s"` {
			t.Fatalf("%d: it gets %+v, %v", i, h, err)
		}
		f.mu.Lock()
		_, known := f.known[h.Sandbox]
		f.mu.Unlock()
		if !known {
			t.Error("it gets a connection of a sandbox that it was not told of")
		}
		h.Close()
	}
	if !ends(far[0][0]) || !ends(more[0][1]) {
		t.Error("somebody has the sockets still")
	}
	second.Close()
}
