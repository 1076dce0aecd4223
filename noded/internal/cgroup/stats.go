package cgroup

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"s0.run/internal/sandbox"
)

// Stats is what a sandbox uses now, and has used. All of the sandbox is in it,
// the sentry and the gofer, too.
type Stats struct {
	CPU         time.Duration
	Throttled   time.Duration // spent waiting for more CPU than the quota gives
	MemoryBytes int64
	WorkingSet  int64 // MemoryBytes without files' pages that the kernel can drop at once
	Pids        int64 // tasks on the host
	OOMKills    int64
}

// counter is where a figure is kept: in a file alone, or in one of "key number" lines.
type counter struct {
	controller, file, key string
	optional              bool // 0 where the kernel does not count it
}

// counters lists the figures of Stats, those of one file next to each other: CPU
// and throttled time, memory, its idle file pages, OOM kills, tasks.
func (l Layout) counters() (list [6]counter, unit time.Duration) {
	if l.Unified != "" {
		return [6]counter{
			{"cpu", "cpu.stat", "usage_usec", false}, {"cpu", "cpu.stat", "throttled_usec", true},
			{"memory", "memory.current", "", false}, {"memory", "memory.stat", "inactive_file", true}, {"memory", "memory.events", "oom_kill", false},
			{"pids", "pids.current", "", false},
		}, time.Microsecond
	}
	return [6]counter{
		{"cpuacct", "cpuacct.usage", "", false}, {"cpu", "cpu.stat", "throttled_time", true},
		{"memory", "memory.usage_in_bytes", "", false}, {"memory", "memory.stat", "total_inactive_file", true}, {"memory", "memory.oom_control", "oom_kill", false},
		{"pids", "pids.current", "", false},
	}, time.Nanosecond
}

// Stats reads the group's counters.
func (g *Groups) Stats(id sandbox.ID) (Stats, error) {
	list, unit := g.layout.counters()
	var values [len(list)]int64
	var path, content string
	for i, c := range list {
		if p := filepath.Join(g.layout.dir(c.controller, g.Path(id)), c.file); p != path {
			b, err := os.ReadFile(p)
			if err != nil && !c.optional {
				return Stats{}, fmt.Errorf("usage of %s: %w", id, err)
			}
			path, content = p, string(b)
		}
		v, err := c.read(content)
		if err != nil {
			return Stats{}, fmt.Errorf("usage of %s: %s: %w", id, path, err)
		}
		values[i] = v
	}
	return Stats{
		CPU: time.Duration(values[0]) * unit, Throttled: time.Duration(values[1]) * unit,
		MemoryBytes: values[2], WorkingSet: max(0, values[2]-values[3]), OOMKills: values[4], Pids: values[5],
	}, nil
}

// read finds the figure in what its file holds.
func (c counter) read(content string) (int64, error) {
	if c.key == "" {
		return number(content)
	}
	for line := range strings.Lines(content) {
		if v, ok := strings.CutPrefix(line, c.key); ok && strings.HasPrefix(v, " ") {
			return number(v)
		}
	}
	if c.optional {
		return 0, nil
	}
	return 0, fmt.Errorf("no %q", c.key)
}

// number reads what may be larger than any figure of ours.
func number(s string) (int64, error) {
	v, err := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
	return int64(min(v, math.MaxInt64)), err
}

// Processes lists the sandbox's processes on the host.
func (g *Groups) Processes(id sandbox.ID) ([]int, error) {
	pids, err := members(g.layout.dir("pids", g.Path(id)))
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", id, err)
	}
	return pids, nil
}
