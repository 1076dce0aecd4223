package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"s0.run/cmd/s0/internal/config"
	"s0.run/cmd/s0/internal/sync/state"
)

const (
	// stopTimeout is how long a worker may take to end: one call to a server.
	stopTimeout = 30 * time.Second
	stopPoll    = 50 * time.Millisecond
	lockTries   = 20
)

// Replica is a replica's directory.
type Replica struct {
	Dir string
	state.Attachment
}

// LogFile is where the replica's worker writes to.
func (r *Replica) LogFile() string { return filepath.Join(r.Dir, "log") }

func (r *Replica) pidFile() string { return filepath.Join(r.Dir, "pid") }

// Home is where replicas' directories are.
func Home() (string, error) {
	path, err := config.DefaultPath()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(path), "sync"), nil
}

// List are all replicas, also those that were detached.
func List() ([]Replica, error) {
	home, err := Home()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(home)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Replica
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r, err := Load(filepath.Join(home, e.Name()))
		if errors.Is(err, state.ErrNone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, *r)
	}
	return all, nil
}

// Load reads what a replica is.
func Load(dir string) (*Replica, error) {
	s, err := state.Open(dir, false)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	a, err := s.Attachment()
	if err != nil {
		return nil, err
	}
	return &Replica{Dir: dir, Attachment: a}, nil
}

// tryLock tries for a while: who only asks whether somebody has the lock has it for a moment.
func (r *Replica) tryLock() (unlock func(), locked bool, err error) {
	for range lockTries {
		if unlock, locked, err = config.TryLock(filepath.Join(r.Dir, "worker")); err != nil || locked {
			return unlock, locked, err
		}
		time.Sleep(stopPoll)
	}
	return nil, false, nil
}

// Lock is held by who works on a replica.
func (r *Replica) Lock() (unlock func(), err error) {
	release, locked, err := r.tryLock()
	if err != nil {
		return nil, err
	}
	if !locked {
		return nil, errors.New("it is being synced by another s0 already")
	}
	if err := os.WriteFile(r.pidFile(), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		release()
		return nil, err
	}
	return func() {
		os.Remove(r.pidFile()) // the number will be another process's
		release()
	}, nil
}

// Running reports whether somebody works on the replica.
func (r *Replica) Running() bool {
	unlock, locked, err := config.TryLock(filepath.Join(r.Dir, "worker"))
	if err != nil || !locked {
		return err == nil
	}
	unlock()
	return false
}

// pid is the process that had the lock last.
func (r *Replica) pid() (int, error) {
	b, err := os.ReadFile(r.pidFile())
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s does not name a process", r.pidFile())
	}
	return pid, nil
}

// Stop has the worker end, and waits for it; with force one that does not is killed.
func (r *Replica) Stop(ctx context.Context, force bool) error {
	unlock, locked, err := r.tryLock()
	if err != nil {
		return err
	}
	if locked {
		unlock()
		return nil
	}
	pid, err := r.pid()
	if err != nil && !r.Running() {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	if err := terminate(p); err != nil && r.Running() {
		return fmt.Errorf("stopping the worker, process %d: %w", pid, err)
	}
	if r.waitStopped(ctx) {
		return ctx.Err()
	}
	if !force {
		return fmt.Errorf("the worker, process %d, does not end", pid)
	}
	if err := p.Kill(); err != nil && r.Running() {
		return fmt.Errorf("killing the worker, process %d: %w", pid, err)
	}
	if !r.waitStopped(ctx) {
		return fmt.Errorf("the worker, process %d, does not end", pid)
	}
	return ctx.Err()
}

func (r *Replica) waitStopped(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for r.Running() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(stopPoll):
		}
	}
	return true
}
