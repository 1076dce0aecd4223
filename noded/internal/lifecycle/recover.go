package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/netns"
)

// Load makes the journal's sandboxes this manager's, and listens for those that
// may be alive. It comes before Run and any other method. When it fails nothing
// was changed and nothing may be swept: without the journal everything would
// look like nobody's.
func (m *Manager) Load() error {
	records, err := m.cfg.Journal.All()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rec := range records {
		inst := newInstance(rec)
		inst.unseen = rec.State == journal.Slot || rec.State == journal.Claimed || rec.State == journal.Pausing
		m.instances[rec.ID] = inst
		m.indexes.hold(rec.NetIndex)
		m.knowNetwork(context.Background(), rec) // which is only remembered: nobody is told before Run
		if rec.Claim != nil {
			done := make(chan struct{})
			close(done)
			m.claims[rec.Claim.ClaimID] = &claimed{done: done, id: rec.ID}
		}
		m.tell(inst)
	}
	return nil
}

// Adopt takes up again what Load found: what was ending goes on ending, what may
// live is waited for. It needs Run to be under way and returns when all is
// settled, or after a moment; stragglers are unseen until procd redials.
func (m *Manager) Adopt(ctx context.Context) {
	var seen sync.WaitGroup
	for _, inst := range m.snapshot() {
		seen.Add(1)
		if !m.background(func(ctx context.Context) {
			defer seen.Done()
			m.adopt(ctx, inst)
		}) {
			seen.Done()
		}
	}
	all := make(chan struct{})
	go func() { // ends with the adoptions, which Run waits for
		seen.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-time.After(settleTime):
	case <-ctx.Done():
	}
}

func (m *Manager) snapshot() []*instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*instance, 0, len(m.instances))
	for _, inst := range m.instances {
		all = append(all, inst)
	}
	return all
}

// adopt decides about one sandbox. That procd redials is the proof of life;
// containerd is not asked, so that sandboxes serve again while it is away.
func (m *Manager) adopt(ctx context.Context, inst *instance) {
	if m.settle(ctx, inst) {
		return
	}
	switch rec := m.record(inst); {
	case rec.State == journal.Pausing:
		m.adoptPausing(ctx, inst)
	case rec.Frozen:
		m.adoptFrozen(ctx, inst)
	default:
		m.adoptLive(ctx, inst)
	}
}

// settle decides about what nothing of may live, with the turn, for who has had it deleted
// meanwhile was told so. It reports false for the rest.
func (m *Manager) settle(ctx context.Context, inst *instance) bool {
	if inst.takeTurn(ctx) != nil {
		return true // the node stops; the next one finds it again
	}
	defer inst.endTurn()
	switch rec := m.record(inst); {
	case rec.State == journal.Resuming:
		m.backToSleep(ctx, inst, rec) // nobody was told that it runs
	case rec.State == journal.Slot && rec.Image != 0:
		// Nobody was told of it, and what it began with is no other team's (G11).
		m.abandon(ctx, inst, "the claim that it was started for was cut off")
	case m.wasBeingClaimed(rec):
		m.abandon(ctx, inst, "the claim that it was taken for was cut off")
	case rec.State != journal.Terminating && atRest(rec) && rec.NetIndex == 0:
		m.dropOldImages(rec) // its teardown was recorded: see rest
	case atRest(rec):
		m.dispose(inst, rec) // again: nobody knows how far it got
	default:
		return false
	}
	return true
}

// adoptLive waits for the sandbox's procd.
func (m *Manager) adoptLive(ctx context.Context, inst *instance) {
	if m.listenAgain(ctx, inst) {
		m.awaitProcd(ctx, inst)
	}
}

// listenAgain listens for a sandbox that may live, unless somebody else does. That this
// node can't, which may have no descriptor left, is no end of a tenant's sandbox; that the
// directory is gone is, for only a reboot takes it away.
func (m *Manager) listenAgain(ctx context.Context, inst *instance) bool {
	life := m.lifeOf(inst)
	for {
		err := m.listen(inst)
		if err == nil || errors.Is(err, errEnded) {
			return err == nil
		}
		if errors.Is(err, fs.ErrNotExist) || m.record(inst).State == journal.Slot {
			m.end(ctx, inst, life, "not running after the node's restart")
			return false
		}
		m.log(m.record(inst)).Warn("listening for a sandbox will be tried again", "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(adoptRetry):
		}
		if _, err := m.channelOf(inst); err == nil {
			return false
		}
	}
}

