package lifecycle_test

import (
	"strings"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/noop"
)

// procd keeps events before a claim that wants them is answered, and is told again
// after a restart; of a claim that does not, procd hears nothing.
func TestAClaimThatWantsEvents(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	_, w := n.watch()
	slots := n.warm(2)
	rt := noop.Runtime{Node: m.node}
	n.claim(slots[0])
	if got := rt.Keeps(slots[0]); got != nil {
		t.Errorf("a claim without events: %+v", got)
	}
	req := claimOf(slots[1], "hooked")
	req.Events = &journal.Events{WatchDir: "/src"}
	if _, _, err := n.Claim(n.ctx(), req); err != nil {
		t.Fatal(err)
	}
	if got := rt.Keeps(slots[1]); got == nil || got.WatchDir != "/src" {
		t.Errorf("a claim with events: %+v", got)
	}
	if e := w.until(slots[1], "running").GetSandbox().GetEvents(); e.GetWatchDir() != "/src" {
		t.Errorf("watchers are told %v", e)
	}
	n.stop()
	rt.StopKeeping(slots[1])
	m.boot()
	if got := rt.Keeps(slots[1]); got == nil || got.WatchDir != "/src" {
		t.Errorf("after a restart: %+v", got)
	}
	req.ClaimID, req.Events = "long", &journal.Events{WatchDir: strings.Repeat("d", procapi.MaxWatchDir+1)}
	_, _, err := n.Claim(n.ctx(), req)
	kind(t, err, errdefs.InvalidArgument)
}
