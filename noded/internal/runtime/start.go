package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/typeurl/v2"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
	"s0.run/noded/internal/images"
)

// gcRoot keeps containerd's collector off a snapshot that no container names yet.
const gcRoot = "containerd.io/gc.root"

// Start brings up the container and returns when its first process runs.
// After an error nothing of it is left; where
// removing it failed, too, [Runtime.List] still finds the rest.
func (r *Runtime) Start(ctx context.Context, c Container) error {
	name, err := r.runtimeName(c.Spec.RuntimeClass)
	if err != nil {
		return err
	}
	img, err := r.image(ctx, c.Image)
	if err != nil {
		return err
	}
	r.seen.begin(c.ID)
	defer r.seen.begun(c.ID)
	if err = r.start(ctx, c, name, img); err == nil {
		return nil
	}
	err = fmt.Errorf("starting %s: %w", c.ID, err)
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if uerr := r.Remove(undo, c.ID); uerr != nil {
		err = errors.Join(err, fmt.Errorf("undoing it: %w", uerr))
	}
	return err
}

func (r *Runtime) runtimeName(class sandbox.RuntimeClass) (string, error) {
	switch {
	case class == sandbox.GVisor:
		return shimapi.Runtime, nil
	case class == sandbox.Kata && r.cfg.Kata:
		return "io.containerd.kata.v2", nil
	case class == sandbox.Runc && r.cfg.AllowRunc:
		return "io.containerd.runc.v2", nil
	}
	return "", errdefs.New(errdefs.Unprocessable, "runtime class %q is not offered by this node", class)
}

func (r *Runtime) start(ctx context.Context, c Container, runtimeName string, img images.Image) error {
	spec, err := typeurl.MarshalAny(r.spec(c, img))
	if err != nil {
		return err
	}
	mounts, err := r.snapshot(ctx, c, img)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := failpoint.Hit("start.after-snapshot"); err != nil {
		return err
	}
	_, err = r.client.ContainerService().Create(ctx, containers.Container{
		ID:          string(c.ID),
		Labels:      r.labels(ctx, c),
		Image:       c.Image,
		Runtime:     containers.RuntimeInfo{Name: runtimeName},
		Spec:        spec,
		SnapshotKey: string(c.ID),
		Snapshotter: r.cfg.Snapshotter,
	})
	if err != nil {
		return fmt.Errorf("container: %w", err)
	}
	if err := failpoint.Hit("start.after-container"); err != nil {
		return err
	}
	options, err := fromCheckpoint(c.Checkpoint)
	if err != nil {
		return err
	}
	task, err := r.client.TaskService().Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: string(c.ID), Rootfs: mount.ToProto(mounts), Options: options})
	if err != nil {
		return fmt.Errorf("creating the task: %w", err)
	}
	r.seen.running(c.ID, task.Pid)
	if err := failpoint.Hit("start.after-task"); err != nil {
		return err
	}
	if _, err := r.client.TaskService().Start(ctx, &tasksapi.StartRequest{ContainerID: string(c.ID)}); err != nil {
		return fmt.Errorf("starting the task: %w", err)
	}
	return nil
}

// snapshot makes the container's root filesystem. It is writable also where gVisor
// keeps what is written to it in a file of its own: the gofer makes the mount
// points that the image lacks.
func (r *Runtime) snapshot(ctx context.Context, c Container, img images.Image) ([]mount.Mount, error) {
	labels := maps.Clone(c.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[gcRoot] = time.Now().UTC().Format(time.RFC3339)
	return r.client.SnapshotService(r.cfg.Snapshotter).Prepare(ctx, string(c.ID), img.ChainID, snapshots.WithLabels(labels))
}

// overlaid reports whether runsc keeps the upper layer of the rootfs.
func overlaid(c Container) bool { return c.Spec.RuntimeClass == sandbox.GVisor && c.OverlayDir != "" }
