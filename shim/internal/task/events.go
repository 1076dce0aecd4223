package task

import (
	"context"
	"time"

	"github.com/containerd/containerd/api/events"
)

// eventQueue is how many events may wait for containerd; beyond it, containers'
// ends wait. containerd asks for the state of everything when it comes back.
const eventQueue = 512

// flushTimeout bounds the last events' way out when the process ends.
const flushTimeout = 2 * time.Second

// publish queues an event. Events leave in the order of their queueing.
func (s *Service) publish(e any) { s.events <- e }

func (s *Service) send(ctx context.Context, e any) {
	if err := s.cfg.Publish(ctx, topic(e), e); err != nil {
		s.cfg.Log.Warn("publishing an event", "topic", topic(e), "error", err)
	}
}

func (s *Service) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	for {
		select {
		case e := <-s.events:
			s.send(ctx, e)
		default:
			return
		}
	}
}

func topic(e any) string {
	switch e.(type) {
	case *events.TaskCreate:
		return "/tasks/create"
	case *events.TaskStart:
		return "/tasks/start"
	case *events.TaskOOM:
		return "/tasks/oom"
	case *events.TaskExit:
		return "/tasks/exit"
	case *events.TaskDelete:
		return "/tasks/delete"
	case *events.TaskExecAdded:
		return "/tasks/exec-added"
	case *events.TaskExecStarted:
		return "/tasks/exec-started"
	case *events.TaskPaused:
		return "/tasks/paused"
	case *events.TaskResumed:
		return "/tasks/resumed"
	}
	return "/tasks/?"
}
