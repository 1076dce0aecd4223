package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
)

// notSaved is what became of a sandbox that ended while it was being saved.
const notSaved = "ended while it was being paused"

// Pause saves a sandbox with its processes, memory and files and frees everything
// else that it holds. It returns when the image is durable and its volumes are
// committed; a caller that gives up before stops nothing. A sandbox that is paused
// already stays so. If it fails the sandbox goes on, unless the attempt has ended it:
// then it has failed. If the volumes' last commit alone fails it is paused: the next
// who asks for that has it tried again.
func (m *Manager) Pause(ctx context.Context, id sandbox.ID, gen sandbox.Generation) (Sandbox, error) {
	return m.pause(ctx, id, gen, true)
}

// PauseFiles is Pause without processes and memory: the sandbox's next life starts from
// its files, with the same contexts.
func (m *Manager) PauseFiles(ctx context.Context, id sandbox.ID, gen sandbox.Generation) (Sandbox, error) {
	return m.pause(ctx, id, gen, false)
}

func (m *Manager) pause(ctx context.Context, id sandbox.ID, gen sandbox.Generation, memory bool) (Sandbox, error) {
	inst := m.find(id)
	if inst == nil {
		return Sandbox{}, notFound(id)
	}
	if err := inst.takeTurn(ctx); err != nil {
		return Sandbox{}, busy(id, err)
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if rec.State == journal.Paused {
		if err := m.commitVolumes(ctx, rec); err != nil {
			return Sandbox{}, err
		}
		return m.Get(id)
	}
	if err := usable(rec); err != nil {
		return Sandbox{}, err
	}
	if err := checkGeneration(rec, gen); err != nil {
		return Sandbox{}, err
	}
	if err := m.cfg.Disk.Room(); err != nil {
		return Sandbox{}, err
	}
	if err := m.save(ctx, inst, rec, memory); err != nil {
		return Sandbox{}, saveError(err, errdefs.New(errdefs.Unavailable, "sandbox %s could not be paused", id))
	}
	return m.Get(id)
}

// saveError keeps why there is no room or no way, or whom to wait for, which whoever asked
// for a sandbox to be saved shall know, and makes another of the rest.
func saveError(err error, rest *errdefs.Error) error {
	if errdefs.Is(err, errdefs.Exhausted) || errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.Unavailable) {
		return err
	}
	return rest.WithCause(err)
}

// save takes the steps of a pause. The caller has the turn; a Delete interrupts it.
func (m *Manager) save(ctx context.Context, inst *instance, rec journal.Record, memory bool) error {
	ctx, cancel := m.interruptible(context.WithoutCancel(ctx), inst, imageTimeout)
	defer cancel()
	begin := time.Now()
	checkpoint := m.cfg.Runtime.Checkpoint
	if !memory {
		checkpoint = m.cfg.Runtime.CheckpointFiles
	}
	rec.Image, rec.Frozen = rec.Generation, false
	err := m.runSteps(ctx, "pause", []step{
		{"volumes", func(ctx context.Context) error { return m.commitVolumes(ctx, rec) }}, // while it can still go on
		{"intent", func(ctx context.Context) error { return m.intendPause(ctx, inst, rec) }},
		{"manifest", func(ctx context.Context) error { return m.describe(ctx, inst, rec, memory) }},
		{"quiesce", func(ctx context.Context) error { return m.quiesce(ctx, inst) }},
		{"checkpoint", func(ctx context.Context) error { return checkpoint(ctx, rec.ID, m.imageDir(rec)) }},
	})
	if err != nil {
		err = because(ctx, err)
		m.log(rec).Warn("a pause failed", "error", err)
		if !m.undoPause(ctx, inst) {
			return err
		}
	}
	err = m.commitVolumes(ctx, rec)
	m.setPaused(ctx, inst)
	m.cfg.Metrics.pauseSeconds.Observe(time.Since(begin).Seconds())
	return err
}

