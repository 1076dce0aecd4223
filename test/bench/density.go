package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	memoryBudget = flag.Int("memory-budget", 512, "MiB of memory that the step density fills with running sandboxes")
	diskBudget   = flag.Int("disk-budget", 48, "MiB of disk that it fills with paused ones")
)

const (
	mib = 1 << 20
	// leastMemory of a running sandbox, in MiB: what the budget divided by it gives is no bound.
	leastMemory = 8
	// refillWait is how long a node may have no slot for one more sandbox before it has no place.
	refillWait = time.Minute
	// takenUp is how many of the paused ones are resumed.
	takenUp = 5
	// refused is the share of the disk at which a node takes nothing new on.
	refused = 0.85
)

// A crowd is many sandboxes at once.
type crowd struct {
	*client
	template string
	ids      []string
}

// density fills a budget of the disk with paused sandboxes, then one of memory with running
// ones, each of which has run a command, and has all of them serve. What there would be room
// for without the budgets follows from what each of them takes.
func (c *client) density(ctx context.Context, dataDir, template string) ([]row, error) {
	paused, running := &crowd{client: c, template: template}, &crowd{client: c, template: template}
	rows, err := paused.pauseMany(ctx, dataDir)
	err = errors.Join(err, paused.leave(ctx))
	if err != nil {
		return rows, err
	}
	if err := sleep(ctx, settle); err != nil {
		return rows, err
	}
	more, err := running.runMany(ctx)
	return append(rows, more...), errors.Join(err, running.leave(ctx))
}

// grow claims sandboxes and does something with each until used is the budget. It reports
// what there was not enough of.
func (c *crowd) grow(ctx context.Context, budget float64, use func(id string) (used float64, err error)) (bound string, err error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, refillWait)
		err := c.idle(waiting, c.template, 1)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return "the node has no place for more", nil
		}
		if err != nil {
			return "", err
		}
		id, _, err := c.claim(ctx, c.template)
		if err != nil {
			return "", err
		}
		c.ids = append(c.ids, id)
		if err := c.wake(ctx, id); err != nil {
			return "", err
		}
		used, err := use(id)
		if err != nil {
			return "", err
		}
		if used >= budget {
			return fmt.Sprintf("filled %.0f MiB", used), nil
		}
	}
}

// leave deletes them.
func (c *crowd) leave(ctx context.Context) error {
	var errs []error
	for some := range slices.Chunk(c.ids, children) {
		errs = append(errs, all(some, func(id string) error { return c.remove(context.WithoutCancel(ctx), id) }))
	}
	return errors.Join(errs...)
}

// serve has each of some run a command, one after the other, and returns what that took.
func (c *crowd) serve(ctx context.Context, ids []string) (took []time.Duration, err error) {
	for _, id := range ids {
		begin := time.Now()
		if err := c.wake(ctx, id); err != nil {
			return took, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

func (c *crowd) pauseMany(ctx context.Context, dataDir string) ([]row, error) {
	var disk []float64
	sum := 0.0
	bound, err := c.grow(ctx, float64(*diskBudget), func(id string) (float64, error) {
		if _, err := c.must(ctx, http.MethodPost, sandboxes+"/"+id+"/pause", struct{}{}, nil); err != nil {
			return 0, err
		}
		used, err := diskUsage(filepath.Join(dataDir, "noded", "paused", id))
		disk = append(disk, float64(used)/mib)
		sum += float64(used) / mib
		return sum, err
	})
	if err != nil {
		return nil, err
	}
	room, err := diskRoom(dataDir)
	if err != nil {
		return nil, err
	}
	woken, err := c.serve(ctx, c.ids[:min(takenUp, len(c.ids))])
	load := fmt.Sprintf("%d paused", len(c.ids))
	return []row{
		{name: "paused sandboxes", load: load, samples: []float64{float64(len(c.ids))}, note: bound},
		{name: "  disk of each", load: load, unit: "MiB", samples: disk},
		{name: "  that the disk has room for", load: load, samples: []float64{(room + sum) / (sum / float64(len(c.ids)))}, note: "extrapolated to where the node refuses more"},
		rowOf("  resume of one to the end of a first command", load, woken),
	}, err
}

func (c *crowd) runMany(ctx context.Context) ([]row, error) {
	before, err := memoryLeft()
	if err != nil {
		return nil, err
	}
	used := 0.0
	bound, err := c.grow(ctx, float64(*memoryBudget), func(string) (float64, error) {
		left, err := memoryLeft()
		used = before - left
		return used, err
	})
	if err != nil {
		return nil, err
	}
	took, err := c.serve(ctx, c.ids)
	load := fmt.Sprintf("%d running", len(c.ids))
	each := used / float64(len(c.ids))
	return []row{
		{name: "running sandboxes", load: load, samples: []float64{float64(len(c.ids))}, note: bound},
		{name: "  memory of each", load: load, unit: "MiB", samples: []float64{each}, note: "of the machine's available, on average"},
		{name: "  that the memory has room for", load: load, samples: []float64{before / each}, note: "extrapolated"},
		rowOf("  a command in each, one after the other", load, took),
	}, err
}

// memoryLeft is what the machine has available, in MiB.
func memoryLeft() (float64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

// diskRoom is what may still be written before a node takes nothing new on, in MiB.
func diskRoom(dir string) (float64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	blocks := refused*float64(fs.Blocks) - float64(fs.Blocks-fs.Bfree)
	return max(0, min(blocks, float64(fs.Bavail))) * float64(fs.Bsize) / mib, nil
}

// diskUsage is what the files below a directory take on the disk.
func diskUsage(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		bytes += st.Blocks * 512
		return nil
	})
	return bytes, err
}
