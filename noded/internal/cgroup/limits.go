package cgroup

import "fmt"

// Limits is what a sandbox may use.
type Limits struct {
	MemoryBytes int64 // everything of the sandbox: its processes, the sentry, the gofer, its page cache
	CPUMillis   int64 // its share when CPU is scarce; see burstMillis
	Pids        int64 // tasks on the host
	// Idle gives the group the least CPU share there is: a slot that nobody has
	// claimed runs when nothing else wants to, so that warming never delays a
	// claim. The other limits are as ever.
	Idle bool
	// Hasty lifts the quota, and the bound of the disk: what runs is the node's own work,
	// which somebody waits for.
	Hasty bool
}

const (
	// burstMillis is what every sandbox may use while CPU is to spare: a share
	// of an eighth of a core must not make an interpreter take a second to start.
	burstMillis = 1000
	periodUsec  = 100_000
	minShares   = 2
	maxShares   = 262144
)

// A setting is one value for one control file.
type setting struct {
	controller, file, value string
	// optional settings are skipped where the kernel does not have the file.
	optional bool
}

// settings lists what to write for the limits, the CPU share first: it decides
// how soon everything else of a claim gets to run.
func (l Layout) settings(want Limits) []setting {
	disk := l.Disk.settings(l, want.Hasty)
	if l.Unified == "" {
		return append([]setting{
			l.share(want.shares()),
			{controller: "cpu", file: "cpu.cfs_quota_us", value: want.quota("-1")}, // the period is 100 ms unless somebody changed it
			{controller: "memory", file: "memory.limit_in_bytes", value: fmt.Sprint(want.MemoryBytes)},
			{controller: "memory", file: "memory.memsw.limit_in_bytes", value: fmt.Sprint(want.MemoryBytes), optional: true}, // no swap
			{controller: "pids", file: "pids.max", value: fmt.Sprint(want.Pids)},
		}, disk...)
	}
	return append([]setting{
		l.share(want.shares()),
		{controller: "cpu", file: "cpu.max", value: fmt.Sprint(want.quota("max"), " ", periodUsec)},
		{controller: "memory", file: "memory.max", value: fmt.Sprint(want.MemoryBytes)},
		{controller: "memory", file: "memory.swap.max", value: "0", optional: true},
		{controller: "memory", file: "memory.oom.group", value: "1", optional: true}, // half a sandbox is worth nothing
		{controller: "pids", file: "pids.max", value: fmt.Sprint(want.Pids)},
	}, disk...)
}

// share is how much a group has of the CPU when others want it, too.
func (l Layout) share(shares int64) setting {
	if l.Unified == "" {
		return setting{controller: "cpu", file: "cpu.shares", value: fmt.Sprint(shares)}
	}
	return setting{controller: "cpu", file: "cpu.weight", value: fmt.Sprint(weight(shares))}
}

// QuotaMillis is the CPU that a sandbox may use at most, when there is some to spare.
func (want Limits) QuotaMillis() int64 { return max(want.CPUMillis, burstMillis) }

// quota is what a period has, in microseconds, or none.
func (want Limits) quota(none string) string {
	if want.Hasty {
		return none
	}
	return fmt.Sprint(want.QuotaMillis() * periodUsec / 1000)
}

func (want Limits) shares() int64 {
	if want.Idle {
		return minShares
	}
	return min(max(want.CPUMillis*1024/1000, minShares), maxShares)
}

// weight maps v1's shares to v2's weights as runc, runsc and Kubernetes do.
func weight(shares int64) int64 { return 1 + (shares-minShares)*9999/(maxShares-minShares) }

// changed leaves out what is already so: a claim then costs one or two writes.
func changed(from, to []setting) []setting {
	var out []setting
	for i, s := range to {
		if s != from[i] {
			out = append(out, s)
		}
	}
	return out
}