// undoPause lets a sandbox go on whose pause failed; true means that it was saved all
// the same. What can't be found out now is found out in the background: until it is,
// the image stays, for it may be all that is left.
func (m *Manager) undoPause(ctx context.Context, inst *instance) (saved bool) {
	rec := m.record(inst)
	if rec.State != journal.Pausing { // nothing has been done yet
		m.goOn(ctx, inst)
		return false
	}
	err := m.cfg.Runtime.Thaw(ctx, rec.ID)
	if err == nil {
		saved, err = m.cfg.Runtime.Saved(m.imageDir(rec))
	}
	switch {
	case err != nil:
		m.log(rec).Warn("what became of a pause is not known yet", "error", err)
		m.change(inst, func() { inst.unseen = true })
		m.background(func(ctx context.Context) { m.adoptPausing(ctx, inst) })
	case !saved:
		m.goOn(ctx, inst)
	}
	return err == nil && saved
}

// interruptible is the context of steps that a Delete shall not wait for.
func (m *Manager) interruptible(ctx context.Context, inst *instance, timeout time.Duration) (context.Context, func()) {
	ctx, done := context.WithTimeout(ctx, timeout)
	ctx, cancel := context.WithCancelCause(ctx)
	set := func(f context.CancelCauseFunc) {
		m.mu.Lock()
		defer m.mu.Unlock()
		inst.cancel = f
	}
	set(cancel)
	return ctx, func() {
		set(nil)
		cancel(nil)
		done()
	}
}

// intendPause makes room for the image, durably. Until that is complete the sandbox is not
// paused, whoever dies.
func (m *Manager) intendPause(ctx context.Context, inst *instance, rec journal.Record) error {
	if err := m.removeImages(ctx, rec.ID); err != nil {
		return err
	}
	rec.State = journal.Pausing
	if err := m.cfg.Journal.Put(ctx, rec); err != nil {
		return err
	}
	m.change(inst, func() { inst.rec = rec })
	if err := os.MkdirAll(m.imageDir(rec), 0o700); err != nil {
		return err
	}
	return errors.Join(syncDir(m.imagesDir(rec.ID)), syncDir(m.cfg.ImageDir))
}

// syncDir makes the names in a directory durable: an image is no use that nothing
// leads to when the power comes back.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// quiesce has procd hang up. A sandbox that does not is saved all the same: a
// connection that nobody ends is its own loss.
func (m *Manager) quiesce(ctx context.Context, inst *instance) error {
	ch, err := m.channelOf(inst)
	if err != nil {
		return err
	}
	m.change(inst, func() { inst.channel, inst.warmKept = nil, false }) // who follows the warm processes ends
	if err := ch.HangUp(ctx); err != nil {
		m.log(m.record(inst)).Warn("procd did not hang up", "error", err)
	}
	return nil
}

// setPaused takes note that the image is complete. If the journal does not take the
// record, the next noded finds the image.
func (m *Manager) setPaused(ctx context.Context, inst *instance) {
	rec := m.record(inst)
	rec.State = journal.Paused
	m.putAnyway(ctx, rec)
	m.log(rec).Info("sandbox is paused")
	m.dispose(inst, rec)
}

// goOn takes a sandbox up again that was not saved. Its procd dials if it lives; if
// it does not, its exit is on the way.
func (m *Manager) goOn(ctx context.Context, inst *instance) {
	rec := m.record(inst)
	if err := m.removeImages(ctx, rec.ID); err != nil {
		m.log(rec).Warn("removing a broken image", "error", err) // the next pause tries again
	}
	if rec.State != journal.Pausing {
		return // nothing has been done yet
	}
	rec.State, rec.Image = journal.Claimed, 0
	m.putAnyway(ctx, rec)
	_, err := m.channelOf(inst)
	m.change(inst, func() { inst.rec, inst.unseen = rec, err != nil })
	if err != nil {
		m.background(func(ctx context.Context) { m.adoptLive(ctx, inst) })
	}
}

