package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"
)

const (
	// startTimeout is how long a worker may take until it holds the lock.
	startTimeout = 30 * time.Second
	// maxLog is how long a log may be; the one before is kept beside.
	maxLog = 1 << 20
)

// Spawn starts this program with args as the replica's worker, in the background, and
// waits until it holds the lock. What it needs to sign in and nobody may read in a list of
// processes is in env.
func (r *Replica) Spawn(ctx context.Context, args, env []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(r.LogFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, args...) //nolint:noctx // it outlives us
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = log // of what ends it before it has its log
	cmd.Dir = r.Dir
	detach(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the worker: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the worker, or with us
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("it takes too long"))
	defer cancel()
	for {
		if pid, err := r.pid(); err == nil && pid == cmd.Process.Pid {
			return nil
		}
		select {
		case err := <-ended:
			return errors.Join(fmt.Errorf("the worker has ended at once: see %s", r.LogFile()), err)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("starting the worker: %w", context.Cause(ctx)), cmd.Process.Kill())
		case <-time.After(stopPoll):
		}
	}
}

// Log is a log file of a bounded size. It is safe for concurrent use.
type Log struct {
	path string

	mu   sync.Mutex
	f    *os.File
	size int64
}

// OpenLog opens the replica's log.
func (r *Replica) OpenLog() (*Log, error) {
	l := &Log{path: r.LogFile()}
	return l, l.open()
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write writes to the log, to a new one when it is long enough.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(b)) > maxLog {
		l.f.Close()
		renamed := os.Rename(l.path, l.path+".1")
		if err := l.open(); err != nil {
			return 0, errors.Join(renamed, err)
		}
		if renamed != nil {
			l.size = 0 // it grows on, and that is tried again then
		}
	}
	n, err := l.f.Write(b)
	l.size += int64(n)
	return n, err
}

// Close closes the log.
func (l *Log) Close() error { return l.f.Close() }
