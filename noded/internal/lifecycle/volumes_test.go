package lifecycle_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/volumes"
)

// portals is a lifecycle.Volumes without files.
type portals struct {
	dir string

	mu       sync.Mutex
	attached map[sandbox.ID][]string // names of mounts
	begun    map[sandbox.ID]bool     // have a name in the portal
	broken   error                   // of AttachWhen

	used, attaching func(sandbox.ID) // called in each AttachWhen: before it may enter the portal, and before it does
}

func newPortals(t *testing.T) *portals {
	return &portals{dir: t.TempDir(), attached: map[sandbox.ID][]string{}, begun: map[sandbox.ID]bool{}}
}

func (p *portals) use(cfg *lifecycle.Config) { cfg.Volumes = p }

func (p *portals) has(id sandbox.ID) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.attached[id])
}

func (p *portals) begin(id sandbox.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun[id] = true
}

func (p *portals) breaks(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken = err
}

func (p *portals) Has(id sandbox.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.begun[id] || len(p.attached[id]) > 0
}

func (p *portals) AttachWhen(_ context.Context, id sandbox.ID, m volumes.Mount, enter func() error) error {
	p.begin(id)
	if p.used != nil {
		p.used(id)
	}
	if err := enter(); err != nil {
		return err
	}
	if p.attaching != nil {
		p.attaching(id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken == nil && !slices.Contains(p.attached[id], m.Name()) {
		p.attached[id] = append(p.attached[id], m.Name())
	}
	return p.broken
}

func (p *portals) Detach(_ context.Context, id sandbox.ID, m volumes.Mount, _ func(context.Context) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attached[id] = slices.DeleteFunc(p.attached[id], func(name string) bool { return name == m.Name() })
	return nil
}

func (p *portals) DetachAll(_ context.Context, id sandbox.ID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.attached, id)
	delete(p.begun, id)
	return nil
}

func (p *portals) List() (ids []sandbox.ID, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.begun {
		ids = append(ids, id)
	}
	return ids, nil
}

func (p *portals) Dir(id sandbox.ID) string                         { return filepath.Join(p.dir, string(id)) }
func (p *portals) Prepare(sandbox.ID) error                         { return nil }
func (p *portals) StandIn(sandbox.ID, volumes.Mount) error          { return nil }
func (p *portals) CommitAll(context.Context, []volumes.Mount) error { return nil }

var data = journal.Mount{ID: "m1", Volume: journal.Volume{ID: "v1", Team: "team", Epoch: 1}, MountPoint: "/data"}

// What is mounted for a claim is there before the processes that a template runs are
// started anew to see it, and before the claim is answered; in a life without memory it
// is there before they start.
func TestWarmProcessesSeeWhatIsMountedForTheirClaim(t *testing.T) {
	t.Parallel()
	m, p := newMachine(t), newPortals(t)
	n := m.boot(p.use)
	rt := noop.Runtime{Node: m.node}
	want := []procapi.Mount{{Name: "v1~m1", Target: "/data"}}
	slot := n.warmed()
	if _, _, err := n.Claim(n.ctx(), lifecycle.ClaimRequest{ClaimID: "c", Slot: slot, PoolKey: "pool", Team: "team", Mounts: []journal.Mount{data}}); err != nil {
		t.Fatal(err)
	}
	if got := rt.Mounts(slot); !slices.Equal(got, want) || rt.WarmRestarts(slot) != 1 || !slices.Equal(p.has(slot), []string{"v1~m1"}) {
		t.Errorf("procd was told of %v and to restart %d times, the portal has %v", got, rt.WarmRestarts(slot), p.has(slot))
	}
	if _, err := n.PauseFiles(n.ctx(), slot, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the portal of a paused sandbox to be empty", func() bool { return len(p.has(slot)) == 0 })
	if err := n.resumeWith(slot, data); err != nil {
		t.Fatal(err)
	}
	if got := rt.Identity(slot).Mounts; !slices.Equal(got, want) || rt.WarmRestarts(slot) != 0 {
		t.Errorf("a new life begins with %v, and %d restarts", got, rt.WarmRestarts(slot))
	}
}

// A volume that cannot be had is the claim's failure, and procd hears nothing of it.
func TestAClaimWhoseVolumeCannotBeHad(t *testing.T) {
	t.Parallel()
	m, p := newMachine(t), newPortals(t)
	n := m.boot(p.use)
	p.breaks(errors.New("the store is away"))
	slot := n.warmed()
	if _, _, err := n.Claim(n.ctx(), lifecycle.ClaimRequest{ClaimID: "c", Slot: slot, Team: "team", Mounts: []journal.Mount{data}}); err == nil {
		t.Error("it was answered")
	}
	n.nothingLeft()
}

// C15: a volume enters no sandbox that the next noded would give to somebody else.
func TestC15_AVolumeEntersWhatIsItsTenants(t *testing.T) {
	t.Parallel()
	m, p := newMachine(t), newPortals(t)
	n := m.boot(p.use)
	slot := n.warmed()
	p.attaching = func(id sandbox.ID) {
		all, err := n.journal.All()
		if err != nil {
			t.Error(err)
		}
		if !slices.ContainsFunc(all, func(rec journal.Record) bool { return rec.ID == id && rec.State == journal.Claimed }) {
			t.Errorf("the journal says %+v", all)
		}
	}
	if _, _, err := n.Claim(n.ctx(), lifecycle.ClaimRequest{ClaimID: "c", Slot: slot, Team: "team", Mounts: []journal.Mount{data}}); err != nil {
		t.Fatal(err)
	}
	if len(p.has(slot)) != 1 {
		t.Errorf("the portal has %v", p.has(slot))
	}
}

// C15: a slot whose claim was cut while its volume was being mounted, and before the journal
// knew of it, is given to nobody else.
func TestC15_ASlotThatVolumesWereOnTheirWayToIsNotFree(t *testing.T) {
	t.Parallel()
	m, p := newMachine(t), newPortals(t)
	n := m.boot(p.use)
	slots := n.warm(2)
	n.stop()
	p.begin(slots[0])
	n = m.boot(p.use)
	eventually(t, "the slot to end, and the other one to be free", func() bool {
		picture, _ := n.watch()
		_, there := picture[string(slots[0])]
		return !there && !p.Has(slots[0]) && picture[string(slots[1])] == "free"
	})
}

// A volume is mounted while the journal writes the claim: where that is refused, it has not
// entered the sandbox, and is let go.
func TestC15_AClaimThatTheJournalRefusesShowsNoVolume(t *testing.T) {
	defer failpoint.Arm("")
	m, p := newMachine(t), newPortals(t)
	n := m.boot(p.use)
	slot := n.warmed()
	used := false
	p.used = func(sandbox.ID) { used = true }
	p.attaching = func(sandbox.ID) { t.Error("the volume enters the portal") }
	if err := failpoint.Arm("journal.commit=1*error(on purpose)"); err != nil {
		t.Fatal(err)
	}
	_, _, err := n.Claim(n.ctx(), lifecycle.ClaimRequest{ClaimID: "c", Slot: slot, Team: "team", Mounts: []journal.Mount{data}})
	kind(t, err, errdefs.Unavailable)
	n.nothingLeft()
	if !used || p.Has(slot) {
		t.Errorf("the volume was mounted beside the journal: %t; it is in use: %t", used, p.Has(slot))
	}
}

// X12: a claim that was cut before its volumes were there gets them from the next noded.
func TestX12_ACutClaimGetsItsVolumes(t *testing.T) {
	t.Parallel()
	m, p := newMachine(t), newPortals(t)
	n := m.boot(p.use)
	slot := n.warmed()
	if _, _, err := n.Claim(n.ctx(), lifecycle.ClaimRequest{ClaimID: "c", Slot: slot, Team: "team", Mounts: []journal.Mount{data}}); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if err := p.DetachAll(n.ctx(), slot); err != nil {
		t.Fatal(err)
	}
	rt := noop.Runtime{Node: m.node}
	rt.Forget(slot)
	m.boot(p.use)
	if got := rt.Mounts(slot); len(got) != 1 || len(p.has(slot)) != 1 || rt.WarmRestarts(slot) != 2 {
		t.Errorf("procd was told of %v and to restart %d times, the portal has %v", got, rt.WarmRestarts(slot), p.has(slot))
	}
}
