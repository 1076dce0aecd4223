package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/snapshots"
)

// describe makes the manifest of an image durable that a running sandbox is about to be
// saved into: an image that is complete has one.
func (m *Manager) describe(ctx context.Context, inst *instance, rec journal.Record, memory bool) error {
	manifest, err := m.manifestOf(ctx, inst, rec, memory)
	if err != nil {
		return err
	}
	return snapshots.Write(m.imageDir(rec), manifest)
}

// manifestOf is that of an image of a running sandbox as it is now.
func (m *Manager) manifestOf(ctx context.Context, inst *instance, rec journal.Record, memory bool) (snapshots.Manifest, error) {
	origin, err := m.cfg.Runtime.Origin(ctx, rec.ID)
	if err != nil {
		return snapshots.Manifest{}, err
	}
	return snapshots.Manifest{
		Sandbox: rec.ID, Generation: rec.Generation, Team: rec.Claim.Team, Template: rec.PoolKey,
		Memory: memory, Created: time.Now().UTC(), Origin: origin, Kept: m.keptContexts(ctx, inst),
	}, nil
}

// checkImage says why a paused sandbox can't start from an image of its, if it can't: before
// anything is started that would fail, or worse. Of an image that was made before there
// were manifests nothing is known but whose directory it is in; there the runtime refuses
// what it can't take up. kept are the contexts that its new procd shall have again.
func (m *Manager) checkImage(ctx context.Context, rec journal.Record, from, image string) (kept []procapi.KeptContext, err error) {
	manifest, err := m.manifest(rec, from)
	if errors.Is(err, snapshots.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	on, err := m.cfg.Runtime.Target(ctx, m.container(rec, image))
	if err != nil {
		return nil, err
	}
	if !manifest.Memory {
		return manifest.Kept, manifest.CheckFiles(on)
	}
	return nil, manifest.Check(on)
}

// asSaved has a paused sandbox's record name the container image that its files are changes
// of. What the template's reference means may be another by now, and on another node.
func (m *Manager) asSaved(rec journal.Record) (journal.Record, error) {
	manifest, err := m.manifest(rec, m.imageDir(rec))
	if errors.Is(err, snapshots.ErrNone) {
		return rec, nil
	}
	if err == nil {
		rec.Spec.Image = manifest.Image
	}
	return rec, err
}

// manifest reads that of an image of a sandbox's own, in dir.
func (m *Manager) manifest(rec journal.Record, dir string) (snapshots.Manifest, error) {
	manifest, err := snapshots.Read(dir)
	if err == nil && manifest.Team != rec.Claim.Team {
		return manifest, errdefs.New(errdefs.Internal, "the image of sandbox %s can't be used", rec.ID).WithCause(fmt.Errorf("it is team %.64q's", manifest.Team))
	}
	return manifest, err
}
