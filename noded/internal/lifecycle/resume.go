package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/snapshots"
)

// ResumeRequest asks for a sandbox that runs.
type ResumeRequest struct {
	ID         sandbox.ID
	Generation sandbox.Generation // 0: any
	After      sandbox.Generation // the new instance's is a later one
	Mounts     []journal.Mount    // all that it has, at the epochs that they have by now
	Stored     *Stored            // nil: this node has the sandbox
}

// Resume starts a paused sandbox from its image, as the next generation, and one later than
// after. It returns when procd has answered and the new state is durable. What runs already
// goes on, with its volumes at the epochs that they have by now. If it fails the sandbox
// stays paused.
//
// With Stored, its state is in the object store, and this node need never have had it. An
// older instance that this node still has is ended first: it is not the sandbox any more.
func (m *Manager) Resume(ctx context.Context, req ResumeRequest) (Sandbox, error) {
	if err := errors.Join(validateMounts(req.Mounts), m.checkVolumes(req.Mounts)); err != nil {
		return Sandbox{}, err
	}
	if req.Stored != nil {
		req.After = max(req.After, req.Stored.After)
	}
	// The attempt of a sandbox which ends as soon as it is taken up decides nothing: whoever
	// killed it may be gone, or it was killed in its image.
	for {
		sb, err := m.tryResume(ctx, req)
		if !errors.Is(err, errStillborn) {
			return sb, err
		}
	}
}

func (m *Manager) tryResume(ctx context.Context, req ResumeRequest) (Sandbox, error) {
	inst := m.find(req.ID)
	switch {
	case inst == nil && req.Stored == nil:
		return Sandbox{}, notFound(req.ID)
	case inst == nil:
		if err := m.takeIn(ctx, *req.Stored); err != nil {
			return Sandbox{}, err
		}
		if inst = m.find(req.ID); inst == nil {
			return Sandbox{}, notFound(req.ID)
		}
	case req.Stored != nil && m.record(inst).State == journal.Terminating: // or it is being taken in
		return Sandbox{}, busy(req.ID, errors.New("an outdated instance of it ends"))
	}
	return m.resume(ctx, inst, req)
}

