package egress

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
)

func (f *fake) bandwidth(id sandbox.ID) (each, together uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.policies[id]
	return p.SandboxBandwidth.Egress.Bytes, p.TeamBandwidth.Egress.Bytes
}

func (f *fake) attachments() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attached
}

func egressOf(each, together uint64) Bandwidth {
	return Bandwidth{
		Each:     netdapi.Bandwidth{Egress: netdapi.Rate{Bytes: each}},
		Together: netdapi.Bandwidth{Egress: netdapi.Rate{Bytes: together}},
	}
}

// What is said of a team holds for the sandboxes that run and for those that come, and
// after restarts of both daemons.
func TestX31_BandwidthHoldsThroughRestarts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	file := filepath.Join(t.TempDir(), "bandwidth.json")
	if err := n.agent.LoadBandwidth(file); err != nil {
		t.Fatal(err)
	}
	mine, others := slot(t, 3), slot(t, 4)
	is := func(f *fake, id sandbox.ID, each, together uint64) {
		t.Helper()
		if gotEach, gotTogether := f.bandwidth(id); gotEach != each || gotTogether != together {
			t.Errorf("each has %d, together %d; want %d and %d", gotEach, gotTogether, each, together)
		}
	}
	add := func(a *Agent) {
		t.Helper()
		a.Attach(t.Context(), mine, 1)
		a.Attach(t.Context(), others, 1)
		err := errors.Join(a.SetPolicy(t.Context(), mine.ID, "mine", nil), a.SetPolicy(t.Context(), others.ID, "others", nil))
		if err != nil && a.Available() {
			t.Fatal(err)
		}
	}
	add(n.agent)
	f := n.startNetd()
	n.run()
	n.eventually("netd is told of both", func() bool { // by its first comparison, which attaches what it did not find
		_, a := f.policy(mine.ID)
		_, b := f.policy(others.ID)
		return a && b
	})
	is(f, mine.ID, 0, 0)
	before := f.attachments()
	said := Bandwidths{Teams: map[string]Bandwidth{"mine": egressOf(1, 2)}, Others: egressOf(3, 4)}
	for range 2 {
		if err := n.agent.SetBandwidth(t.Context(), said); err != nil {
			t.Fatal(err)
		}
		is(f, mine.ID, 1, 2)
		is(f, others.ID, 3, 4)
	}
	if after := f.attachments(); after != before {
		t.Errorf("what did not move was attached %d times again", after-before)
	}
	n.srv.Close()
	n.eventually("netd's end is noticed", func() bool { return !n.agent.Available() })
	said = Bandwidths{Teams: map[string]Bandwidth{"mine": egressOf(5, 6)}, Others: egressOf(3, 4)}
	if err := n.agent.SetBandwidth(t.Context(), said); err != nil {
		t.Fatal(err)
	}
	f = n.startNetd()
	n.eventually("the next netd is told", func() bool { each, _ := f.bandwidth(mine.ID); return each == 5 })

	next := New(Config{Socket: n.socket, Log: slog.New(slog.DiscardHandler)})
	if err := next.LoadBandwidth(file); err != nil {
		t.Fatal(err)
	}
	add(next)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- next.Run(ctx) }()
	n.eventually("netd is noticed", next.Available)
	if err := next.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	is(f, mine.ID, 5, 6)
	is(f, others.ID, 3, 4)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A sandbox that is claimed while its team's bandwidth changes has the new one.
func TestABandwidthMissesNoClaim(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := n.agent.LoadBandwidth(filepath.Join(t.TempDir(), "bandwidth.json")); err != nil {
		t.Fatal(err)
	}
	f := n.startNetd()
	n.run()
	n.eventually("netd is noticed", n.agent.Available)
	for round := range uint64(50) {
		s := slot(t, 3)
		n.agent.Attach(t.Context(), s, 1)
		claimed := make(chan error, 1)
		go func() { claimed <- n.agent.SetPolicy(t.Context(), s.ID, "mine", nil) }()
		said := n.agent.SetBandwidth(t.Context(), Bandwidths{Others: egressOf(round+1, 0)})
		if err := errors.Join(said, <-claimed); err != nil {
			t.Fatal(err)
		}
		if each, _ := f.bandwidth(s.ID); each != round+1 {
			t.Errorf("round %d: it may send %d, not %d", round, each, round+1)
		}
		n.agent.Detach(t.Context(), s.ID)
	}
}

// What can't be kept is not in force: whoever said it says it again.
func TestABandwidthThatIsNotKept(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := n.agent.LoadBandwidth(filepath.Join(t.TempDir(), "nowhere", "bandwidth.json")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.agent.SetBandwidth(t.Context(), Bandwidths{Others: egressOf(1, 2)}); err == nil {
			t.Error("it is kept nowhere")
		}
	}
}

func TestFlowsAreNetds(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if _, err := n.agent.TakeFlows(t.Context(), netdapi.Mark{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without netd: %v", err)
	}
	if all, err := n.agent.Counters(t.Context()); err != nil || all != nil {
		t.Errorf("without netd: %v, %v", all, err)
	}
	n.startNetd()
	n.run()
	n.eventually("netd is noticed", n.agent.Available)
	e, err := n.agent.TakeFlows(t.Context(), netdapi.Mark{Run: "r", Through: 5})
	if err != nil || e.Mark.Through != 6 || len(e.Events) != 1 || e.Events[0].FlowID != "5" {
		t.Errorf("took %+v, %v", e, err)
	}
	if all, err := n.agent.Counters(t.Context()); err != nil || all["a"].Denied != 7 {
		t.Errorf("counted %v, %v", all, err)
	}
}
