package task

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	typestask "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"

	"s0.run/internal/shimapi"
	"s0.run/shim/internal/bundle"
	"s0.run/shim/internal/cgroup"
	"s0.run/shim/internal/clean"
	"s0.run/shim/internal/reap"
	"s0.run/shim/internal/runsc"
	"s0.run/shim/internal/stdio"
)

// undoTimeout bounds the undoing of a create that failed; it goes on when the
// caller has given up.
const undoTimeout = 15 * time.Second

// create makes the sandbox or leaves nothing of it.
func (s *Service) create(ctx context.Context, r *taskapi.CreateTaskRequest) (*container, error) {
	c, err := s.prepare(r)
	if err != nil {
		return nil, err
	}
	rec := s.cfg.Reaper.Record() // the sentry may end before we know its pid
	defer rec.Close()
	if err := c.boot(ctx, r, rec); err != nil {
		return nil, c.undo(ctx, err)
	}
	s.publish(&events.TaskCreate{
		ContainerID: c.id,
		Bundle:      r.Bundle,
		Rootfs:      r.Rootfs,
		IO:          &events.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr},
		Pid:         uint32(c.pid),
	})
	go c.watch() // ends with the sentry
	return c, nil
}

// images tells what is in the image that a container starts from, if there is one.
func images(dir string) (processes, files string, err error) {
	if dir == "" {
		return "", "", nil
	}
	_, err = os.Stat(filepath.Join(dir, shimapi.FilesImage))
	switch {
	case err == nil:
		return "", dir, nil
	case errors.Is(err, fs.ErrNotExist):
		return dir, "", nil
	}
	return "", "", fmt.Errorf("image: %w", err)
}

// prepare reads what the container is; it acquires nothing but the log.
func (s *Service) prepare(r *taskapi.CreateTaskRequest) (*container, error) {
	b, err := bundle.Open(r.Bundle)
	if err != nil {
		return nil, err
	}
	processes, files, err := images(r.Checkpoint)
	if err != nil {
		return nil, err
	}
	log, logFile := b.Logger(r.ID)
	return &container{
		id:      r.ID,
		svc:     s,
		bundle:  b,
		runsc:   runsc.ForBundle(b, r.ID, s.cfg.Reaper),
		cgroup:  cgroup.Open(b.Spec.CgroupsPath),
		log:     log,
		logFile: logFile,
		image:   processes,
		files:   files,
		paths:   stdio.Paths{In: r.Stdin, Out: r.Stdout, Err: r.Stderr},
		ops:     make(chan struct{}, 1),
		end:     newEnd(),
		state:   typestask.Status_CREATED,
		execs:   map[string]*execution{},
	}, nil
}

// boot mounts the rootfs, runs `runsc create` and adopts sentry and gofer.
func (c *container) boot(ctx context.Context, r *taskapi.CreateTaskRequest, rec *reap.Recorder) error {
	if err := mount.All(mount.FromProto(r.Rootfs), c.bundle.Rootfs()); err != nil {
		return fmt.Errorf("mounting rootfs: %w", err)
	}
	io, err := stdio.Open(c.paths)
	if err != nil {
		return err
	}
	c.stdio = io
	if err := c.runsc.Create(ctx, c.bundle.Dir, c.bundle.PidFile(), c.files, runsc.Stdio{In: io.In, Out: io.Out, Err: io.Err}); err != nil {
		return err
	}
	io.Started()
	return c.adopt(rec)
}

func (c *container) adopt(rec *reap.Recorder) (err error) {
	if c.pid, err = readPid(c.bundle.PidFile()); err != nil {
		return err
	}
	c.sentry = rec.Await(c.pid)
	if c.goferPid, err = c.runsc.GoferPid(); err != nil {
		return err
	}
	c.gofer = rec.Await(c.goferPid)
	c.cgroup.KillTogether()
	return c.bundle.WriteRecord(bundle.Record{Pid: c.pid})
}

// undo removes what boot has made, and returns why it had to.
func (c *container) undo(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if c.stdio != nil {
		c.stdio.Close()
	}
	if err := c.leftovers().Destroy(ctx); err != nil {
		c.log.Error("undoing a failed create", "error", err)
		cause = fmt.Errorf("%w; undoing it: %w", cause, err)
	}
	c.closeLog()
	return cause
}

func (c *container) leftovers() clean.Sandbox {
	return clean.Sandbox{Bundle: c.bundle, Runsc: c.runsc, Group: c.cgroup}
}

func readPid(path string) (int, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("pid file holds %q", raw)
	}
	return pid, nil
}