func (m *Manager) resume(ctx context.Context, inst *instance, req ResumeRequest) (Sandbox, error) {
	if err := m.takeRestingTurn(ctx, inst); err != nil {
		return Sandbox{}, busy(inst.id, err)
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if req.Stored.outdated(rec) {
		return Sandbox{}, m.endOutdated(ctx, inst, rec)
	}
	if rec.State != journal.Paused {
		if err := usable(rec); err != nil {
			return Sandbox{}, err
		}
		if err := m.renewMounts(ctx, inst, rec, req.Mounts); err != nil {
			return Sandbox{}, err
		}
		return m.Get(inst.id)
	}
	if err := checkGeneration(rec, req.Generation); err != nil {
		return Sandbox{}, err
	}
	rec, err := m.catchUp(ctx, inst, rec, req)
	if err == nil {
		err = m.wake(ctx, inst, rec)
	}
	if err != nil {
		return Sandbox{}, startError(err)
	}
	return m.Get(inst.id)
}

// catchUp makes a paused sandbox's generation and its mounts the ones that others know by
// now, durably and before anything is tried that may fail: whoever says the generation next
// means this instance, and the volumes' epochs fence whoever had them before.
func (m *Manager) catchUp(ctx context.Context, inst *instance, rec journal.Record, req ResumeRequest) (journal.Record, error) {
	if err := notEarlier(mountsOf(rec), req.Mounts); err != nil {
		return rec, err
	}
	if rec.Generation >= req.After && len(req.Mounts) == 0 && len(mountsOf(rec)) == 0 {
		return rec, nil
	}
	rec = withMounts(rec, req.Mounts)
	rec.Generation = max(rec.Generation, req.After)
	return rec, m.commit(ctx, inst, rec)
}

// takeRestingTurn takes the turn when no teardown is at work.
func (m *Manager) takeRestingTurn(ctx context.Context, inst *instance) error {
	for {
		m.mu.Lock()
		rested := inst.rested
		m.mu.Unlock()
		if rested != nil {
			select {
			case <-rested:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := inst.takeTurn(ctx); err != nil {
			return err
		}
		m.mu.Lock()
		resting := !inst.disposing
		m.mu.Unlock()
		if resting {
			return nil
		}
		inst.endTurn()
	}
}

// wake takes the steps of a resume. The caller has the turn; a Delete interrupts it.
func (m *Manager) wake(ctx context.Context, inst *instance, rec journal.Record) error {
	m.mu.Lock()
	inst.life++ // before anything of it can be cancelled
	m.mu.Unlock()
	ctx, cancel := m.interruptible(ctx, inst, imageTimeout)
	defer cancel()
	end, err := m.awaitCold(ctx, rec.Claim.Team)
	if err != nil {
		return err
	}
	defer end()
	begin := time.Now()
	if err := m.bringImage(ctx, rec); err != nil {
		return err
	}
	rec, err = m.asSaved(rec)
	if err != nil {
		return err
	}
	image, err := m.image(ctx, rec.Spec)
	if err != nil {
		return err
	}
	from, err := m.startDir(inst, rec)
	if err != nil {
		return err
	}
	if inst.kept, err = m.checkImage(ctx, rec, from, image); err != nil {
		return err
	}
	defer func() { inst.kept = nil }()
	if rec.NetIndex, err = m.indexAgain(rec); err != nil {
		return err
	}
	rec.State, rec.Generation = journal.Resuming, rec.Generation+1
	rec.IP = m.cfg.Network.Slot(rec.ID, rec.NetIndex).IP
	if err := m.runSteps(ctx, "resume", m.resumeSteps(inst, rec, from, image)); err != nil {
		err = stillborn(inst, from, because(ctx, err))
		m.log(rec).Warn("a resume failed", "error", err)
		m.backToSleep(ctx, inst, rec)
		return fmt.Errorf("resuming %s: %w", rec.ID, err)
	}
	inst.stillbirths = 0
	m.cfg.Metrics.resumeSeconds.Observe(time.Since(begin).Seconds())
	m.log(rec).Info("sandbox is resumed")
	m.keepWarm(inst)
	if err := m.removeImages(ctx, rec.ID); err != nil {
		m.log(rec).Warn("removing the image of what runs", "error", err) // the next pause tries again
	}
	return nil
}

// maxStillbirths is how often a sandbox may end when it is taken up before its memory is
// left alone for its files.
const maxStillbirths = 2

// errStillborn: a sandbox has ended by itself before its procd said anything.
var errStillborn = errors.New("it ended as soon as it was taken up")

// stillborn counts such an end, if err tells of one, of a sandbox that was taken up with its
// memory. The caller has the turn.
func stillborn(inst *instance, from string, err error) error {
	if !errors.Is(err, errExited) || inst.stillbirths >= maxStillbirths {
		return err
	}
	if _, none := os.Stat(filepath.Join(from, snapshots.MemoryPart)); none != nil {
		return err
	}
	inst.stillbirths++
	return fmt.Errorf("%w (%d): %w", errStillborn, inst.stillbirths, err)
}

// startDir is the directory of the image that a paused sandbox starts from. One that ended
// whenever it was taken up begins with its files: what killed it is in the image, such as a
// signal that its first process had not seen when it was frozen, and would do so for ever.
// Until it runs the image is what it was.
func (m *Manager) startDir(inst *instance, rec journal.Record) (string, error) {
	dir := m.imageDir(rec)
	if inst.stillbirths < maxStillbirths {
		return dir, nil
	}
	manifest, err := m.manifest(rec, dir)
	if errors.Is(err, snapshots.ErrNone) || err == nil && !manifest.Memory {
		return dir, nil
	}
	if err != nil {
		return "", err
	}
	manifest.Memory = false
	alone := dir + ".files"
	if err := os.RemoveAll(alone); err != nil { // of an attempt before
		return "", err
	}
	m.log(rec).Error("a sandbox ended whenever it was taken up: it goes on without its processes and memory")
	return alone, snapshots.Clone(dir, alone, manifest, snapshots.FilesPart)
}

// resumeSteps are those of a creation, from an image. The image stays until the
// sandbox's record says that it runs.
func (m *Manager) resumeSteps(inst *instance, rec journal.Record, from, image string) []step {
	c := m.container(rec, image)
	c.Checkpoint = from
	usual := limits(rec.Spec, rec.Claim, false)
	hasty := usual
	hasty.Hasty = true
	var former []journal.Mount // that stay
	return []step{
		{"intent", func(ctx context.Context) error { return m.commit(ctx, inst, rec) }},
		{"dirs", func(context.Context) error { return m.makeDirs(rec) }},
		{"volumes", func(ctx context.Context) error { return errors.Join(m.standIn(rec), m.attachAll(ctx, rec)) }}, // before anybody inside looks
		{"netns", func(ctx context.Context) error { return m.addNetwork(ctx, rec) }},
		{"cgroup", func(context.Context) error { return m.cfg.Groups.Create(rec.ID, hasty) }},
		{"listen", func(context.Context) error { return m.listen(inst) }},
		{"start", func(ctx context.Context) error { return m.cfg.Runtime.Start(ctx, c) }},
		{"handshake", func(ctx context.Context) error { return m.handshake(ctx, inst, nil) }},
		{"former", func(ctx context.Context) (err error) { former, err = m.forgetFormer(ctx, inst, rec); return err }},
		{"limits", func(context.Context) error { return m.cfg.Groups.Set(rec.ID, hasty, usual) }},
		{"events", func(ctx context.Context) error { return m.keepEvents(ctx, inst, rec) }},
		{"commit", func(ctx context.Context) error {
			awake, claim := rec, *rec.Claim
			claim.Former, awake.Claim = former, &claim
			awake.State, awake.Image, awake.Stored = journal.Claimed, 0, 0
			return m.commit(ctx, inst, awake)
		}},
	}
}

// commit makes rec the sandbox's record, durably first.
func (m *Manager) commit(ctx context.Context, inst *instance, rec journal.Record) error {
	if err := m.cfg.Journal.Put(ctx, rec); err != nil {
		return err
	}
	m.change(inst, func() { inst.rec = rec })
	return nil
}

// backToSleep undoes a resume: what was started is nobody's, the image is what the
// sandbox is. The generation that was begun is nobody's: see known.
func (m *Manager) backToSleep(ctx context.Context, inst *instance, rec journal.Record) {
	rec.Generation, rec.State = known(rec), journal.Paused
	m.putAnyway(ctx, rec)
	m.dispose(inst, rec)
}
