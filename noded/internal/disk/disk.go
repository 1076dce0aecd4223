// Package disk says whether the node's disk has room for more.
//
// A full disk hurts everybody on it, the journal first: the node takes nothing new
// on while there is still room for what it has. The package looks at one file
// system and owns nothing but its last look.
package disk

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
)

const (
	// maxUsed is how much of the file system, in percent of its bytes and of its
	// inodes, may be in use for the node to take on more.
	maxUsed = 85
	// crowded is the use from which on what is elsewhere, too, should go: early enough
	// for the node not to refuse anybody meanwhile.
	crowded = 80
	// lookInterval is how long a look counts.
	lookInterval = time.Second
	// retryAfter is what who is refused is told to wait: room comes when others end.
	retryAfter = 10 * time.Second
)

// Disk is safe for concurrent use.
type Disk struct {
	dir    string
	statfs func(string, *unix.Statfs_t) error

	mu   sync.Mutex
	at   time.Time
	last error
}

// New makes a Disk of the file system that dir is on.
func New(dir string) *Disk { return &Disk{dir: dir, statfs: unix.Statfs} }

// Room returns nil while there is room for more.
func (d *Disk) Room() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); d.at.IsZero() || now.Sub(d.at) >= lookInterval {
		d.at, d.last = now, d.RoomFor(0) // quick: of a local file system the kernel knows it by heart
	}
	return d.last
}

// Crowded reports whether the disk should be emptied of what is elsewhere, too. One that
// can't be looked at is not.
func (d *Disk) Crowded() bool {
	bytes, inodes, err := d.used(0)
	return err == nil && max(bytes, inodes) >= crowded
}

// RoomFor returns nil while there is room for so many bytes more. It always looks.
func (d *Disk) RoomFor(more int64) error {
	bytes, inodes, err := d.used(more)
	if err != nil {
		return err
	}
	if used := max(bytes, inodes); used >= maxUsed {
		return errdefs.New(errdefs.Exhausted, "the node's disk is too full for more").WithRetryAfter(retryAfter).
			WithCause(fmt.Errorf("%s: with %d bytes more, %d %% of the bytes and %d %% of the inodes are in use, want less than %d", d.dir, more, bytes, inodes, maxUsed))
	}
	return nil
}

// used is how much of the file system is in use with so many bytes more, in percent.
func (d *Disk) used(more int64) (bytes, inodes uint64, err error) {
	var st unix.Statfs_t
	if err := d.statfs(d.dir, &st); err != nil {
		return 0, 0, errdefs.New(errdefs.Unavailable, "the node can't tell how full its disk is").WithCause(err)
	}
	blocks := uint64(0)
	if more > 0 && st.Bsize > 0 {
		blocks = min(uint64(more)/uint64(st.Bsize), st.Bavail)
	}
	// What is kept for root is in neither sum, as in df.
	return percent(st.Blocks-st.Bfree+blocks, st.Bavail-blocks), percent(st.Files-st.Ffree, st.Ffree), nil
}

// percent is how much is used; of a file system that does not count, nothing.
func percent(used, free uint64) uint64 {
	if used+free == 0 {
		return 0
	}
	return used * 100 / (used + free)
}
