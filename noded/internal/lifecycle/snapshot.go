package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/archive"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/snapshots"
)

// A snapshot needs no record in the journal: its directory is its own. It is a draft
// until it is renamed, and a draft is nobody's when this process has died. Who keeps
// snapshots apart, and decides about their end, is the API: see [Manager.DeleteSnapshot].

// Snapshot keeps what a claimed sandbox has written to its root filesystem, under a name
// that is the caller's. A sandbox that runs goes on, with all its connections; one that is
// paused is not touched. The same call again answers the same snapshot. bytes is what it
// takes on the disk.
func (m *Manager) Snapshot(ctx context.Context, id sandbox.ID, gen sandbox.Generation, name string) (bytes int64, err error) {
	inst := m.find(id)
	if inst == nil {
		return 0, notFound(id)
	}
	if err := inst.takeTurn(ctx); err != nil {
		return 0, busy(id, err)
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if err := m.maySnapshot(rec, gen); err != nil {
		return 0, err
	}
	dir, manifest, err := m.cfg.Snapshots.Open(name)
	if err == nil && manifest.Sandbox == id {
		return snapshots.Bytes(dir)
	}
	if !errors.Is(err, snapshots.ErrNone) {
		return 0, errdefs.New(errdefs.Conflict, "snapshot %.40s can't be made", name).WithCause(err)
	}
	if bytes, err = m.keep(ctx, inst, rec, name); err != nil {
		m.log(rec).Warn("a snapshot failed", "snapshot", name, "error", err)
		return 0, saveError(err, errdefs.New(errdefs.Unavailable, "sandbox %s could not be saved", id))
	}
	m.log(rec).Info("kept a snapshot", "snapshot", name, "bytes", bytes)
	m.imagesChanged()
	return bytes, nil
}

func (m *Manager) maySnapshot(rec journal.Record, gen sandbox.Generation) error {
	if rec.State != journal.Paused {
		if err := usable(rec); err != nil {
			return err
		}
	}
	if err := checkGeneration(rec, gen); err != nil {
		return err
	}
	if rec.Spec.RuntimeClass != sandbox.GVisor {
		return errdefs.New(errdefs.Unprocessable, "sandboxes of runtime class %q have no snapshots", rec.Spec.RuntimeClass)
	}
	return m.cfg.Disk.Room()
}

// keep takes the steps of a snapshot. The caller has the turn; a Delete interrupts it.
func (m *Manager) keep(ctx context.Context, inst *instance, rec journal.Record, name string) (bytes int64, err error) {
	ctx, cancel := m.interruptible(ctx, inst, imageTimeout)
	defer cancel()
	draft, err := m.cfg.Snapshots.Begin(name)
	if err != nil {
		return 0, err
	}
	defer func() {
		if uerr := m.cfg.Snapshots.Abort(name); uerr != nil {
			m.log(rec).Warn("removing what is left of a snapshot", "snapshot", name, "error", uerr) // the sweep does
		}
	}()
	err = m.runSteps(ctx, "snapshot", []step{
		{"files", func(ctx context.Context) error { return m.saveFiles(ctx, rec, draft) }},
		{"measure", func(context.Context) (err error) { bytes, err = snapshots.Bytes(draft); return err }},
		{"commit", func(context.Context) error { return m.cfg.Snapshots.Commit(name) }},
	})
	return bytes, because(ctx, err)
}

// saveFiles makes dir, which is not there yet, an image of the sandbox's files, durably:
// of what runs by its kernel, of what is paused by another name for the same files.
func (m *Manager) saveFiles(ctx context.Context, rec journal.Record, dir string) error {
	manifest := snapshots.Manifest{
		Sandbox: rec.ID, Generation: rec.Generation, Team: rec.Claim.Team, Template: rec.PoolKey, Created: time.Now().UTC(),
	}
	if rec.State == journal.Paused {
		if err := m.bringImage(ctx, rec); err != nil {
			return err
		}
		saved, err := m.manifest(rec, m.imageDir(rec))
		if err != nil {
			return err
		}
		manifest.Origin = saved.Origin
		return snapshots.Clone(m.imageDir(rec), dir, manifest, snapshots.FilesPart)
	}
	var err error
	if manifest.Origin, err = m.cfg.Runtime.Origin(ctx, rec.ID); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := snapshots.Write(dir, manifest); err != nil {
		return err
	}
	return m.cfg.Runtime.SaveFiles(ctx, rec.ID, dir)
}

// holdWait is how long the end of a snapshot waits for whoever stores it, who is told.
const holdWait = 2 * time.Second

// DeleteSnapshot removes a snapshot from this node for good; one that is not there is removed
// already. When it has returned nil nothing stores it any more, either. Sandboxes that began
// with it keep what they need.
func (m *Manager) DeleteSnapshot(ctx context.Context, name string) error {
	err := m.cfg.Snapshots.Delete(name)
	if errors.Is(err, snapshots.ErrBusy) {
		m.imagesChanged()
		select {
		case <-m.cfg.Snapshots.Released(name):
		case <-ctx.Done():
		case <-time.After(holdWait):
		}
		err = m.cfg.Snapshots.Delete(name)
	}
	switch {
	case errors.Is(err, snapshots.ErrName):
		return errdefs.New(errdefs.InvalidArgument, "%v", err)
	case errors.Is(err, snapshots.ErrBusy):
		return errdefs.New(errdefs.Unavailable, "%v", err).WithRetryAfter(time.Second)
	}
	return err
}

// A source is a team's snapshot as a sandbox begins with it.
type source struct {
	manifest snapshots.Manifest
	dir      string      // where it is; empty: in the object store alone, as ref
	ref      archive.Ref // see dir
}

// findSnapshot finds a team's snapshot, here or in the object store. Another team's does not
// exist for it (G11).
func (m *Manager) findSnapshot(ctx context.Context, name, team string) (source, error) {
	dir, manifest, err := m.cfg.Snapshots.Open(name)
	if errors.Is(err, snapshots.ErrNone) && m.cfg.Archive != nil {
		return m.findStored(ctx, archive.Ref{Team: team, Snapshot: name})
	}
	if errors.Is(err, snapshots.ErrNone) || errors.Is(err, snapshots.ErrName) || err == nil && manifest.Team != team {
		return source{}, errdefs.New(errdefs.NotFound, "snapshot not found").WithCause(err)
	}
	return source{manifest: manifest, dir: dir}, err
}

// findStored asks the object store, where a manifest that opens is the team's.
func (m *Manager) findStored(ctx context.Context, ref archive.Ref) (source, error) {
	b, err := m.cfg.Archive.FetchFile(ctx, ref, snapshots.FileName, snapshots.MaxFileBytes)
	switch {
	case errors.Is(err, archive.ErrNotFound):
		return source{}, errdefs.New(errdefs.NotFound, "snapshot not found").WithCause(err)
	case err != nil:
		return source{}, snapshotError(err)
	}
	manifest, err := snapshots.Parse(b)
	return source{manifest: manifest, ref: ref}, err
}

// snapshotError is what a caller may know of a fetch that failed.
func snapshotError(err error) error {
	switch {
	case errdefs.Is(err, errdefs.Exhausted):
		return err // there is no room for it here
	case errors.Is(err, archive.ErrDamaged), errors.Is(err, archive.ErrNotFound):
		return errdefs.New(errdefs.Conflict, "the stored snapshot can't be used").WithCause(err)
	}
	return errdefs.New(errdefs.Unavailable, "the snapshot can't be fetched at the moment").WithRetryAfter(fetchRetryAfter).WithCause(err)
}

// begin makes dst, which is not there, an image of manifest's with the snapshot's files.
func (m *Manager) begin(ctx context.Context, from source, dst string, manifest snapshots.Manifest) error {
	if from.dir != "" {
		return snapshots.Clone(from.dir, dst, manifest, snapshots.FilesPart)
	}
	if _, err := m.cfg.Archive.Fetch(ctx, from.ref, dst); err != nil {
		return snapshotError(because(ctx, err))
	}
	saved, err := m.cfg.Runtime.Saved(dst)
	if err != nil || !saved {
		return errors.Join(errors.New("what was stored is not a whole image"), err)
	}
	return snapshots.Write(dst, manifest)
}

// beginWith makes a sandbox's first image the files of a snapshot. They are the sandbox's
// own from here on.
func (m *Manager) beginWith(ctx context.Context, rec journal.Record, name, team string) error {
	from, err := m.findSnapshot(ctx, name, team)
	if err != nil {
		return err
	}
	manifest := from.manifest
	manifest.Sandbox, manifest.Generation, manifest.Template = rec.ID, rec.Generation, rec.PoolKey
	if err := os.MkdirAll(m.imagesDir(rec.ID), 0o700); err != nil {
		return err
	}
	return m.begin(ctx, from, m.imageDir(rec), manifest)
}

// RestoreSnapshot has a paused sandbox's next life start from a snapshot's files; its own,
// and its processes and memory, are dropped. It is another generation of the sandbox,
// which is as paused as the one before, and its journal's record is what decides between
// the two.
func (m *Manager) RestoreSnapshot(ctx context.Context, id sandbox.ID, gen sandbox.Generation, name string) (Sandbox, error) {
	inst := m.find(id)
	if inst == nil {
		return Sandbox{}, notFound(id)
	}
	if err := m.takeRestingTurn(ctx, inst); err != nil {
		return Sandbox{}, busy(id, err)
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if rec.State != journal.Paused {
		return Sandbox{}, errdefs.New(errdefs.Conflict, "sandbox %s is not paused", id)
	}
	if err := checkGeneration(rec, gen); err != nil {
		return Sandbox{}, err
	}
	if err := m.restoreFiles(ctx, inst, rec, name); err != nil {
		return Sandbox{}, startError(err)
	}
	m.log(m.record(inst)).Info("sandbox is what a snapshot was", "snapshot", name)
	return m.Get(id)
}

func (m *Manager) restoreFiles(ctx context.Context, inst *instance, rec journal.Record, name string) error {
	ctx, cancel := m.interruptible(ctx, inst, imageTimeout)
	defer cancel()
	from, err := m.findSnapshot(ctx, name, rec.Claim.Team)
	if err != nil {
		return err
	}
	manifest := from.manifest
	if manifest.Kept, err = m.keptOf(ctx, rec); err != nil { // its owner's contexts are where they were
		return err
	}
	next := rec
	next.Generation, next.Image, next.Spec.Image = rec.Generation+1, rec.Generation+1, manifest.Image
	manifest.Sandbox, manifest.Generation, manifest.Template = rec.ID, next.Generation, rec.PoolKey
	return m.runSteps(ctx, "restore", []step{
		{"files", func(ctx context.Context) error {
			if err := os.RemoveAll(m.imageDir(next)); err != nil { // of an attempt that was cut off
				return err
			}
			if err := os.MkdirAll(m.imagesDir(rec.ID), 0o700); err != nil { // its own image may be dropped
				return err
			}
			if err := m.begin(ctx, from, m.imageDir(next), manifest); err != nil {
				return err
			}
			return errors.Join(syncDir(m.imagesDir(rec.ID)), syncDir(m.cfg.ImageDir))
		}},
		{"commit", func(ctx context.Context) error { return m.commitRestored(ctx, inst, rec, next) }},
		{"drop", func(context.Context) error {
			if err := os.RemoveAll(m.imageDir(rec)); err != nil { // the next pause or resume tries again
				m.log(next).Warn("removing what a paused sandbox was", "error", err)
			}
			return nil
		}},
	})
}

// commitRestored makes a paused sandbox one that starts from a snapshot. A write that fails
// may have been made: then it is what it was, durably, or if that can't be written either,
// both images stay, for one of them is the sandbox.
func (m *Manager) commitRestored(ctx context.Context, inst *instance, rec, next journal.Record) error {
	err := m.commit(ctx, inst, next)
	if err == nil {
		return nil
	}
	if uerr := m.cfg.Journal.Put(context.WithoutCancel(ctx), rec); uerr != nil {
		m.log(rec).Error("it is not known whether a sandbox is what a snapshot was", "error", uerr)
	} else if uerr := os.RemoveAll(m.imageDir(next)); uerr != nil {
		m.log(rec).Warn("removing what a paused sandbox did not become", "error", uerr)
	}
	return err
}

// keptContexts asks procd for what a later procd shall have again. It is no reason not to
// pause that it does not say.
func (m *Manager) keptContexts(ctx context.Context, inst *instance) []procapi.KeptContext {
	ch, err := m.channelOf(inst)
	var kept []procapi.KeptContext
	if err == nil {
		kept, err = ch.Kept(ctx)
	}
	if err != nil {
		m.log(m.record(inst)).Warn("the sandbox's contexts will not be there without its memory", "error", err)
		return nil
	}
	return kept
}

// sweepSnapshots removes what is left of snapshots that were being made or removed.
func (m *Manager) sweepSnapshots() error {
	if err := m.cfg.Snapshots.Sweep(); err != nil {
		return fmt.Errorf("sweeping snapshots: %w", err)
	}
	return nil
}
