// Package kick repeats what has to follow changes: a [Loop] does its work after each
// kick, and again, a while later, when it could not.
//
// The work tells or compares everything, each time, so that kicks need not be
// counted. The package owns no goroutine but that of whoever calls [Loop.Run], and
// remembers nothing but that there was a kick.
package kick

import (
	"context"
	"time"
)

// retryPause is how long after work that failed it is tried again.
const retryPause = 2 * time.Second

// Loop is safe for concurrent use. Make one with New.
type Loop struct{ kicked chan struct{} }

// New makes a Loop that was not kicked yet.
func New() Loop { return Loop{make(chan struct{}, 1)} }

// Kick says that something changed. It never blocks.
func (l Loop) Kick() {
	select {
	case l.kicked <- struct{}{}:
	default: // one that is waiting already covers this change
	}
}

// Run does the work after each kick, again when it says that it failed, until ctx ends.
func (l Loop) Run(ctx context.Context, work func(context.Context) bool) error {
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.kicked:
		case <-retry:
		}
		retry = nil
		if !work(ctx) {
			retry = time.After(retryPause)
		}
	}
}
