package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/channel"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/netns"
)

// Delete ends a sandbox or slot for good. It returns when the decision is
// durable; what it holds is freed in the background. What is unknown is deleted
// already. An older generation than the sandbox's is refused, 0 means any.
func (m *Manager) Delete(ctx context.Context, id sandbox.ID, gen sandbox.Generation, reason string) error {
	return m.remove(ctx, id, gen, func(journal.Record) bool { return true }, reason)
}

// DeleteOf is Delete for who asked for a sandbox by a claim and does not know what came
// of it: a slot is given up, and what is another claim's by now is left alone.
func (m *Manager) DeleteOf(ctx context.Context, id sandbox.ID, gen sandbox.Generation, claimID, reason string) error {
	return m.remove(ctx, id, gen, func(rec journal.Record) bool { return rec.Claim == nil || rec.Claim.ClaimID == claimID }, reason)
}

func (m *Manager) remove(ctx context.Context, id sandbox.ID, gen sandbox.Generation, meant func(journal.Record) bool, reason string) error {
	inst := m.find(id)
	if inst == nil {
		return nil
	}
	rec := m.record(inst)
	if err := checkGeneration(rec, gen); err != nil || !meant(rec) {
		return err // before a start is ended that is not meant
	}
	m.cancelStart(inst, errors.New("deleted"))
	if err := inst.takeTurn(ctx); err != nil {
		return errdefs.New(errdefs.Unavailable, "sandbox %s is busy", id).WithCause(err)
	}
	defer inst.endTurn()
	rec = m.record(inst)
	if err := checkGeneration(rec, gen); err != nil {
		return err
	}
	if rec.State == journal.Terminating || !meant(rec) {
		return nil
	}
	if err := failpoint.Hit("delete.begin"); err != nil {
		return err
	}
	rec.State, rec.Reason = journal.Terminating, reason
	if err := m.cfg.Journal.Put(ctx, rec); err != nil {
		return fmt.Errorf("deleting %s: %w", id, err)
	}
	if err := failpoint.Hit("delete.after-intent"); err != nil {
		return err
	}
	m.log(rec).Info("sandbox ends", "reason", reason)
	m.dispose(inst, rec)
	return nil
}

// DeleteClaim ends the sandbox that a claim has got or is getting, for who asked for it
// and has not heard of its id. What a claim has never got is deleted already.
func (m *Manager) DeleteClaim(ctx context.Context, claimID, reason string) error {
	m.mu.Lock()
	c := m.claims[claimID]
	m.mu.Unlock()
	if c == nil {
		return nil
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return errdefs.New(errdefs.Unavailable, "the claim is still under way").WithCause(ctx.Err())
	}
	if c.err != nil {
		return nil
	}
	return m.Delete(ctx, c.id, 0, reason)
}

// Drain ends a slot that nobody has claimed, also one that is warming; one that was
// just claimed stays.
func (m *Manager) Drain(ctx context.Context, id sandbox.ID) {
	inst := m.find(id)
	if inst == nil {
		return
	}
	m.cancelWarming(inst)
	if !inst.tryTurn() {
		return // it is being claimed, or its start unwinds
	}
	defer inst.endTurn()
	if m.record(inst).State == journal.Slot {
		m.abandon(ctx, inst, "drained")
	}
}

// cancelWarming ends a creation that is for no claim.
func (m *Manager) cancelWarming(inst *instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if inst.cancel != nil && !inst.binding {
		inst.cancel(errors.New("drained"))
	}
}

// cancelStart ends a creation that is under way.
func (m *Manager) cancelStart(inst *instance, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if inst.cancel != nil {
		inst.cancel(cause)
	}
}

// exited handles the end of a sandbox's processes, in the life that they were of.
func (m *Manager) exited(ctx context.Context, inst *instance, life int, exit Exit) {
	if rec := m.record(inst); exit.Unseen && (rec.State == journal.Claimed || rec.State == journal.Pausing || m.connected(inst)) {
		m.log(rec).Warn("the runtime does not know a sandbox that may live")
		return
	}
	reason := m.exitReason(exit)
	cause := fmt.Errorf("exited: %s", reason)
	if !exit.Unseen && reason != NotRunning && reason != outOfMemory {
		cause = fmt.Errorf("%w: %s", errExited, reason)
	}
	m.mu.Lock()
	if inst.cancel != nil && inst.life == life {
		inst.cancel(cause)
	}
	m.mu.Unlock()
	m.end(ctx, inst, life, reason)
}

// errExited: the runtime has seen a sandbox end, and not for want of memory on this node.
var errExited = errors.New("exited")

const outOfMemory = "oom"

func (m *Manager) connected(inst *instance) bool {
	ch, err := m.channelOf(inst)
	return err == nil && ch.Connected()
}

