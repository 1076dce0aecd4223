// Package watch tells what changes below directories.
//
// A [Subscription] has an inotify instance of its own, so that nothing which it
// does or suffers reaches another one. It never follows a symlink below its
// directory. Two things may be slower than the changes, the reader of the kernel's
// events and the subscriber: whatever is lost at either is told as an event
// (procapi.WatchInvalidate), and memory stays bounded. A [Watcher] owns the counts
// that bound all subscriptions together; it watches nothing by itself.
//
// What counts as a rename is one within the directory: what is moved in is created,
// what is moved out is removed. Content that the file API stages under another name
// (files.Staged) is not shown; when it takes its place, the file is created and
// written, or written.
package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	maxSubscriptions = 256     // of a Watcher
	maxDirs          = 65_536  // of all subscriptions
	maxDirsEach      = 16_384  // of one
	maxQueue         = 4096    // events that wait for a subscriber
	maxQueueBytes    = 1 << 20 // their paths

	// pairing is how long the second half of a rename may take to follow the first,
	// which the kernel puts right behind it: but whoever renames may lose his processor
	// between the two.
	pairing = 100 * time.Millisecond

	// lookInterval is how soon a directory is known to have gone that others hold.
	lookInterval = time.Second
)

// Watcher is safe for concurrent use; its zero value is ready.
type Watcher struct {
	subscriptions atomic.Int64
	dirs          atomic.Int64
	limits        limits
	look          time.Duration // 0: the kernel tells
}

// NewShared makes a Watcher of files that others have, too. It has less to watch than a
// sandbox's, for many share one kernel; and it looks by itself whether a directory is
// there, of whose end the kernel does not tell before everybody has let go of it.
func NewShared(subscriptions, dirs int) *Watcher {
	return &Watcher{limits: limits{subscriptions: subscriptions, dirs: dirs}, look: lookInterval}
}

// limits are bounds other than the constants; 0 is the constant.
type limits struct{ subscriptions, dirs, dirsEach, queue int }

func or(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}

// Subscription is one watched directory.
type Subscription struct {
	of    *Watcher
	tree  *tree
	queue queue
	path  string
	close sync.Once
}

// Subscribe watches a directory, which it makes if there is none: what is in it, and
// with recursive everything below. Whatever happens from now on is told by Run. The
// caller closes the subscription.
func (w *Watcher) Subscribe(path string, recursive bool) (*Subscription, error) {
	if most := or(w.limits.subscriptions, maxSubscriptions); w.subscriptions.Add(1) > int64(most) {
		w.subscriptions.Add(-1)
		return nil, errdefs.WithCode(errdefs.Exhausted, "too_many_watches", "there are %d watches already", most)
	}
	s := &Subscription{of: w, path: filepath.Clean(path), queue: queue{ready: make(chan struct{}, 1), max: or(w.limits.queue, maxQueue)}}
	s.tree = &tree{root: s.path, recursive: recursive, look: w.look, out: &s.queue, room: room{total: &w.dirs, maxTotal: or(w.limits.dirs, maxDirs), max: or(w.limits.dirsEach, maxDirsEach)}}
	if err := s.tree.open(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Path is the directory that is watched.
func (s *Subscription) Path() string { return s.path }

// Close ends the watch. A subscription that runs is ended by its context.
func (s *Subscription) Close() {
	s.close.Do(func() {
		s.tree.close()
		s.of.subscriptions.Add(-1)
	})
}

// Run hands over what happens until the directory has gone, which is no error, or
// ctx ends, or send fails. Run it once. While send takes its time, events gather
// up to a bound.
func (s *Subscription) Run(ctx context.Context, send func([]procapi.WatchLine) error) error {
	var reader sync.WaitGroup
	gone := make(chan error, 1)
	reader.Go(func() { gone <- s.tree.run() })
	defer reader.Wait()
	defer s.tree.wake() // the reader ends before anything is closed
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.queue.ready:
			if err := send(s.queue.take()); err != nil {
				return err
			}
		case err := <-gone:
			if rest := s.queue.take(); err == nil && len(rest) > 0 {
				err = send(rest)
			}
			return err
		}
	}
}

// room counts directories, of one subscription and of all.
type room struct {
	total         *atomic.Int64
	maxTotal, max int
	used          int
}

func (r *room) take() bool {
	if r.used >= r.max {
		return false
	}
	if r.total.Add(1) > int64(r.maxTotal) {
		r.total.Add(-1)
		return false
	}
	r.used++
	return true
}

func (r *room) give(n int) {
	r.used -= n
	r.total.Add(int64(-n))
}

// queue holds what the subscriber has not taken yet.
type queue struct {
	max   int
	ready chan struct{} // holds a token while there is something

	mu     sync.Mutex
	events []procapi.WatchLine
	bytes  int
	last   map[string]string // path → its latest event
}

// put appends an event. One that only repeats the latest about its file is left
// out; when there are too many, all of them become one that says so.
func (q *queue) put(root string, e procapi.WatchLine) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.last[e.Path] == e.Event && e.Event != procapi.WatchRename {
		return
	}
	if q.last == nil {
		q.last = map[string]string{}
	}
	q.bytes += len(e.Path) + len(e.OldPath)
	q.events = append(q.events, e)
	q.last[e.Path] = e.Event
	if e.OldPath != "" {
		delete(q.last, e.OldPath)
	}
	if len(q.events) > q.max || q.bytes > maxQueueBytes {
		clear(q.last)
		q.events = append(q.events[:0], procapi.WatchLine{Event: procapi.WatchInvalidate, Path: root, Reason: procapi.WatchOverflow})
		q.bytes = len(root)
	}
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) take() []procapi.WatchLine {
	q.mu.Lock()
	defer q.mu.Unlock()
	events := q.events
	q.events, q.bytes, q.last = nil, 0, nil
	return events
}

// failure is what a subscriber learns of an error.
func failure(err error, path string) error {
	var typed *errdefs.Error
	switch {
	case err == nil || errors.As(err, &typed):
		return err
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EEXIST):
		return errdefs.WithCode(errdefs.Conflict, "path_not_directory", "the path is no directory")
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.EROFS):
		return errdefs.WithCode(errdefs.PermissionDenied, "permission_denied", "watching is not permitted").WithCause(err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EMFILE):
		return errdefs.WithCode(errdefs.Exhausted, "too_many_watches", "no more can be watched").WithCause(err)
	}
	return errdefs.WithCode(errdefs.Internal, "operation_failed", "watching %s failed", path).WithCause(err)
}
