package worker

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"s0.run/cmd/s0/internal/sync/tree"
)

// errEnough ends a walk.
var errEnough = errors.New("enough")

// add watches a directory and what is below it.
func (t *watch) add(dir string) {
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
			return nil
		case tree.Private(d.Name()):
			return fs.SkipDir
		case len(t.w.WatchList()) >= maxWatched:
			return errEnough
		}
		return t.w.Add(name)
	})
	if err != nil {
		t.log.Debug("not all directories are watched", "cause", err.Error())
	}
}

// drain takes what the system tells, always: on Windows nothing can be watched while it
// waits to tell. It ends with the watcher.
func (t *watch) drain() {
	defer close(t.done)
	events, lost := t.w.Events, t.w.Errors
	for events != nil || lost != nil {
		select {
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if !t.notable(e) {
				continue
			}
		case _, ok := <-lost: // the next look finds what happened
			if !ok {
				lost = nil
				continue
			}
		}
		select {
		case t.some <- struct{}{}:
		default:
		}
	}
}

// notable reports whether an event may be a change, and remembers what is new.
func (t *watch) notable(e fsnotify.Event) bool {
	if filepath.Base(e.Name) == tree.Own || filepath.Base(filepath.Dir(e.Name)) == tree.Own {
		return false
	}
	if e.Has(fsnotify.Create) {
		t.mu.Lock()
		if len(t.fresh) < maxWatched {
			t.fresh = append(t.fresh, e.Name)
		}
		t.mu.Unlock()
	}
	return true
}

// addFresh watches the directories that are new.
func (t *watch) addFresh() {
	t.mu.Lock()
	fresh := t.fresh
	t.fresh = nil
	t.mu.Unlock()
	for _, name := range fresh {
		t.add(name) // nothing but directories
	}
}

// wait waits for a time, or less, though least, if something happens in the directory;
// after a failure what happens there is no reason to try earlier. It reports whether to go
// on.
func (t *watch) wait(ctx context.Context, least, long time.Duration, failed bool) bool {
	began := time.Now()
	timer := time.NewTimer(long)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-t.some:
			t.addFresh()
			if !failed {
				timer.Reset(max(quiet, least-time.Since(began)))
				failed = true // which keeps a file that is written to all the time from putting it off
			}
		}
	}
}
