package bench

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// workingSets are what a sandbox holds in memory when it is paused, in MiB.
var workingSets = []int{0, 16, 64, 256}

// settle is how long what a pause leaves to be cleared away may take.
const settle = time.Second

// pauses measures how long it takes to save a sandbox of a working set, and to have it
// run a command again, with its image in the page cache and without, and where the
// time goes.
func (c *client) pauses(ctx context.Context, dataDir, adminSocket, template string, n int) (rows []row, err error) {
	for _, size := range workingSets {
		before, err := steps(ctx, adminSocket)
		if err != nil {
			return rows, err
		}
		more, err := c.pauseOf(ctx, dataDir, template, size, n)
		if err != nil {
			return rows, fmt.Errorf("of %d MiB: %w", size, err)
		}
		after, err := steps(ctx, adminSocket)
		if err != nil {
			return rows, err
		}
		rows = append(rows, more...)
		for _, step := range []string{"pause/intent", "pause/quiesce", "pause/checkpoint", "resume/netns", "resume/start", "resume/handshake", "resume/commit"} {
			operation, name, _ := strings.Cut(step, "/")
			rows = append(rows, row{
				name: fmt.Sprintf("  %s of a %s", name, operation), load: more[0].load, unit: "ms",
				samples: []float64{after.since(before, operation, name)}, note: "mean of all",
			})
		}
	}
	return rows, nil
}

func (c *client) pauseOf(ctx context.Context, dataDir, template string, size, n int) ([]row, error) {
	id, _, err := c.claim(ctx, template)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.remove(context.WithoutCancel(ctx), id) }()
	hold := fmt.Sprintf("import os, time; held = bytearray(os.urandom(1 << 20) * %d); print(len(held), flush=True); time.sleep(1 << 20)", size)
	if _, err := c.command(ctx, id, false, "python3", "-c", hold); err != nil {
		return nil, err
	}
	if err := sleep(ctx, time.Second); err != nil { // it fills its memory meanwhile
		return nil, err
	}
	var pause, warm, cold []time.Duration
	for i := range 2 * n {
		a, err := c.must(ctx, http.MethodPost, sandboxes+"/"+id+"/pause", struct{}{}, nil)
		if err != nil {
			return nil, err
		}
		pause = append(pause, a.took)
		resume := &warm
		if i%2 == 1 {
			resume = &cold
			if err := evict(filepath.Join(dataDir, "noded", "paused", id)); err != nil {
				return nil, err
			}
		}
		if err := sleep(ctx, settle); err != nil {
			return nil, err
		}
		begin := time.Now()
		if _, err := c.command(ctx, id, true, "true"); err != nil { // wakes it
			return nil, err
		}
		*resume = append(*resume, time.Since(begin))
	}
	load := fmt.Sprintf("%d MiB in use", size)
	result := []row{
		rowOf("pause, by HTTP", load, pause),
		rowOf("resume to the end of a first command, warm page cache", load, warm),
		rowOf("resume to the end of a first command, cold page cache", load, cold),
	}
	if size == 256 {
		result[1].budget = budget{p50: 100}
	}
	return result, nil
}

// evict drops the files below a directory from the page cache.
func evict(dir string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}
