package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	lockTimeout = 30 * time.Second // longer than another s0 holds it: one call to a server
	lockPoll    = 20 * time.Millisecond
)

// Lock keeps other s0 from changing the file at path until unlock is called, or
// the process ends. It waits for one that is at it; readers need no lock. The lock
// is a file beside: Save replaces the other.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("locking your configuration: %w", err)
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking your configuration: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lockTimeout, errors.New("another s0 holds it for too long"))
	defer cancel()
	for {
		locked, err := tryLock(f)
		if err == nil && !locked {
			err = pause(ctx)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking your configuration: %w", err)
		}
		if locked {
			return func() { f.Close() }, nil // which unlocks
		}
	}
}

// TryLock is Lock that does not wait: locked is whether it is ours now.
func TryLock(path string) (unlock func(), locked bool, err error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, err
	}
	if locked, err = tryLock(f); err != nil || !locked {
		f.Close()
		return nil, false, err
	}
	return func() { f.Close() }, true, nil
}

func pause(ctx context.Context) error {
	select {
	case <-time.After(lockPoll):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
