package runtime

import (
	"context"
	"fmt"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	"s0.run/internal/sandbox"
)

const (
	// Pauses between attempts to subscribe while containerd is away.
	firstRetry, lastRetry = 50 * time.Millisecond, 2 * time.Second
	// syncInterval is how often the sync event is sent until it comes back.
	syncInterval = 20 * time.Millisecond
	// listTimeout bounds the look at everything after a subscription.
	listTimeout = 30 * time.Second
)

// syncTopic is an event of our own. Seeing it proves that the subscription is in
// force: containerd does not tell.
const syncTopic = "/s0/subscribed"

// Run keeps watching for exits until ctx ends, however often containerd goes away.
func (r *Runtime) Run(ctx context.Context) error {
	defer close(r.exits)
	for pause := firstRetry; ctx.Err() == nil; pause = min(2*pause, lastRetry) {
		begin := time.Now()
		err := r.watch(ctx)
		if ctx.Err() != nil {
			break
		}
		if time.Since(begin) > lastRetry {
			pause = firstRetry
		}
		r.cfg.Log.Warn("watching containerd", "error", err, "retry_seconds", pause.Seconds())
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// watch subscribes, looks at what there is, then follows, until the stream ends.
// What ends in between is seen by the one or the other.
func (r *Runtime) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := fmt.Sprintf("namespace==%s,topic==", r.cfg.Namespace)
	stream, failed := r.client.Subscribe(ctx, in+`"/tasks/exit"`, in+`"/tasks/oom"`, in+`"`+syncTopic+`"`)
	if err := r.sync(ctx, stream, failed); err != nil {
		return err
	}
	if err := r.catchUp(ctx); err != nil {
		return err
	}
	for {
		select {
		case e := <-stream:
			r.handle(ctx, e)
		case err := <-failed:
			return streamError(ctx, err)
		}
	}
}

// sync waits until our own event comes back over the stream.
func (r *Runtime) sync(ctx context.Context, stream <-chan *events.Envelope, failed <-chan error) error {
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case e := <-stream:
			if e.Topic == syncTopic {
				return nil
			}
			r.handle(ctx, e)
		case err := <-failed:
			return streamError(ctx, err)
		case <-tick.C:
			if err := r.client.EventService().Publish(ctx, syncTopic, &emptypb.Empty{}); err != nil {
				return err
			}
		}
	}
}

func streamError(ctx context.Context, err error) error {
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = errStream
	}
	return err
}

func (r *Runtime) handle(ctx context.Context, e *events.Envelope) {
	if e.Topic == syncTopic {
		return
	}
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		r.cfg.Log.Warn("event of containerd", "topic", e.Topic, "error", err)
		return
	}
	switch v := v.(type) {
	case *apievents.TaskOOM:
		if id, err := sandbox.ParseID(v.ContainerID); err == nil {
			r.seen.outOfMemory(id)
		}
	case *apievents.TaskExit:
		if id, err := sandbox.ParseID(v.ContainerID); err == nil && v.ID == v.ContainerID {
			r.report(ctx, Exit{ID: id, Status: v.ExitStatus, At: v.ExitedAt.AsTime(), Reason: exited, pid: v.Pid})
		}
	}
}

// catchUp reports the containers that have ended unseen. One without a task is
// lost as far as containerd tells, which is no proof: see [ended].
func (r *Runtime) catchUp(ctx context.Context) error {
	list, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	containers, err := r.client.ContainerService().List(list)
	if err != nil {
		return err
	}
	tasks, err := r.tasks(list)
	if err != nil {
		return err
	}
	exits := map[string]Exit{}
	for _, c := range containers {
		exits[c.ID] = Exit{At: time.Now(), Reason: lost} // unless it has a task
	}
	for _, t := range tasks {
		delete(exits, t.ID)
		if ended(t) && t.ExitedAt != nil {
			exits[t.ID] = Exit{Status: t.ExitStatus, At: t.ExitedAt.AsTime(), Reason: exited, pid: t.Pid}
		}
	}
	for name, exit := range exits {
		if exit.ID, err = sandbox.ParseID(name); err == nil {
			r.report(ctx, exit)
		}
	}
	return nil
}

// report delivers an exit that is news.
func (r *Runtime) report(ctx context.Context, e Exit) {
	if !r.seen.exit(&e) {
		return
	}
	r.cfg.Log.Info("sandbox has exited", "sandbox", e.ID, "status", e.Status, "reason", e.Reason)
	select {
	case r.exits <- e:
	case <-ctx.Done():
	}
}
