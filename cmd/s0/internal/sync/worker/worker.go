// Package worker runs a replica: it holds the replica's lock, watches the directory, has
// the engine sync whenever something may have changed on either side, and waits longer
// and longer while that fails.
//
// A replica has a directory of its own under the user's home, for the user alone: the
// state, the lock that says a worker runs and which, and the log. A worker may be killed
// at any point. The package decides nothing about files.
package worker

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/sync/engine"
)

const (
	// pollEvery is how often the volume is asked for changes.
	pollEvery = 3 * time.Second
	// quiet is how long nothing must happen in the directory before it is looked through,
	// for saving a file is several events.
	quiet = 300 * time.Millisecond
	// backoffMin and backoffMax bound how long is waited after a failure.
	backoffMin, backoffMax = time.Second, time.Minute
	// idleShare keeps looking through large directories from taking all of a processor:
	// a cycle is followed by a pause of as many times its length.
	idleShare = 4
)

// Cycler is what a worker repeats.
type Cycler interface {
	Cycle(ctx context.Context) error
}

// Worker repeats a replica's cycle.
type Worker struct {
	Engine Cycler
	Root   string // the directory that is watched
	Log    *slog.Logger
}

// Run syncs until ctx ends.
func (w *Worker) Run(ctx context.Context) error {
	watch := newWatch(w.Root, w.Log)
	defer watch.close()
	failures := 0
	for {
		began := time.Now()
		err := w.Engine.Cycle(ctx)
		if ctx.Err() != nil {
			return nil
		}
		least := idleShare * time.Since(began)
		wait := max(pollEvery, least)
		if err != nil {
			failures++
			wait = backoff(failures, err)
			w.Log.Error("syncing failed", "cause", err.Error(), "again", wait.Round(time.Second).String())
		} else {
			failures = 0
		}
		if !watch.wait(ctx, least, wait, err != nil) {
			return nil
		}
	}
}

// backoff is how long to wait after some failures in a row, at least as long as the server
// asks for.
func backoff(failures int, err error) time.Duration {
	wait := min(backoffMax, backoffMin<<min(failures-1, 10))
	wait = wait/2 + rand.N(wait/2+1)
	if no, is := errors.AsType[*client.APIError](err); is && no.RetryAfter > 0 {
		wait = max(wait, min(no.RetryAfter, 10*backoffMax))
	}
	return wait
}

var _ Cycler = (*engine.Engine)(nil)

// watch tells that something in a directory may have changed. Where it can't be watched
// the looks of every cycle find it.
type watch struct {
	w    *fsnotify.Watcher // nil: it can't be
	log  *slog.Logger
	some chan struct{} // something may have changed
	done chan struct{} // closed when nothing is drained any more

	mu    sync.Mutex
	fresh []string // what was made and may be a directory
}

// maxWatched bounds the directories that are watched: each takes memory of the kernel.
const maxWatched = 8192

func newWatch(root string, log *slog.Logger) *watch {
	if runtime.GOOS != "linux" && runtime.GOOS != "windows" {
		return &watch{log: log} // kqueue wants each file open
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("the directory can't be watched: looking at it now and then", "cause", err.Error())
		return &watch{log: log}
	}
	t := &watch{w: w, log: log, some: make(chan struct{}, 1), done: make(chan struct{})}
	go t.drain()
	t.add(root)
	return t
}

func (t *watch) close() {
	if t.w != nil {
		t.w.Close()
		<-t.done
	}
}
