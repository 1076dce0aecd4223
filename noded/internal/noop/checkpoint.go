package noop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/snapshots"
)

// imageFile is all of an image's part: there is nothing to save.
const imageFile = "noop"

// Checkpoint implements lifecycle.Runtime.
func (r Runtime) Checkpoint(ctx context.Context, id sandbox.ID, dir string) error {
	return r.checkpoint(ctx, id, dir, snapshots.FilesPart, snapshots.MemoryPart)
}

// CheckpointFiles implements lifecycle.Runtime.
func (r Runtime) CheckpointFiles(ctx context.Context, id sandbox.ID, dir string) error {
	return r.checkpoint(ctx, id, dir, snapshots.FilesPart)
}

func (r Runtime) checkpoint(ctx context.Context, id sandbox.ID, dir string, parts ...string) error {
	p := r.process(id)
	if p == nil || !p.alive() {
		return fmt.Errorf("container %s does not run", id)
	}
	p.frozen.Store(true)
	if err := errors.Join(ctx.Err(), r.fault("runtime.Checkpoint", id)); err != nil {
		return err
	}
	if err := writeParts(dir, parts); err != nil {
		return err
	}
	p.kill()
	return nil
}

// SaveFiles implements lifecycle.Runtime.
func (r Runtime) SaveFiles(ctx context.Context, id sandbox.ID, dir string) error {
	if p := r.process(id); p == nil || !p.alive() {
		return fmt.Errorf("container %s does not run", id)
	}
	if err := errors.Join(ctx.Err(), r.fault("runtime.SaveFiles", id)); err != nil {
		return err
	}
	return writeParts(dir, []string{snapshots.FilesPart})
}

func writeParts(dir string, parts []string) error {
	for _, part := range parts {
		err := os.Mkdir(filepath.Join(dir, part), 0o700)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, part, imageFile), nil, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Origin implements lifecycle.Runtime.
func (r Runtime) Origin(_ context.Context, id sandbox.ID) (snapshots.Origin, error) {
	return r.origin(), r.fault("runtime.Origin", id)
}

// Target implements lifecycle.Runtime: Origin's answer, whatever the container.
func (r Runtime) Target(_ context.Context, c lifecycle.Container) (snapshots.Origin, error) {
	return r.origin(), r.fault("runtime.Target", c.ID)
}

func (r Runtime) origin() snapshots.Origin {
	version := "noop 1"
	if v := r.version.Load(); v != nil {
		version = *v
	}
	return snapshots.Origin{Image: "noop", Runtime: version, Spec: "noop"}
}

// Upgrade has the node run another version of its runtime.
func (r Runtime) Upgrade(version string) { r.version.Store(&version) }

// Freeze implements lifecycle.Runtime.
func (r Runtime) Freeze(ctx context.Context, id sandbox.ID) error {
	p := r.process(id)
	if p == nil || !p.alive() {
		return fmt.Errorf("container %s does not run", id)
	}
	p.frozen.Store(true)
	return errors.Join(ctx.Err(), r.fault("runtime.Freeze", id))
}

// Frozen reports whether the sandbox stands still.
func (r Runtime) Frozen(id sandbox.ID) bool {
	p := r.process(id)
	return p != nil && p.frozen.Load()
}

// SaveFrozen implements lifecycle.Runtime.
func (r Runtime) SaveFrozen(ctx context.Context, id sandbox.ID, dir string) error {
	if p := r.process(id); p == nil || !p.alive() || !p.frozen.Load() {
		return fmt.Errorf("container %s is not frozen", id)
	}
	if err := errors.Join(ctx.Err(), r.fault("runtime.SaveFrozen", id)); err != nil {
		return err
	}
	return writeParts(dir, []string{snapshots.FilesPart, snapshots.MemoryPart})
}

// Seal implements lifecycle.Runtime.
func (r Runtime) Seal(string) error { return r.fault("runtime.Seal", "") }

// Thaw implements lifecycle.Runtime.
func (r Runtime) Thaw(ctx context.Context, id sandbox.ID) error {
	if err := errors.Join(ctx.Err(), r.fault("runtime.Thaw", id)); err != nil {
		return err
	}
	if p := r.process(id); p != nil {
		p.frozen.Store(false)
	}
	return nil
}

func (r Runtime) process(id sandbox.ID) *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.containers[id]
}

// Saved implements lifecycle.Runtime.
func (r Runtime) Saved(dir string) (bool, error) {
	part := snapshots.FilesPart
	if _, err := os.Stat(filepath.Join(dir, snapshots.MemoryPart)); err == nil {
		part = snapshots.MemoryPart
	}
	_, err := os.Stat(filepath.Join(dir, part, imageFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Keep has the sandbox's procd tell of contexts that its next life shall have.
func (r Runtime) Keep(id sandbox.ID, kept []procapi.KeptContext) { r.process(id).kept.Store(&kept) }

// Begun is the image that the sandbox was started from.
func (r Runtime) Begun(id sandbox.ID) string { return r.process(id).begun }