// exitReason prefers what the kernel counted: an OOM kill looks like any other from outside.
func (m *Manager) exitReason(exit Exit) string {
	if s, err := m.cfg.Groups.Stats(exit.ID); err == nil && s.OOMKills > 0 {
		return outOfMemory
	}
	return exit.Reason
}

// lost handles the loss of procd's connection. One that procd closed was its end.
// When procd is silent it may hang, or the machine may keep it waiting: a tenant's
// sandbox is not ended for that, but shown as what it is, unknown, until procd says
// something, the runtime says that it has ended, or its tenant has it deleted.
func (m *Manager) lost(ctx context.Context, inst *instance, life int, silent bool) {
	if !silent {
		m.end(ctx, inst, life, "procd lost")
		return
	}
	m.endSlot(ctx, inst, "procd does not answer", func() bool { return inst.channel == nil || !inst.channel.Connected() })
	waits := false
	m.change(inst, func() {
		waits = inst.rec.State == journal.Claimed && !inst.unseen
		inst.unseen = inst.unseen || waits
	})
	if !waits {
		return
	}
	rec := m.record(inst)
	m.log(rec).Warn("procd does not answer")
	if err := m.readopt(ctx, inst); err != nil {
		m.log(rec).Debug("a silent sandbox did not come back", "error", err)
	}
}

// endSlot gives up a slot that is no good, unless it has become somebody's. still,
// called with mu held, tells whether it is no good when its turn has come.
func (m *Manager) endSlot(ctx context.Context, inst *instance, reason string, still func() bool) {
	if inst.takeTurn(ctx) != nil {
		return
	}
	defer inst.endTurn()
	m.mu.Lock()
	end := inst.rec.State == journal.Slot && still()
	m.mu.Unlock()
	if end {
		m.tellLoss(inst, reason)
		m.abandon(ctx, inst, reason)
	}
}

// end takes note that a sandbox has ended by itself: a slot goes, a claimed one
// becomes failed and keeps its record, so that its tenant learns why. One that lives
// again by then goes on.
func (m *Manager) end(ctx context.Context, inst *instance, life int, reason string) {
	if inst.takeTurn(ctx) != nil {
		return // the node stops; the next one finds out again
	}
	defer inst.endTurn()
	if m.lifeOf(inst) != life {
		return
	}
	rec := m.record(inst)
	switch rec.State {
	case journal.Slot:
		m.tellLoss(inst, reason)
		m.abandon(ctx, inst, reason)
	case journal.Claimed:
		m.fail(ctx, inst, rec, reason)
	case journal.Pausing:
		m.endPausing(ctx, inst, rec)
	case journal.Paused, journal.Resuming, journal.Failed, journal.Terminating: // known
	}
}

// fail makes a claimed sandbox one that has failed. The caller has its turn.
func (m *Manager) fail(ctx context.Context, inst *instance, rec journal.Record, reason string) {
	rec.State, rec.Reason = journal.Failed, reason
	m.putAnyway(ctx, rec)
	m.cfg.Metrics.failures.Inc()
	m.log(rec).Warn("sandbox failed", "reason", reason)
	m.dispose(inst, rec)
}

// abandon gives a sandbox up that nobody may have, or be told that he has. The
// caller has its turn.
func (m *Manager) abandon(ctx context.Context, inst *instance, reason string) {
	rec := m.record(inst)
	rec.State, rec.Reason = journal.Terminating, reason
	rec.Claim = nil // a claim that failed was never anybody's
	m.putAnyway(ctx, rec)
	m.log(rec).Info("slot ends", "reason", reason)
	m.dispose(inst, rec)
}

// putAnyway records what has happened, whatever became of the caller. Without
// the record the next noded comes to the same end, for nothing of it runs then.
func (m *Manager) putAnyway(ctx context.Context, rec journal.Record) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := m.cfg.Journal.Put(ctx, rec); err != nil {
		m.log(rec).Error("journal refused a record", "state", rec.State, "error", err)
	}
}

// dispose makes rec, whose state is an end, the sandbox's record, and sees to
// it that one teardown is at work.
func (m *Manager) dispose(inst *instance, rec journal.Record) {
	var ch *channel.Channel
	start := false
	m.change(inst, func() {
		inst.rec, inst.ready, inst.binding, inst.unseen = rec, false, false, false
		ch, inst.channel = inst.channel, nil
		start, inst.disposing = !inst.disposing, true
		if start {
			inst.rested = make(chan struct{})
		}
	})
	if ch != nil {
		ch.Close()
	}
	if start {
		m.background(func(ctx context.Context) { m.tearDown(ctx, inst) })
	}
}

