package observe

import (
	"slices"
	"time"

	"s0.run/api/internal/openapi"
	"s0.run/internal/nodeapi"
)

const (
	gauge   = openapi.SandboxRuntimeMetricKindGauge
	counter = openapi.SandboxRuntimeMetricKindCounter

	ratio   = openapi.SandboxRuntimeMetricUnitRatio
	cores   = openapi.SandboxRuntimeMetricUnitCores
	seconds = openapi.SandboxRuntimeMetricUnitSeconds
	bytes   = openapi.SandboxRuntimeMetricUnitBytes
	count   = openapi.SandboxRuntimeMetricUnitCount
)

// direction is the one dimension that there is.
const direction = "direction"

var directions = []string{"receive", "transmit"}

// metric is a figure that samples hold, or that follows from two of them.
type metric struct {
	name        string
	kind        openapi.SandboxRuntimeMetricKind
	unit        openapi.SandboxRuntimeMetricUnit
	description string
	directed    bool // has a value for each of directions
	extra       bool // told as samples alone: clients refuse series of names that they don't know

	// values reads the figure from a sample, one for each of directions if there
	// are two; none where the sample does not tell. before is the sample before, nil
	// where there is none that this one continues.
	values func(now, before *nodeapi.StatsSample) []float64
}

// metrics is everything that can be told of a sandbox.
var metrics = []metric{
	{name: "sandbox.cpu.utilization", kind: gauge, unit: ratio, description: "CPU in use, as a share of the limit.", values: cpuUtilization},
	{name: "sandbox.cpu.usage", kind: gauge, unit: cores, description: "CPU in use.", values: cpuUsage},
	{name: "sandbox.cpu.time", kind: counter, unit: seconds, description: "CPU time used.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetCpuNanos()) / 1e9 })},
	{name: "sandbox.cpu.throttled_time", kind: counter, unit: seconds, extra: true, description: "Time spent waiting for more CPU than the limit.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetCpuThrottledNanos()) / 1e9 })},
	{name: "sandbox.cpu.limit", kind: gauge, unit: cores, description: "CPU that the sandbox may use while there is some to spare.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetCpuQuotaMillis()) / 1e3 })},
	{name: "sandbox.memory.usage", kind: gauge, unit: bytes, description: "Memory in use, cached files included.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetMemoryBytes()) })},
	{name: "sandbox.memory.working_set", kind: gauge, unit: bytes, description: "Memory in use without cached files that can be dropped at once.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetMemoryWorkingSetBytes()) })},
	{name: "sandbox.memory.available", kind: gauge, unit: bytes, description: "The limit less the working set.",
		values: one(func(s *nodeapi.StatsSample) float64 {
			return float64(max(0, s.GetMemoryLimitBytes()-s.GetMemoryWorkingSetBytes()))
		})},
	{name: "sandbox.memory.limit", kind: gauge, unit: bytes, description: "Memory that the sandbox may use.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetMemoryLimitBytes()) })},
	{name: "sandbox.memory.utilization", kind: gauge, unit: ratio, description: "The working set as a share of the limit.", values: memoryUtilization},
	{name: "sandbox.memory.oom_kills", kind: counter, unit: count, extra: true, description: "Processes killed for want of memory.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetOomKills()) })},
	{name: "sandbox.network.io", directed: true, kind: counter, unit: bytes, description: "Bytes that passed the network link.",
		values: link(func(n *nodeapi.NetworkUsage) (rx, tx uint64) { return n.GetRxBytes(), n.GetTxBytes() })},
	{name: "sandbox.network.packets", directed: true, kind: counter, unit: count, extra: true, description: "Packets that passed the network link.",
		values: link(func(n *nodeapi.NetworkUsage) (rx, tx uint64) { return n.GetRxPackets(), n.GetTxPackets() })},
	{name: "sandbox.network.errors", directed: true, kind: counter, unit: count, description: "Packets that were dropped or broken.",
		values: link(func(n *nodeapi.NetworkUsage) (rx, tx uint64) { return n.GetRxErrors(), n.GetTxErrors() })},
	{name: "sandbox.network.flows", kind: counter, unit: count, extra: true, description: "Connections and exchanges of datagrams that were let begin.",
		values: judged((*nodeapi.NetworkVerdicts).GetFlows)},
	{name: "sandbox.network.denied", kind: counter, unit: count, extra: true, description: "Packets that were denied: by the policy, or because nothing opens where they went.",
		values: judged(func(v *nodeapi.NetworkVerdicts) uint64 { return v.GetDenied() + v.GetMalformed() })},
	{name: "sandbox.network.throttled", kind: counter, unit: count, extra: true, description: "Packets that were dropped because there were more than the bandwidth lets through.",
		values: judged((*nodeapi.NetworkVerdicts).GetThrottled)},
	{name: "sandbox.process.count", kind: gauge, unit: count, description: "Tasks on the host: processes and threads, the sandbox's kernel's among them. What the limit of processes counts.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetTasks()) })},
	{name: "sandbox.process.limit", kind: gauge, unit: count, extra: true, description: "Tasks that the sandbox may have.",
		values: one(func(s *nodeapi.StatsSample) float64 { return float64(s.GetTasksLimit()) })},
	{name: "sandbox.rootfs.writable.usage", kind: gauge, unit: bytes, description: "Disk that changes to the root filesystem take.",
		values: disk((*nodeapi.DiskUsage).GetBytes)},
	{name: "sandbox.rootfs.writable.limit", kind: gauge, unit: bytes, extra: true, description: "Disk that changes to the root filesystem may take; 0: as much as there is.",
		values: disk((*nodeapi.DiskUsage).GetLimitBytes)},
}

// unsupported are names that clients know and nobody can tell: the upper layer of
// a root filesystem is one file for the host.
var unsupported = []string{"sandbox.rootfs.writable.inodes"}

// dimensions are those of a metric's n-th value.
func (m *metric) dimensions(n int) map[string]string {
	if !m.directed {
		return nil
	}
	return map[string]string{direction: directions[n]}
}

func one(read func(*nodeapi.StatsSample) float64) func(now, _ *nodeapi.StatsSample) []float64 {
	return func(now, _ *nodeapi.StatsSample) []float64 { return []float64{read(now)} }
}

func link(read func(*nodeapi.NetworkUsage) (rx, tx uint64)) func(now, _ *nodeapi.StatsSample) []float64 {
	return func(now, _ *nodeapi.StatsSample) []float64 {
		if now.GetNetwork() == nil {
			return nil
		}
		rx, tx := read(now.GetNetwork())
		return []float64{float64(rx), float64(tx)}
	}
}

func judged(read func(*nodeapi.NetworkVerdicts) uint64) func(now, _ *nodeapi.StatsSample) []float64 {
	return func(now, _ *nodeapi.StatsSample) []float64 {
		if now.GetNetwork().GetVerdicts() == nil {
			return nil
		}
		return []float64{float64(read(now.GetNetwork().GetVerdicts()))}
	}
}

func disk(read func(*nodeapi.DiskUsage) int64) func(now, _ *nodeapi.StatsSample) []float64 {
	return func(now, _ *nodeapi.StatsSample) []float64 {
		if now.GetDisk() == nil {
			return nil
		}
		return []float64{float64(read(now.GetDisk()))}
	}
}

func cpuUsage(now, before *nodeapi.StatsSample) []float64 {
	if before == nil {
		return nil
	}
	return []float64{float64(now.GetCpuNanos()-before.GetCpuNanos()) / float64(now.GetUnixNano()-before.GetUnixNano())}
}

func cpuUtilization(now, before *nodeapi.StatsSample) []float64 {
	used := cpuUsage(now, before)
	if used == nil || now.GetCpuQuotaMillis() <= 0 {
		return nil
	}
	return []float64{used[0] * 1e3 / float64(now.GetCpuQuotaMillis())}
}

func memoryUtilization(now, _ *nodeapi.StatsSample) []float64 {
	if now.GetMemoryLimitBytes() <= 0 {
		return nil
	}
	return []float64{float64(now.GetMemoryWorkingSetBytes()) / float64(now.GetMemoryLimitBytes())}
}

// Catalog lists what series there are.
func Catalog() openapi.SandboxRuntimeMetricsCatalog {
	var list []openapi.SandboxRuntimeMetricDescriptor
	for _, m := range metrics {
		if m.extra {
			continue
		}
		dimensions := []string{}
		if m.directed {
			dimensions = []string{direction}
		}
		list = append(list, openapi.SandboxRuntimeMetricDescriptor{
			Name: openapi.SandboxRuntimeMetricName(m.name), Kind: m.kind, Unit: m.unit, Dimensions: dimensions, Description: m.description,
		})
	}
	return openapi.SandboxRuntimeMetricsCatalog{Metrics: list}
}

// named finds metrics by their names, in the catalog's order; without names all
// that take takes.
func named(names []string, take func(*metric) bool) (found []*metric, unknown string) {
	for _, name := range names {
		if !slices.ContainsFunc(metrics, func(m metric) bool { return m.name == name && take(&m) }) {
			return nil, name
		}
	}
	for i := range metrics {
		if m := &metrics[i]; take(m) && (len(names) == 0 || slices.Contains(names, m.name)) {
			found = append(found, m)
		}
	}
	return found, ""
}

// moment is a sample, and the one that it continues.
type moment struct {
	*nodeapi.StatsSample
	before *nodeapi.StatsSample // nil: counters have begun anew, or nobody looked for a while
	reset  bool                 // of the two the former
}

func (m moment) at() time.Time { return time.Unix(0, m.GetUnixNano()).UTC() }

// moments puts samples in a row, oldest first, as far as they are in order.
func moments(resp *nodeapi.StatsResponse) []moment {
	hole := holeOf(resp)
	var row []moment
	var last *nodeapi.StatsSample
	for _, s := range resp.GetSamples() {
		m := moment{StatsSample: s}
		switch {
		case last == nil:
		case s.GetUnixNano() <= last.GetUnixNano():
			continue
		case s.GetGeneration() != last.GetGeneration() || s.GetCpuNanos() < last.GetCpuNanos():
			m.reset = true
		case s.GetUnixNano()-last.GetUnixNano() <= int64(hole):
			m.before = last
		}
		row, last = append(row, m), s
	}
	return row
}

// holeOf is the longest time between two samples that nobody has to explain.
func holeOf(resp *nodeapi.StatsResponse) time.Duration {
	return 3 * time.Duration(max(resp.GetIntervalMillis(), 1000)) * time.Millisecond
}