// awaitProcd waits for the sandbox's procd, for which somebody listens.
func (m *Manager) awaitProcd(ctx context.Context, inst *instance) {
	life := m.lifeOf(inst)
	wait, cancel := context.WithTimeout(ctx, m.adoptGrace)
	defer cancel()
	err := m.readopt(wait, inst)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		m.log(m.record(inst)).Warn("sandbox did not come back", "error", err)
		m.end(ctx, inst, life, "procd did not come back")
	}
}

// readopt waits for procd, then puts into force what the record says. What goes
// wrong with that alone is tried again: it ends no sandbox of a tenant's.
func (m *Manager) readopt(ctx context.Context, inst *instance) error {
	ch, err := m.channelOf(inst)
	if err != nil {
		return err
	}
	if _, err := ch.WaitHello(ctx); err != nil {
		return err
	}
	for {
		err := m.restore(ctx, inst)
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return m.keepAnyway(ctx, inst, err)
		case <-time.After(adoptRetry):
			m.log(m.record(inst)).Warn("adopting a sandbox will be tried again", "error", err)
		}
	}
}

// restore makes one attempt, with the turn: a delete comes in between two.
func (m *Manager) restore(ctx context.Context, inst *instance) error {
	if err := inst.takeTurn(ctx); err != nil {
		return err
	}
	rec := m.record(inst)
	err := errEnded
	if !atRest(rec) {
		err = m.reinstate(ctx, inst, rec)
	}
	if err == nil {
		m.dropOldImages(rec)
	}
	m.change(inst, func() {
		if err == nil {
			inst.unseen, inst.ready = false, rec.State == journal.Slot && len(rec.Spec.Warm) == 0
		}
		inst.endTurn() // before anybody is told: a claim only tries the turn
	})
	if err == nil {
		m.log(rec).Info("sandbox is adopted", "state", rec.State)
		m.keepWarm(inst) // lets a slot with warm processes be claimed once they are healthy
	}
	return err
}

// reinstate finishes what was cut with the last noded, on either side of the
// journal: a start before procd knew who it is, a claim, an update. What is
// durable counts: a slot must not keep the environment or the limits of a tenant
// who never got it.
func (m *Manager) reinstate(ctx context.Context, inst *instance, rec journal.Record) error {
	if err := m.introduce(ctx, inst, rec); err != nil {
		return err
	}
	attached := m.attachAll(ctx, rec) // matters where the sandbox has not mounted it yet
	// What warm processes see is part of that, until a change of the environment has
	// let them keep what they saw.
	if err := m.enforce(ctx, inst, rec, rec.Claim == nil || !rec.Claim.EnvReplaced); err != nil {
		return errors.Join(err, attached)
	}
	return nil
}

// keepAnyway is the end of a grace in which procd answered and the record could
// not be put into force. A slot is nobody's and goes; a tenant's sandbox stays.
func (m *Manager) keepAnyway(ctx context.Context, inst *instance, err error) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err // the node stops
	}
	kept := false
	m.change(inst, func() {
		if kept = inst.rec.State == journal.Claimed; kept {
			inst.unseen = false
		}
	})
	if !kept {
		return err
	}
	m.log(m.record(inst)).Error("a sandbox lives, but not with the limits and the environment of its record", "error", err)
	m.keepWarm(inst)
	return nil
}

