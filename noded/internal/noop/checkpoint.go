package noop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"s0.run/internal/sandbox"
)

// imageFile is all of an image: there is nothing to save.
const imageFile = "noop"

// Checkpoint implements lifecycle.Runtime.
func (r Runtime) Checkpoint(ctx context.Context, id sandbox.ID, dir string) error {
	if err := errors.Join(ctx.Err(), r.fault("runtime.Checkpoint", id)); err != nil {
		return err
	}
	r.mu.Lock()
	p := r.containers[id]
	r.mu.Unlock()
	if p == nil || !p.alive() {
		return fmt.Errorf("container %s does not run", id)
	}
	if err := os.WriteFile(filepath.Join(dir, imageFile), nil, 0o600); err != nil {
		return err
	}
	p.kill()
	return nil
}

// Saved implements lifecycle.Runtime.
func (r Runtime) Saved(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, imageFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
