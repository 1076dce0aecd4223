package task

import (
	"fmt"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	typestask "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"s0.run/shim/internal/reap"
)

type empty = emptypb.Empty

func signal(n uint32) unix.Signal { return unix.Signal(n) }

// timestamp leaves out the time of what has not happened.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func deleteResponse(e reap.Exit) *taskapi.DeleteResponse {
	return &taskapi.DeleteResponse{Pid: uint32(e.Pid), ExitStatus: uint32(e.Status), ExitedAt: timestamp(e.At)}
}

func (c *container) status() *taskapi.StateResponse {
	res := &taskapi.StateResponse{
		ID:     c.id,
		Bundle: c.bundle.Dir,
		Pid:    uint32(c.pid),
		Status: c.getState(),
		Stdin:  c.paths.In,
		Stdout: c.paths.Out,
		Stderr: c.paths.Err,
	}
	addExit(res, c.end)
	return res
}

func (e *execution) status() *taskapi.StateResponse {
	res := &taskapi.StateResponse{
		ID:       e.c.id,
		ExecID:   e.id,
		Bundle:   e.c.bundle.Dir,
		Pid:      uint32(e.hostPid()),
		Status:   e.getState(),
		Stdin:    e.paths.In,
		Stdout:   e.paths.Out,
		Stderr:   e.paths.Err,
		Terminal: e.paths.Terminal,
	}
	addExit(res, e.end)
	return res
}

func addExit(res *taskapi.StateResponse, e *end) {
	if e.over() {
		res.ExitStatus, res.ExitedAt = uint32(e.exit.Status), timestamp(e.exit.At)
	}
}

func (c *container) pids() (*taskapi.PidsResponse, error) {
	res := &taskapi.PidsResponse{Processes: []*typestask.ProcessInfo{{Pid: uint32(c.pid)}}}
	for _, e := range c.runningExecs() {
		info, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: e.id})
		if err != nil {
			return nil, err
		}
		res.Processes = append(res.Processes, &typestask.ProcessInfo{Pid: uint32(e.hostPid()), Info: info})
	}
	return res, nil
}

func (c *container) stats() (*taskapi.StatsResponse, error) {
	usage := c.cgroup.Stats()
	if usage == nil {
		return nil, errgrpc.ToGRPCf(errdefs.ErrNotFound, "container %s has no cgroup", c.id)
	}
	any, err := typeurl.MarshalAnyToProto(usage)
	if err != nil {
		return nil, fmt.Errorf("stats of %s: %w", c.id, err)
	}
	return &taskapi.StatsResponse{Stats: any}, nil
}