// keepSweeping sweeps as soon as it can, then regularly.
func (m *Manager) keepSweeping(ctx context.Context) {
	pause := sweepRetry
	for {
		if err := m.sweep(ctx); err == nil {
			pause = sweepInterval
		} else if ctx.Err() == nil {
			m.cfg.Log.Warn("sweep failed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// sweep removes what bears a sandbox's name and belongs to none, and notices
// exits that nobody reported. Everything is listed before the table is looked
// at: a sandbox is in the table before its first trace exists and until its
// last one is gone, and ids are never used twice. So what was listed and is not
// in the table is nobody's. That a sandbox is *not* listed means nothing by
// itself.
func (m *Manager) sweep(ctx context.Context) error {
	settled := m.settled() // before the listing: a container that is being created may not run yet
	found := map[sandbox.ID]netns.Slot{}
	containers, err := m.cfg.Runtime.List(ctx)
	if err != nil {
		return err
	}
	for _, c := range containers {
		found[c.ID] = netns.Slot{ID: c.ID}
	}
	if err := m.findLocal(found); err != nil {
		return err
	}
	var failed []error
	for _, slot := range found {
		failed = append(failed, m.sweepOne(ctx, slot))
	}
	m.noticeEnds(ctx, settled, containers)
	return errors.Join(append(failed, m.sweepSnapshots())...)
}

// sweepOne removes what is left of a sandbox that is not in the table. It is there
// meanwhile, as one whose teardown is at work: one that went on elsewhere may come back
// at any time, and is not taken in before nothing of it is left.
func (m *Manager) sweepOne(ctx context.Context, slot netns.Slot) error {
	inst := newInstance(journal.Record{ID: slot.ID, State: journal.Terminating})
	inst.disposing, inst.rested = true, make(chan struct{})
	if !m.admit(inst) {
		return nil
	}
	defer m.forget(inst)
	m.cfg.Log.Info("sweeping what nobody owns", "sandbox", slot.ID)
	if err := errors.Join(m.releaseAll(ctx, slot), m.removeImages(ctx, slot.ID)); err != nil {
		return err
	}
	m.cfg.Metrics.swept.Inc()
	return nil
}

// noticeEnds ends what is listed as ended. That something is not listed counts
// for slots alone that were found at start and whose procd is not connected
// either: they are nobody's, and a pool waits for their place.
func (m *Manager) noticeEnds(ctx context.Context, settled map[*instance]int, containers []Status) {
	listed := map[sandbox.ID]Status{}
	for _, c := range containers {
		listed[c.ID] = c
	}
	for inst, life := range settled {
		m.mu.Lock()
		found := inst.unseen && inst.rec.State == journal.Slot
		m.mu.Unlock()
		if c, ok := listed[inst.id]; c.Ended {
			m.exited(ctx, inst, life, Exit{ID: inst.id, Reason: NotRunning})
		} else if found && !ok {
			m.exited(ctx, inst, life, Exit{ID: inst.id, Reason: NotRunning, Unseen: true})
		}
	}
}

// settled is every sandbox that is not being created, with its life. Another one may have
// its id before long, of one that went on elsewhere and came back.
func (m *Manager) settled() map[*instance]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[*instance]int, len(m.instances))
	for _, inst := range m.instances {
		if inst.cancel == nil {
			all[inst] = inst.life
		}
	}
	return all
}

// findLocal adds what the kernel and the disk hold.
func (m *Manager) findLocal(found map[sandbox.ID]netns.Slot) error {
	groups, err := m.cfg.Groups.List()
	if err != nil {
		return err
	}
	remains, err := m.cfg.Runtime.Remains()
	if err != nil {
		return err
	}
	groups = append(groups, remains...)
	for _, dir := range []string{m.cfg.RunDir, m.cfg.DataDir, m.cfg.ImageDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("listing %s: %w", dir, err)
		}
		for _, e := range entries {
			if id, err := sandbox.ParseID(e.Name()); err == nil {
				groups = append(groups, id)
			}
		}
	}
	for _, id := range groups {
		found[id] = netns.Slot{ID: id}
	}
	if m.cfg.Volumes != nil {
		portals, err := m.cfg.Volumes.List()
		if err != nil {
			return err
		}
		for _, id := range portals {
			found[id] = netns.Slot{ID: id}
		}
	}
	networks, err := m.cfg.Network.List()
	for _, slot := range networks {
		found[slot.ID] = slot // with its index
	}
	return err
}