// tearDown frees what a sandbox holds, however long it takes, and forgets it
// when it is terminating. A failed one keeps its record until its Delete, a paused
// one its image, too.
func (m *Manager) tearDown(ctx context.Context, inst *instance) {
	rec := m.record(inst)
	if !m.insist(ctx, rec, m.release) {
		return
	}
	if m.rest(ctx, inst) {
		return
	}
	if rec = m.record(inst); !m.insist(ctx, rec, m.forgetRecord) {
		return
	}
	m.forget(inst)
	m.log(rec).Debug("sandbox is gone")
}

// rest ends the teardown of a sandbox that failed or is paused: its record stays,
// which may be for long, without the index. It reports whether it was one.
func (m *Manager) rest(ctx context.Context, inst *instance) bool {
	if inst.takeTurn(ctx) != nil {
		return true // the node stops
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if rec.State == journal.Terminating {
		return false
	}
	m.dropOldImages(rec)
	index := rec.NetIndex
	rec.NetIndex = 0
	err := m.cfg.Journal.Put(ctx, rec)
	m.mu.Lock()
	defer m.mu.Unlock()
	inst.disposing = false // its Delete starts another teardown
	close(inst.rested)
	inst.rested = nil
	if err == nil { // else a restart would find two with one index
		inst.rec = rec
		m.indexes.release(index, time.Now())
	}
	return true
}

// insist repeats f until it succeeds; false means that the node stopped first.
func (m *Manager) insist(ctx context.Context, rec journal.Record, f func(context.Context, journal.Record) error) bool {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := f(ctx, rec)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		m.cfg.Metrics.teardownRetries.Inc()
		m.log(rec).Warn("teardown failed and will be tried again", "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

// forgetRecord ends the record, which is the last of a sandbox, behind its images.
func (m *Manager) forgetRecord(ctx context.Context, rec journal.Record) error {
	if err := m.removeImages(ctx, rec.ID); err != nil {
		return err
	}
	return m.cfg.Journal.Delete(ctx, rec.ID)
}

func (m *Manager) release(ctx context.Context, rec journal.Record) error {
	return m.releaseAll(ctx, m.cfg.Network.Slot(rec.ID, rec.NetIndex))
}

// releaseAll frees everything that bears the sandbox's id, whatever of it is
// there: processes before what they use, the address last.
func (m *Manager) releaseAll(ctx context.Context, slot netns.Slot) error {
	err := m.releaseInTurn(ctx, slot.ID,
		step{"stop", func(ctx context.Context) error { return m.stop(ctx, slot.ID) }},
	)
	if err == nil { // takes as long as what was written has to be committed, and holds nobody else up
		err = releaseSteps(ctx, slot.ID, step{"volumes", func(ctx context.Context) error { return m.unmountAll(ctx, slot.ID) }})
	}
	if err != nil {
		return err
	}
	return m.releaseInTurn(ctx, slot.ID,
		step{"cgroup", func(ctx context.Context) error { return m.cfg.Groups.Remove(ctx, slot.ID) }},
		step{"remains", func(context.Context) error { return m.cfg.Runtime.RemoveRemains(slot.ID) }}, // nothing runs any more
		step{"dirs", func(context.Context) error { return m.removeDirs(slot.ID) }},
		step{"netns", func(ctx context.Context) error { return m.removeNetwork(ctx, slot) }},
	)
}

// stop ends the sandbox's processes, which wait no longer for a CPU than they must. While
// they can't be ended, for want of containerd for example, all others come first.
func (m *Manager) stop(ctx context.Context, id sandbox.ID) error {
	if err := m.cfg.Groups.Hurry(id); err != nil {
		m.cfg.Log.Warn("a sandbox ends with the CPU share that it had", "sandbox", id, "error", err)
	}
	err := m.cfg.Runtime.Remove(ctx, id)
	if err != nil {
		err = errors.Join(err, m.cfg.Groups.Calm(id))
	}
	return err
}

// releaseInTurn takes steps of a teardown that are quick, or fail.
func (m *Manager) releaseInTurn(ctx context.Context, id sandbox.ID, steps ...step) error {
	select {
	case m.releases <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.releases }()
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	return releaseSteps(ctx, id, steps...)
}

func releaseSteps(ctx context.Context, id sandbox.ID, steps ...step) error {
	for _, s := range steps {
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("teardown of %s: %s: %w", id, s.name, err)
		}
		if err := failpoint.Hit("delete.after-" + s.name); err != nil {
			return err
		}
	}
	return nil
}

// removeDirs removes the sandbox's directories. Of the slot's each thing goes by itself, so that
// nothing that somebody mounted there is ever walked into: also what a noded of another version
// has put there, for nobody inside can.
func (m *Manager) removeDirs(id sandbox.ID) error {
	slot := m.slotDir(id)
	entries, err := os.ReadDir(slot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var paths []string
	for _, e := range entries {
		paths = append(paths, filepath.Join(slot, e.Name()))
	}
	for _, path := range append(paths, slot) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.RemoveAll(m.overlayDir(id))
}
