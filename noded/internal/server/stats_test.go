package server

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/netns"
	"s0.run/noded/internal/stats"
)

func TestStats(t *testing.T) {
	t.Parallel()
	n := start(t, nil)
	slot := n.slot()
	_, err := n.rpc.Stats(n.ctx(), &nodeapi.StatsRequest{Id: slot})
	code(t, "a slot that nobody has claimed", err, connect.CodeNotFound)
	id := n.sandbox()
	before := time.Now()
	resp, err := n.rpc.Stats(n.ctx(), &nodeapi.StatsRequest{Id: id, Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetSamples()) != 1 || resp.GetIntervalMillis() != 15_000 {
		t.Fatalf("%v", resp)
	}
	s := resp.GetSamples()[0]
	if s.GetUnixNano() < before.UnixNano() || s.GetGeneration() != 1 || s.GetMemoryLimitBytes() != spec.MemoryBytes || s.GetCpuQuotaMillis() != 1000 {
		t.Errorf("%v", s)
	}
	_, err = n.rpc.Stats(n.ctx(), &nodeapi.StatsRequest{Id: id, Generation: 2})
	code(t, "another generation", err, connect.CodeFailedPrecondition)
	_, err = n.rpc.Stats(n.ctx(), &nodeapi.StatsRequest{Id: "../x"})
	code(t, "no id", err, connect.CodeInvalidArgument)
	unknown, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.rpc.Stats(n.ctx(), &nodeapi.StatsRequest{Id: string(unknown)})
	code(t, "unknown", err, connect.CodeNotFound)
}

// Every figure arrives in its own place, and what is not known is not 0.
func TestSamplesOnTheWire(t *testing.T) {
	t.Parallel()
	w := sampleToWire(stats.Sample{
		Time: time.Unix(0, 1), Generation: 2, Usage: cgroup.Stats{CPU: 3, Throttled: 4, MemoryBytes: 6, WorkingSet: 7, OOMKills: 9, Pids: 10},
		Limits: cgroup.Limits{CPUMillis: 5000, MemoryBytes: 8, Pids: 11},
	})
	want := [...]int64{1, 2, 3, 4, 5000, 6, 7, 8, 9, 10, 11}
	got := [...]int64{
		w.GetUnixNano(), int64(w.GetGeneration()), w.GetCpuNanos(), w.GetCpuThrottledNanos(), w.GetCpuQuotaMillis(), w.GetMemoryBytes(),
		w.GetMemoryWorkingSetBytes(), w.GetMemoryLimitBytes(), w.GetOomKills(), w.GetTasks(), w.GetTasksLimit(),
	}
	if got != want || w.Disk != nil || w.Network != nil {
		t.Errorf("%v, want %v; %v", got, want, w)
	}
	w = sampleToWire(stats.Sample{Disk: &stats.Disk{Bytes: 1, Limit: 2}, Traffic: &netns.Traffic{RxBytes: 1, TxBytes: 2, RxPackets: 3, TxPackets: 4, RxErrors: 5, TxErrors: 6}})
	u := w.GetNetwork()
	if w.GetDisk().GetBytes() != 1 || w.GetDisk().GetLimitBytes() != 2 ||
		[...]uint64{u.GetRxBytes(), u.GetTxBytes(), u.GetRxPackets(), u.GetTxPackets(), u.GetRxErrors(), u.GetTxErrors()} != [...]uint64{1, 2, 3, 4, 5, 6} {
		t.Errorf("%v", w)
	}
	counters := &nodeapi.SandboxCounters{Id: "local-a", Generation: 2, RxBytes: 3, TxBytes: 4, DiskBytes: 5}
	if c := countersToWire("local-a", stats.Sample{Generation: 2, Traffic: &netns.Traffic{RxBytes: 3, TxBytes: 4}, Disk: &stats.Disk{Bytes: 5}}); !proto.Equal(c, counters) {
		t.Errorf("%v, want %v", c, counters)
	}
	if c := countersToWire("local-a", stats.Sample{Generation: 2}); !proto.Equal(c, &nodeapi.SandboxCounters{Id: "local-a", Generation: 2}) {
		t.Errorf("%v of nothing", c)
	}
}
