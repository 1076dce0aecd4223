package lifecycle_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/warm"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
)

var warmSpec = func() sandbox.Spec {
	s := spec
	s.Warm = []warm.Process{{Name: "web", Type: warm.CMD, Command: []string{"serve"}}}
	return s
}()

var (
	healthy   = procapi.WarmStatus{Ready: true}
	unhealthy = procapi.WarmStatus{Reason: "warm process web is not ready: status 503"}
	failed    = procapi.WarmStatus{Failed: true, Reason: "warm process web exited with code 1"}
)

// warming starts to warm a slot whose processes are not healthy yet.
func (n *noded) warming() (id sandbox.ID, created chan error) {
	n.t.Helper()
	started, created := make(chan struct{}), make(chan error, 1)
	go func() { created <- n.Create(n.ctx(), "pool", warmSpec, func() { close(started) }) }()
	<-started
	ids := n.inState(lifecycle.Warming)
	if len(ids) != 1 {
		n.t.Fatalf("warming: %v", ids)
	}
	return ids[0], created
}

// warmed is a slot whose processes are healthy.
func (n *noded) warmed() sandbox.ID {
	n.t.Helper()
	before := n.free()
	if err := n.Create(n.ctx(), "pool", warmSpec, nil); err != nil {
		n.t.Fatal(err)
	}
	added := slices.DeleteFunc(n.free(), func(id sandbox.ID) bool { return slices.Contains(before, id) })
	if len(added) != 1 {
		n.t.Fatalf("a creation added %v", added)
	}
	return added[0]
}

func (m *machine) setWarm(id sandbox.ID, s procapi.WarmStatus) {
	noop.Runtime{Node: m.node}.SetWarm(id, s)
}

func result(t *testing.T, created chan error) error {
	t.Helper()
	select {
	case err := <-created:
		return err
	case <-time.After(patience):
		t.Fatal("the creation does not end")
		return nil
	}
}

func TestASlotIsFreeWhenItsProcessesAreHealthy(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.node.Unhealthy = true
	n := m.boot()
	_, w := n.watch()
	id, created := n.warming()
	if _, _, err := n.Claim(n.ctx(), claimOf(id, "early")); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a claim of a slot that is not ready: %v", err)
	}
	m.setWarm(id, unhealthy)
	eventually(t, "the reason", func() bool { return n.Slots()[0].Reason == unhealthy.Reason })
	m.setWarm(id, healthy)
	if err := result(t, created); err != nil {
		t.Fatal(err)
	}
	w.until(id, "free")
	if told := (noop.Runtime{Node: m.node}).Identity(id).Warm; len(told) != 1 || told[0].Name != "web" {
		t.Errorf("procd was told of %+v", told)
	}
	m.setWarm(id, unhealthy)
	w.until(id, "taken")
	if _, _, err := n.Claim(n.ctx(), claimOf(id, "late")); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a claim of a slot that is not ready any more: %v", err)
	}
	if got := n.inState(lifecycle.Warming); len(got) != 1 {
		t.Errorf("a pool counts it as warming, not %v", n.Slots())
	}
	m.setWarm(id, healthy)
	w.until(id, "free")
	n.claim(id)
	w.until(id, "running")
	m.setWarm(id, unhealthy) // its tenant's business now
	m.setWarm(id, healthy)
	if got := n.free(); len(got) != 0 {
		t.Errorf("a claimed sandbox is free: %v", got)
	}
}

func TestWarmUpThatFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(n *noded, id sandbox.ID)
		says string
	}{
		"exit":    {func(n *noded, id sandbox.ID) { n.setWarm(id, failed) }, failed.Reason},
		"never":   {func(n *noded, id sandbox.ID) { n.setWarm(id, unhealthy) }, unhealthy.Reason},
		"delete":  {func(n *noded, id sandbox.ID) { _ = n.Delete(n.ctx(), id, 0, "test") }, "deleted"},
		"drain":   {func(n *noded, id sandbox.ID) { n.Drain(n.ctx(), id) }, "drained"},
		"death":   {func(n *noded, id sandbox.ID) { noop.Runtime{Node: n.node}.Kill(id, true) }, "exited: killed"},
		"silence": {func(*noded, sandbox.ID) {}, "its warm processes do not say why"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.node.Unhealthy = true
			n := m.boot()
			if name == "never" || name == "silence" {
				n.SetWarmUpTimeout(5 * time.Second) // time enough to say why, or nothing
			}
			id, created := n.warming()
			c.do(n, id)
			err := result(t, created)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want an error that says %q", err, c.says)
			}
			var typed *errdefs.Error
			if shown := name == "exit" || name == "never"; shown && (!errors.As(err, &typed) || typed.Message != c.says) {
				t.Errorf("its owner is not told: %v", err)
			}
			n.nothingLeft()
			select {
			case loss := <-n.Losses():
				t.Errorf("a creation that failed is no loss of a free slot: %+v", loss)
			default:
			}
		})
	}
}

// A free slot whose process ends is ended; its pool is told.
func TestAFreeSlotWhoseProcessEnds(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	_, w := n.watch()
	id := n.warmed()
	m.setWarm(id, failed)
	w.until(id, "free")
	w.until(id, "taken")
	select {
	case loss := <-n.Losses():
		if loss.PoolKey != "pool" || loss.SpecHash != warmSpec.Hash() || loss.Err.Error() != failed.Reason {
			t.Errorf("%+v", loss)
		}
	case <-time.After(patience):
		t.Error("nobody is told of the loss")
	}
	n.nothingLeft()
}

func TestAFreeSlotThatIsUnhealthyForTooLong(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warmed()
	n.SetWarmUpTimeout(100 * time.Millisecond)
	m.setWarm(id, unhealthy)
	n.nothingLeft()
	if loss := <-n.Losses(); loss.Err.Error() != unhealthy.Reason {
		t.Errorf("%+v", loss)
	}
}

// R6: what a tenant has without the process that was promised is not running.
func TestAClaimedSandboxWhoseProcessEnds(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warmed()
	n.claim(id)
	_, w := n.watch()
	m.setWarm(id, procapi.WarmStatus{Failed: true, Reason: "warm process web exited: \x1b[31m" + strings.Repeat("ü", 1000)})
	e := w.until(id, "failed")
	reason := e.GetSandbox().GetReason()
	if !strings.HasPrefix(reason, "warm process web exited: ?[31müü") || len(reason) > procapi.MaxWarmReason {
		t.Errorf("reason %q", reason)
	}
	select {
	case loss := <-n.Losses():
		t.Errorf("a claimed sandbox is no pool's loss: %+v", loss)
	default:
	}
}

// A claim restarts what it makes stale, and does not ask for it if it changes nothing.
func TestAClaimRestartsWarmProcesses(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	rt := noop.Runtime{Node: m.node}
	changes, plain, told := n.warmed(), n.warmed(), n.warmed()
	n.claim(changes)
	n.claim(told)
	req := claimOf(plain, "plain")
	req.Env = nil
	if _, _, err := n.Claim(n.ctx(), req); err != nil {
		t.Fatal(err)
	}
	if a, b := rt.WarmRestarts(changes), rt.WarmRestarts(plain); a != 1 || b != 0 {
		t.Errorf("%d restarts for a claim with variables, %d for one without", a, b)
	}
	if _, err := n.Update(n.ctx(), lifecycle.UpdateRequest{ID: plain, ReplaceEnv: true, Env: map[string]string{"A": "new"}}); err != nil {
		t.Fatal(err)
	}
	if got := rt.WarmRestarts(plain); got != 0 || rt.Env(plain)["A"] != "new" {
		t.Errorf("%d restarts for an update, environment %v", got, rt.Env(plain))
	}
	opens := &journal.Network{Policy: []byte(`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{}}]}}`)}
	if _, err := n.Update(n.ctx(), lifecycle.UpdateRequest{ID: told, Network: opens}); err != nil {
		t.Fatal(err)
	}
	if rt.WarmRestarts(told) != 1 || rt.Env(told)["SSL_CERT_FILE"] == "" {
		t.Errorf("%d restarts for a policy, environment %v", rt.WarmRestarts(told), rt.Env(told))
	}
	// A restart of noded finishes claims that were cut, and takes no update for one.
	n.stop()
	m.boot()
	if a, b, c := rt.WarmRestarts(changes), rt.WarmRestarts(plain), rt.WarmRestarts(told); a != 2 || b != 0 || c != 1 {
		t.Errorf("after noded's restart: %d, %d and %d", a, b, c)
	}
}

