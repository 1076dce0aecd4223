package nodes

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/placement"
	"s0.run/internal/sandbox"
)

// newSet is a Set whose members are sockets, too.
func newSet(table *placement.Table, sockets ...string) *Set {
	return New(Config{
		Sockets: sockets, Cluster: "local", Table: table, Log: slog.New(slog.DiscardHandler),
		DialMember: func(ctx context.Context, m Member) (net.Conn, error) { return dialUnix(ctx, m.Endpoint) },
		OnSync:     func(string) {}, OnEnd: func(string, sandbox.ID) {},
	})
}

func member(n *fakenode.Node) Member {
	return Member{Name: n.Name, Membership: uuid.New(), Endpoint: n.Socket}
}

func runSet(t *testing.T, s *Set) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (s *Set) named(name string) *conn {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byName[name]
}

// A node of this machine has its name, whoever says it first and whatever the list says.
func TestANodeOfThisMachineIsNoMember(t *testing.T) {
	t.Parallel()
	elsewhere := fakenode.Start(t, &fakenode.Node{})
	elsewhere.AddSlots("p", 1)
	here := fakenode.Start(t, &fakenode.Node{})
	here.AddSlots("p", 2)
	here.Stop()
	table := placement.New()
	s := newSet(table, here.Socket)
	m := member(elsewhere)
	s.Members([]Member{m})
	runSet(t, s)
	fakenode.Eventually(t, "the member is there first", func() bool { return table.Free() == 1 })
	if names, all := s.Local(); all || len(names) > 0 {
		t.Errorf("%v, all %t", names, all)
	}
	first := s.named("n1")
	here.Listen(t)
	fakenode.Eventually(t, "the node of this machine has its name", func() bool { return table.Free() == 2 })
	<-first.done
	if names, all := s.Local(); !all || len(names) != 1 || !names["n1"] {
		t.Errorf("%v, all %t", names, all)
	}
	for _, list := range [][]Member{{m}, {member(elsewhere)}, nil} {
		s.Members(list)
		if c := s.named("n1"); !c.local() || table.Free() != 2 {
			t.Errorf("it is at %s, with %d free slots", c.at, table.Free())
		}
		s.mu.RLock()
		if len(s.conns) != 1 {
			t.Errorf("%d nodes are followed", len(s.conns))
		}
		s.mu.RUnlock()
	}
}

// H03: who is removed says hello once more while others are hung up on, and is not heard.
func TestH03_ARemovedNodeIsNotMadeKnownAgain(t *testing.T) {
	t.Parallel()
	s := newSet(placement.New())
	a := fakenode.Start(t, &fakenode.Node{Name: "a"})
	b := fakenode.Start(t, &fakenode.Node{Name: "b"})
	s.Members([]Member{member(a), member(b)})
	for _, c := range s.conns {
		if _, err := s.hello(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	of := s.conns
	of[0].mu.Lock() // hanging up on a takes its time
	removed := make(chan struct{})
	go func() {
		defer close(removed)
		s.Members(nil)
	}()
	fakenode.Eventually(t, "both are known no more", func() bool { return s.named("a") == nil && s.named("b") == nil })
	if _, err := s.hello(t.Context(), of[1]); err == nil || s.named("b") != nil {
		t.Errorf("a removed node is known again: %v", err)
	}
	of[0].mu.Unlock()
	<-removed
}

// What a node says last comes before what the one in its place says, also when one between
// them was nobody's turn; and a node is forgotten whose last place never was served.
func TestMembersFollowOneAnother(t *testing.T) {
	t.Parallel()
	table := placement.New()
	s := newSet(table)
	gone := make(chan string, 10)
	s.cfg.OnGone = func(node string) { gone <- node }
	n := fakenode.Start(t, &fakenode.Node{})
	n.AddSlots("p", 1)
	s.Members([]Member{member(n)})
	first := s.conns[0]
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	release := make(chan struct{})
	first.claims.calls.Go(func() { <-release }) // it does not end before
	running := make(chan struct{})
	go func() {
		defer close(running)
		s.Run(ctx)
	}()
	fakenode.Eventually(t, "the first is followed", func() bool { return table.Free() == 1 })
	s.mu.Lock() // Run can't start the second before it has ended
	second, third := s.newMemberLocked(member(n)), s.newMemberLocked(member(n))
	second.cancel()
	s.conns = []*conn{third}
	delete(s.byName, n.Name)
	s.mu.Unlock()
	first.end()
	s.changed <- struct{}{}
	fakenode.Eventually(t, "they are started", func() bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return len(s.fresh) == 0
	})
	select {
	case <-second.done:
		t.Error("the second has not waited for the first")
	case <-third.tried:
		t.Error("the third has not waited for the first")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	<-third.tried
	select {
	case <-second.done:
	default:
		t.Error("the third has not waited for the second")
	}
	fakenode.Eventually(t, "the third is followed", func() bool { return table.Free() == 1 })
	s.mu.Lock()
	s.newMemberLocked(member(n)).cancel()
	s.mu.Unlock()
	s.Members(nil)
	if node := <-gone; node != n.Name || len(gone) > 0 {
		t.Errorf("%s is forgotten, and %d more", node, len(gone))
	}
	stop()
	<-running
}
