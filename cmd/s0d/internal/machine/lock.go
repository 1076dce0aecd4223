package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning says that a server holds the instance's directories.
var ErrRunning = errors.New("s0 is already running")

// lockPoll is how often a waiter looks at the lock; a person waits for it.
const lockPoll = 20 * time.Millisecond

// A lock is held by the one server of an instance for as long as it lives; the
// kernel lets go of it with the process.
type lock struct{ f *os.File }

func (c Config) tryLock() (*lock, error) {
	f, err := os.OpenFile(c.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("locking %s: %w", c.lockFile(), err)
	}
	return &lock{f}, nil
}

func (l *lock) release() { l.f.Close() }

// awaitEnd waits until no server holds the lock.
func (c Config) awaitEnd(ctx context.Context) error {
	for {
		l, err := c.tryLock()
		if errors.Is(err, os.ErrNotExist) { // not even a directory
			return nil
		}
		if err == nil {
			l.release()
			return nil
		}
		if !errors.Is(err, ErrRunning) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// Running reports whether a server holds the instance's directories.
func (c Config) Running() (bool, error) {
	l, err := c.tryLock()
	switch {
	case errors.Is(err, ErrRunning):
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	l.release()
	return false, nil
}