// A cold start is for its claim from the start: procd is told once.
func TestAColdStartKnowsItsEnvironment(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.node.Unhealthy = true
	n := m.boot()
	picture, w := n.watch()
	if len(picture) != 0 {
		t.Fatal(picture)
	}
	claimed := make(chan lifecycle.Sandbox, 1)
	go func() {
		sb, cold, err := n.Claim(n.ctx(), lifecycle.ClaimRequest{ClaimID: "c", PoolKey: "pool", Spec: warmSpec, Team: "team", Env: map[string]string{"A": "claim"}})
		if err != nil || !cold {
			t.Errorf("cold %v: %v", cold, err)
		}
		claimed <- sb
	}()
	var id sandbox.ID
	eventually(t, "a start", func() bool {
		ids := n.inState(lifecycle.Taken)
		if len(ids) == 1 {
			id = ids[0]
		}
		return id != "" && (noop.Runtime{Node: m.node}).Identity(id).SandboxID != ""
	})
	if got := n.inState(lifecycle.Warming); len(got) != 0 {
		t.Errorf("a pool would count a cold start as its own: %v", got)
	}
	n.Drain(n.ctx(), id) // and if it did, it must not drain it
	m.setWarm(id, healthy)
	if sb := <-claimed; sb.ID != id {
		t.Fatalf("got %+v", sb)
	}
	w.until(id, "running")
	rt := noop.Runtime{Node: m.node}
	if in := rt.Identity(id); in.Env["A"] != "claim" || rt.WarmRestarts(id) != 0 {
		t.Errorf("procd was told %+v, then to restart %d times", in, rt.WarmRestarts(id))
	}
	m.setWarm(id, failed)
	w.until(id, "failed")
}

// After a restart of noded a slot is free when its processes are healthy, not before.
func TestAdoptionOfWarmSlots(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	good, bad, dead, claimed := n.warmed(), n.warmed(), n.warmed(), n.warmed()
	n.claim(claimed)
	n.stop()
	m.setWarm(bad, unhealthy)
	m.setWarm(dead, failed)
	m.setWarm(claimed, unhealthy)
	n = m.boot()
	eventually(t, "the healthy one is free, the failed one gone", func() bool {
		free, warming := n.free(), n.inState(lifecycle.Warming)
		return len(free) == 1 && free[0] == good && len(warming) == 1 && warming[0] == bad
	})
	if sb, err := n.Get(claimed); err != nil || sb.State() != sandbox.Running {
		t.Errorf("the claimed one is %s (%v)", sb.State(), err)
	}
	m.setWarm(bad, healthy)
	eventually(t, "the other one, too", func() bool { return len(n.free()) == 2 })
}

// B13: whatever procd says of its processes, noded reads little of it.
func TestB13_WarmStatusesThatMakeNoSense(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.node.Unhealthy = true
	n := m.boot()
	n.SetWarmUpTimeout(time.Second)
	id, created := n.warming()
	m.setWarm(id, procapi.WarmStatus{Reason: strings.Repeat("x", 1<<20)})
	if err := result(t, created); err == nil || len(err.Error()) > 4096 {
		t.Errorf("%.100v", err)
	}
	n.nothingLeft()
}
