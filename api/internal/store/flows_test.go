package store_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

func flows(from, n int) (list []store.NewEvent) {
	for i := range n {
		list = append(list, store.NewEvent{EventID: fmt.Sprint("f", from+i), Type: "network.allowed", Payload: "{}", OccurredAt: time.Now()})
	}
	return list
}

func flowsOf(n store.NewSandbox) store.FlowsOf {
	return store.FlowsOf{Node: n.Node, Sandbox: n.ID, Generation: n.Generation}
}

func TestB13_FlowsBelongToTheRow(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := newSandbox(t, uuid.New())
	insert(t, s, n)
	elsewhere, later, unknown := flowsOf(n), flowsOf(n), flowsOf(n)
	elsewhere.Node, unknown.Sandbox = "elsewhere", "local-aaaaaaaaaaaaaaaaaaaaaaaaaa"
	later.Generation++
	for _, of := range []store.FlowsOf{elsewhere, later, unknown} {
		if err := s.AddFlows(t.Context(), of, flows(0, 1)); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%+v: %v", of, err)
		}
	}
	for range 2 { // storing twice is storing once
		if err := s.AddFlows(t.Context(), flowsOf(n), flows(0, 3)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Exec(t.Context(), "UPDATE sandboxes SET generation = generation + 1, node = 'next' WHERE id = $1", n.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.AddFlows(t.Context(), flowsOf(n), flows(3, 1)); err != nil {
		t.Errorf("of an earlier generation: %v", err)
	}
	list := eventsOf(t, s, n, store.EventFilter{After: -1, Types: []string{"network.allowed"}})
	if len(list) != 4 || list[0].TeamID != n.TeamID || list[0].Source != store.SourceNetd || list[0].Delivery != store.NoDelivery {
		t.Errorf("stored %+v", list)
	}
}

// B08, E24: of a sandbox's records the newest stay, and its other events all the same.
func TestB08_E24_FlowsPushNothingElseOut(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := hooked(t, s, uuid.New())
	add(t, s, n, agentEvents("mine")...)
	other := newSandbox(t, n.TeamID)
	insert(t, s, other)
	if err := s.AddFlows(t.Context(), flowsOf(other), flows(0, 1)); err != nil {
		t.Fatal(err)
	}
	const batch, most = 500, 10_000
	for i := range 26 {
		if err := s.AddFlows(t.Context(), flowsOf(n), flows(i*batch, batch)); err != nil {
			t.Fatal(err)
		}
	}
	var count int
	err := conn.QueryRow(t.Context(), "SELECT count(*) FROM sandbox_events WHERE sandbox_id = $1 AND source = 'netd'", n.ID).Scan(&count)
	if err != nil || count < most || count > most+2*batch {
		t.Errorf("%d records are kept, %v", count, err)
	}
	if got := typesOf(eventsOf(t, s, n, store.EventFilter{After: -1, Types: []string{"agent.event", "sandbox.ready"}})); !slices.Equal(got, []string{"sandbox.ready", "agent.event"}) {
		t.Errorf("its other events: %v", got)
	}
	if list := eventsOf(t, s, other, store.EventFilter{After: -1, Types: []string{"network.allowed"}}); len(list) != 1 {
		t.Errorf("the other one's: %v", list)
	}
}

// Whoever writes, a reader that goes on behind what it has seen misses nothing.
func TestFlowsAndOtherEventsAreSeenInOrder(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := hooked(t, s, uuid.New())
	const writers, each = 4, 15
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := s.AddFlows(t.Context(), flowsOf(n), flows(1000*w+i, 1)); err != nil {
					t.Error(err)
				}
				if err := s.AddEvents(t.Context(), n.ID, n.ClaimID, agentEvents(fmt.Sprintf("%d-%d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	seen, after, last := 0, int64(-1), false
	for {
		list := eventsOf(t, s, n, store.EventFilter{After: after})
		seen += len(list)
		if len(list) > 0 {
			after = list[len(list)-1].Seq
		} else if last {
			break
		}
		select {
		case <-done:
			last = true
		default:
		}
	}
	if seen != 2*writers*each+1 {
		t.Errorf("saw %d of %d", seen, 2*writers*each+1)
	}
}
