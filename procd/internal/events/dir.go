package events

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"s0.run/internal/files/watch"
	"s0.run/internal/procapi"
)

// dirPoll is how soon a directory is watched that was not there.
const dirPoll = time.Second

// Dir makes what changes below one directory events.
type Dir struct {
	queue   *Queue
	log     *slog.Logger
	watches watch.Watcher
	changed chan struct{} // holds a value when another directory is to be watched

	mu   sync.Mutex
	path string              // "": none
	next *watch.Subscription // of path; nil when Run has it, or there is none
}

// NewDir makes a Dir that watches nothing yet.
func NewDir(q *Queue, log *slog.Logger) *Dir {
	return &Dir{queue: q, log: log, changed: make(chan struct{}, 1)}
}

// Set watches a directory, or none for "", in place of the one before: what happens
// below it from now on is told. It makes the directory if there is none. One that
// can't be watched is told as events that are missing, and tried again.
func (d *Dir) Set(path string) {
	if path != "" {
		path = filepath.Clean(path)
	}
	d.mu.Lock()
	same := path == d.path
	d.path = path
	d.mu.Unlock()
	if same {
		return
	}
	var sub *watch.Subscription
	if path != "" {
		var err error
		if sub, err = d.watches.Subscribe(path, true); err != nil {
			d.missing(path, err)
		}
	}
	d.mu.Lock()
	stale := d.next
	d.next = sub
	d.mu.Unlock()
	if stale != nil {
		stale.Close()
	}
	d.wake()
}

func (d *Dir) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

func (d *Dir) missing(path string, err error) {
	d.log.Warn("watching a directory", "path", path, "err", err)
	d.queue.Add(procapi.EventFileModified, procapi.FileModified{EventType: procapi.WatchInvalidate, Path: path})
}

// Run tells changes until ctx ends.
func (d *Dir) Run(ctx context.Context) {
	for ctx.Err() == nil {
		path, sub := d.take()
		if sub != nil {
			d.follow(ctx, path, sub)
			continue
		}
		var again <-chan time.Time
		if path != "" {
			again = time.After(dirPoll)
		}
		select {
		case <-d.changed:
		case <-again:
			d.retry(path)
		case <-ctx.Done():
		}
	}
}

// isReplaced reports whether something else than this directory, as it was
// subscribed to last, is to be watched.
func (d *Dir) isReplaced(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.path != path || d.next != nil
}

func (d *Dir) take() (string, *watch.Subscription) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sub := d.next
	d.next = nil
	return d.path, sub
}

// retry watches a directory that is there again. It is not made: whoever removed
// it wanted that.
func (d *Dir) retry(path string) {
	if info, err := os.Lstat(path); err != nil || !info.IsDir() {
		return
	}
	sub, err := d.watches.Subscribe(path, true)
	if err != nil {
		return
	}
	d.queue.Add(procapi.EventFileModified, procapi.FileModified{EventType: procapi.WatchInvalidate, Path: path})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.path != path || d.next != nil {
		sub.Close()
		return
	}
	d.next = sub
}

// follow tells what happens below a directory until it is gone or another one is
// to be watched.
func (d *Dir) follow(ctx context.Context, path string, sub *watch.Subscription) {
	defer sub.Close()
	ctx, stop := context.WithCancel(ctx)
	var replaced sync.WaitGroup
	defer replaced.Wait()
	defer stop()
	replaced.Go(func() {
		for !d.isReplaced(path) {
			select {
			case <-d.changed:
			case <-ctx.Done():
				return
			}
		}
		stop()
	})
	err := sub.Run(ctx, func(lines []procapi.WatchLine) error {
		for _, l := range lines {
			d.queue.Add(procapi.EventFileModified, procapi.FileModified{EventType: l.Event, Path: l.Path, OldPath: l.OldPath})
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		d.missing(path, err)
	}
}
