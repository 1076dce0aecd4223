package lifecycle

import (
	"context"
	"errors"
	"slices"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/volumeapi"
	"s0.run/noded/internal/journal"
)

// Writes reports whether a sandbox of this node has a volume for writing.
func (m *Manager) Writes(volume string) bool { return m.writerOf(volume) != nil }

// writerOf finds the one sandbox that has a volume for writing; nil: none, or it ends.
func (m *Manager) writerOf(volume string) *instance {
	for _, inst := range m.snapshot() {
		if rec := m.record(inst); rec.State != journal.Terminating && writes(rec, volume) {
			return inst
		}
	}
	return nil
}

func writes(rec journal.Record, volume string) bool {
	return slices.ContainsFunc(mountsOf(rec), func(mount journal.Mount) bool { return mount.Volume.ID == volume && !mount.ReadOnly })
}

// Still has something done while the sandbox that has a volume for writing stands still, for
// stillTime at most: do ends with its context. Where nothing of such a sandbox runs it is
// not done, and that is no error.
func (m *Manager) Still(ctx context.Context, volume string, do func(context.Context) error) error {
	inst := m.writerOf(volume)
	if inst == nil {
		return nil
	}
	if err := m.takeRestingTurn(ctx, inst); err != nil {
		return busy(inst.id, err)
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if !writes(rec, volume) || rec.State == journal.Paused || rec.State == journal.Failed {
		return nil
	}
	if err := usable(rec); err != nil {
		return err
	}
	if rec.Frozen {
		return busy(inst.id, errors.New("it stands still since nobody knows when"))
	}
	rec.Frozen = true // whoever dies, the next noded thaws it
	if err := m.commit(ctx, inst, rec); err != nil {
		return err
	}
	begin := time.Now()
	err := m.whileFrozen(ctx, inst, do)
	if errors.Is(err, errTooLong) {
		err = errdefs.WithCode(errdefs.Unavailable, volumeapi.CodeWritten, "volume %s is written to faster than it can be captured", volume).
			WithRetryAfter(time.Second).WithCause(err)
	}
	if thaw := m.thaw(ctx, inst, rec); thaw != nil {
		return busy(inst.id, errors.Join(err, thaw))
	}
	m.log(rec).Debug("sandbox stood still", "volume", volume, "took", time.Since(begin), "error", err)
	return err
}

var errTooLong = errors.New("a sandbox would stand still for too long")

// whileFrozen freezes a sandbox and does something. A Delete interrupts it.
func (m *Manager) whileFrozen(ctx context.Context, inst *instance, do func(context.Context) error) error {
	frozen, cancel := m.interruptible(ctx, inst, stillTime)
	defer cancel()
	err := m.cfg.Runtime.Freeze(frozen, inst.id)
	if err == nil {
		err = do(frozen)
	}
	if err != nil && ctx.Err() == nil && errors.Is(frozen.Err(), context.DeadlineExceeded) {
		return errors.Join(errTooLong, err)
	}
	return err
}

// thaw lets a sandbox go on whose record says that it may stand still, whoever has given up
// by now. What does not go on is thawed again until it does.
func (m *Manager) thaw(ctx context.Context, inst *instance, rec journal.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if err := m.cfg.Runtime.Thaw(ctx, inst.id); err != nil {
		m.log(rec).Warn("a sandbox could not be thawed yet", "error", err)
		m.change(inst, func() { inst.unseen = true })
		m.background(func(ctx context.Context) { m.adoptFrozen(ctx, inst) })
		return err
	}
	rec.Frozen = false
	m.putAnyway(ctx, rec)
	m.change(inst, func() { inst.rec = rec })
	return nil
}