// adoptPausing finds out what became of a pause that was cut off: the shim has completed
// the image or will, or the sandbox goes on, or it has ended. It thaws the sandbox
// without the turn, which a Delete shall not wait for.
func (m *Manager) adoptPausing(ctx context.Context, inst *instance) {
	life := m.lifeOf(inst)
	tick := time.NewTicker(adoptRetry)
	defer tick.Stop()
	for begin := time.Now(); m.stillPausing(ctx, inst); {
		_, err := m.channelOf(inst)
		if err != nil {
			err = m.listen(inst) // what fails with that proves nothing
		}
		if err := errors.Join(err, m.cfg.Runtime.Thaw(ctx, inst.id)); err != nil && ctx.Err() == nil {
			m.log(m.record(inst)).Warn("what became of a pause is not known yet", "error", err)
		}
		if time.Since(begin) > m.adoptGrace && !m.listed(ctx, inst.id) {
			m.end(ctx, inst, life, notSaved)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// listed reports whether the runtime may still have the sandbox.
func (m *Manager) listed(ctx context.Context, id sandbox.ID) bool {
	all, err := m.cfg.Runtime.List(ctx)
	return err != nil || slices.ContainsFunc(all, func(s Status) bool { return s.ID == id && !s.Ended && !s.Taskless })
}

// stillPausing looks once, with the turn.
func (m *Manager) stillPausing(ctx context.Context, inst *instance) bool {
	if inst.takeTurn(ctx) != nil {
		return false // the node stops
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if rec.State != journal.Pausing {
		return false // it has ended, or was deleted
	}
	saved, err := m.cfg.Runtime.Saved(m.imageDir(rec))
	switch {
	case err != nil:
		m.log(rec).Warn("looking for an image", "error", err)
	case saved:
		m.setPaused(ctx, inst)
		return false
	case m.connected(inst):
		m.goOn(ctx, inst)
		m.background(func(ctx context.Context) { _ = m.readopt(ctx, inst) })
		return false
	}
	return true
}

// endPausing is the end of a sandbox that an earlier noded was saving.
func (m *Manager) endPausing(ctx context.Context, inst *instance, rec journal.Record) {
	if saved, err := m.cfg.Runtime.Saved(m.imageDir(rec)); err != nil || saved {
		if err == nil {
			m.setPaused(ctx, inst)
		}
		return // adoptPausing looks again
	}
	m.fail(ctx, inst, rec, notSaved)
}

// imageDir is where the instance is or was saved that rec names.
func (m *Manager) imageDir(rec journal.Record) string {
	return filepath.Join(m.imagesDir(rec.ID), fmt.Sprint(rec.Image))
}

func (m *Manager) imagesDir(id sandbox.ID) string { return filepath.Join(m.cfg.ImageDir, string(id)) }

// dropOldImages removes what is no image of the sandbox's by its record: of a life that
// has ended in the next one, in a failure or in another image, when whoever should have
// removed it died first. What can't be removed waits for the next occasion. The caller
// has the turn.
func (m *Manager) dropOldImages(rec journal.Record) {
	images, err := os.ReadDir(m.imagesDir(rec.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	kept := 0
	for _, image := range images {
		if rec.Image != 0 && rec.State != journal.Failed && image.Name() == fmt.Sprint(rec.Image) {
			kept++
			continue
		}
		err = errors.Join(err, os.RemoveAll(filepath.Join(m.imagesDir(rec.ID), image.Name())))
	}
	if err == nil && kept == 0 {
		err = os.Remove(m.imagesDir(rec.ID))
	}
	if err != nil {
		m.log(rec).Warn("removing old images", "error", err)
	}
}

func (m *Manager) removeImages(_ context.Context, id sandbox.ID) error {
	return os.RemoveAll(m.imagesDir(id))
}

func busy(id sandbox.ID, err error) error {
	return errdefs.New(errdefs.Unavailable, "sandbox %s is busy", id).WithRetryAfter(time.Second).WithCause(err)
}
