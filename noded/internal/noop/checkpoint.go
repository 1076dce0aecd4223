package noop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"s0.run/internal/sandbox"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/snapshots"
)

// imageFile is all of an image: there is nothing to save.
const imageFile = "noop"

// Checkpoint implements lifecycle.Runtime.
func (r Runtime) Checkpoint(ctx context.Context, id sandbox.ID, dir string) error {
	p := r.process(id)
	if p == nil || !p.alive() {
		return fmt.Errorf("container %s does not run", id)
	}
	p.frozen.Store(true)
	if err := errors.Join(ctx.Err(), r.fault("runtime.Checkpoint", id)); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, imageFile), nil, 0o600); err != nil {
		return err
	}
	p.kill()
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

// Freeze does the first step of a checkpoint.
func (r Runtime) Freeze(id sandbox.ID) { r.process(id).frozen.Store(true) }

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
	_, err := os.Stat(filepath.Join(dir, imageFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
