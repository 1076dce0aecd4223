package cgroup

import (
	"google.golang.org/protobuf/proto"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
)

// Stats is the group's usage in the form that containerd's clients know: v1's
// Metrics or v2's. It answers nil for a container without a group.
func (g Group) Stats() proto.Message {
	switch {
	case g.path == "":
		return nil
	case g.unified:
		return g.statsV2()
	default:
		return g.statsV1()
	}
}

func (g Group) statsV1() *v1.Metrics {
	const nanosPerTick = 1e9 / 100 // cpuacct.stat counts in USER_HZ
	mem := g.keyed("memory", "memory.stat")
	cpu := g.keyed("cpuacct", "cpuacct.stat")
	throttle := g.keyed("cpu", "cpu.stat")
	return &v1.Metrics{
		Pids: &v1.PidsStat{Current: g.number("pids", "pids.current"), Limit: g.number("pids", "pids.max")},
		CPU: &v1.CPUStat{
			Usage: &v1.CPUUsage{
				Total:  g.number("cpuacct", "cpuacct.usage"),
				User:   cpu["user"] * nanosPerTick,
				Kernel: cpu["system"] * nanosPerTick,
			},
			Throttling: &v1.Throttle{
				Periods:          throttle["nr_periods"],
				ThrottledPeriods: throttle["nr_throttled"],
				ThrottledTime:    throttle["throttled_time"],
			},
		},
		Memory: &v1.MemoryStat{
			Cache:             mem["cache"],
			RSS:               mem["rss"],
			TotalInactiveFile: mem["total_inactive_file"],
			Usage: &v1.MemoryEntry{
				Usage:   g.number("memory", "memory.usage_in_bytes"),
				Max:     g.number("memory", "memory.max_usage_in_bytes"),
				Limit:   g.number("memory", "memory.limit_in_bytes"),
				Failcnt: g.number("memory", "memory.failcnt"),
			},
		},
		MemoryOomControl: &v1.MemoryOomControl{OomKill: g.OOMKills()},
	}
}

func (g Group) statsV2() *v2.Metrics {
	mem := g.keyed("memory", "memory.stat")
	cpu := g.keyed("cpu", "cpu.stat")
	return &v2.Metrics{
		Pids: &v2.PidsStat{Current: g.number("pids", "pids.current"), Limit: g.number("pids", "pids.max")},
		CPU: &v2.CPUStat{
			UsageUsec:     cpu["usage_usec"],
			UserUsec:      cpu["user_usec"],
			SystemUsec:    cpu["system_usec"],
			NrPeriods:     cpu["nr_periods"],
			NrThrottled:   cpu["nr_throttled"],
			ThrottledUsec: cpu["throttled_usec"],
		},
		Memory: &v2.MemoryStat{
			Anon:         mem["anon"],
			File:         mem["file"],
			Shmem:        mem["shmem"],
			InactiveFile: mem["inactive_file"],
			Usage:        g.number("memory", "memory.current"),
			UsageLimit:   g.number("memory", "memory.max"),
			MaxUsage:     g.number("memory", "memory.peak"),
		},
		MemoryEvents: &v2.MemoryEvents{OomKill: g.OOMKills()},
	}
}
