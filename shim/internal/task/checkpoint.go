package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	typestask "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"s0.run/internal/shimapi"
)

// image is what a checkpoint shall write.
type image struct {
	dir   string // existing, empty, the caller's
	files bool   // the root filesystem alone, without processes
	exit  bool   // the sandbox, which is frozen, ends with it
	open  bool   // the caller completes it
}

// checkpointImage reads the request. Its options are runc's, the only ones that
// containerd hands on: whose new pid namespace is to be empty is saved without
// processes.
func checkpointImage(path string, any *anypb.Any) (image, error) {
	im := image{dir: path}
	if any != nil {
		v, err := typeurl.UnmarshalAny(any)
		if err != nil {
			return image{}, fmt.Errorf("options of a checkpoint: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		opts, ok := v.(*options.CheckpointOptions)
		if !ok {
			return image{}, fmt.Errorf("options of a checkpoint are %T: %w", v, errdefs.ErrInvalidArgument)
		}
		im.exit = opts.Exit
		im.files = slices.Contains(opts.EmptyNamespaces, shimapi.NoProcesses)
		im.open = slices.Contains(opts.EmptyNamespaces, shimapi.Unsealed)
	}
	if im.exit && im.open {
		return image{}, fmt.Errorf("no sandbox ends with an image that is not complete: %w", errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(im.dir) {
		return image{}, fmt.Errorf("image directory %q is no absolute path: %w", im.dir, errdefs.ErrInvalidArgument)
	}
	return im, nil
}

// Checkpoint writes an image of the sandbox into a directory. Who wants the sandbox to
// end with it freezes it first: what runs would go on for a moment beyond its image.
// After an error the image is worth nothing.
func (s *Service) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*empty, error) {
	return s.on(r.ID, func(c *container) error {
		im, err := checkpointImage(r.Path, r.Options)
		if err != nil {
			return err
		}
		return c.checkpoint(ctx, im)
	})
}

func (c *container) checkpoint(ctx context.Context, im image) error {
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock() // lets watch report the end that exit asks for
	if got := c.getState(); got != typestask.Status_PAUSED && (im.exit || got != typestask.Status_RUNNING) {
		return fmt.Errorf("container %s is %s: %w", c.id, got, errdefs.ErrFailedPrecondition)
	}
	save := c.runsc.Checkpoint
	if im.files {
		save = c.runsc.CheckpointFiles
	}
	if err := save(ctx, im.dir); err != nil {
		return err
	}
	if !im.open {
		if err := seal(im.dir, syncPath); err != nil {
			return fmt.Errorf("image of %s: %w", c.id, err)
		}
	}
	if im.exit {
		_ = c.svc.cfg.Reaper.Signal(c.pid, unix.SIGKILL)
	}
	c.svc.publish(&events.TaskCheckpointed{ContainerID: c.id, Checkpoint: im.dir})
	return nil
}

// seal makes an image durable and then says so in it: from here on nobody's death
// undoes it. What it can't make durable does not say so.
func seal(dir string, sync func(path string) error) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := sync(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	complete := filepath.Join(dir, shimapi.ImageComplete)
	err = os.WriteFile(complete, nil, 0o600)
	if err == nil {
		err = sync(dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(complete))
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
