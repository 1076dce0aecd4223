package journal

import (
	"errors"
	"os"
	"syscall"
	"time"
)

const (
	// reserveBytes is what the journal keeps of the disk beside itself: given up
	// when the disk is full, it lets sandboxes be ended, which makes room.
	reserveBytes = 4 << 20
	// reserveRetry paces the attempts to have it again.
	reserveRetry = 10 * time.Second
)

// reserve is a file whose only use is its size. It belongs to Run.
type reserve struct {
	path    string
	held    bool
	triedAt time.Time
}

// hold makes sure of the file, if there is room for it.
func (r *reserve) hold(now time.Time) {
	if r.held || now.Sub(r.triedAt) < reserveRetry {
		return
	}
	r.triedAt = now
	r.held = allocate(r.path) == nil
	if !r.held {
		_ = os.Remove(r.path) // half of it helps nobody, and takes what is left
	}
}

// release gives the room back, and reports whether there was any.
func (r *reserve) release() bool {
	held := r.held
	r.held = false
	return held && os.Remove(r.path) == nil
}

func allocate(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = syscall.Fallocate(int(f.Fd()), 0, 0, reserveBytes)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, reserveBytes))
	}
	return errors.Join(err, f.Close())
}

// noRoom reports whether a write failed for want of room.
func noRoom(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
