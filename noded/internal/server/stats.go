package server

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/stats"
)

// Stats implements the node API.
func (s *Server) Stats(ctx context.Context, req *nodeapi.StatsRequest) (*nodeapi.StatsResponse, error) {
	id, err := parseID(req.GetId())
	if err != nil {
		return nil, s.fail("Stats", err)
	}
	samples, err := s.cfg.Stats.Samples(ctx, id, sandbox.Generation(req.GetGeneration()), time.Unix(0, req.GetSinceUnixNano()))
	if err != nil {
		return nil, s.fail("Stats", err)
	}
	resp := &nodeapi.StatsResponse{IntervalMillis: stats.Interval.Milliseconds()}
	for _, sample := range samples {
		resp.Samples = append(resp.Samples, sampleToWire(sample))
	}
	return resp, nil
}

// countersAtOnce is what one message of ReadCounters carries.
const countersAtOnce = 1_000

// ReadCounters implements the node API. Of one sandbox older generations come first.
func (s *Server) ReadCounters(_ context.Context, _ *nodeapi.ReadCountersRequest, stream *connect.ServerStream[nodeapi.ReadCountersResponse]) error {
	var list []*nodeapi.SandboxCounters
	for _, last := range s.cfg.Stats.Finals() {
		list = append(list, finalToWire(last))
	}
	for id, sample := range s.cfg.Stats.Latest() {
		list = append(list, countersToWire(id, sample))
	}
	for part := range slices.Chunk(list, countersAtOnce) {
		if err := stream.Send(&nodeapi.ReadCountersResponse{Counters: part}); err != nil {
			return err
		}
	}
	return nil
}

func countersToWire(id sandbox.ID, s stats.Sample) *nodeapi.SandboxCounters {
	w := &nodeapi.SandboxCounters{Id: string(id), Generation: uint64(s.Generation)}
	if s.Traffic != nil {
		w.RxBytes, w.TxBytes = int64(s.Traffic.RxBytes), int64(s.Traffic.TxBytes)
	}
	if s.Disk != nil {
		w.DiskBytes = s.Disk.Bytes
	}
	return w
}

func finalToWire(f stats.Final) *nodeapi.SandboxCounters {
	w := &nodeapi.SandboxCounters{
		Id: string(f.ID), Generation: uint64(f.Generation),
		RxBytes: int64(f.Traffic.RxBytes), TxBytes: int64(f.Traffic.TxBytes), DiskBytes: nodeapi.NotCounted, Final: true,
	}
	if f.Disk != nil {
		w.DiskBytes = f.Disk.Bytes
	}
	return w
}

func sampleToWire(s stats.Sample) *nodeapi.StatsSample {
	w := &nodeapi.StatsSample{
		UnixNano: s.Time.UnixNano(), Generation: uint64(s.Generation),
		CpuNanos: int64(s.Usage.CPU), CpuThrottledNanos: int64(s.Usage.Throttled), CpuQuotaMillis: s.Limits.QuotaMillis(),
		MemoryBytes: s.Usage.MemoryBytes, MemoryWorkingSetBytes: s.Usage.WorkingSet, MemoryLimitBytes: s.Limits.MemoryBytes,
		OomKills: s.Usage.OOMKills, Tasks: s.Usage.Pids, TasksLimit: s.Limits.Pids,
	}
	if d := s.Disk; d != nil {
		w.Disk = &nodeapi.DiskUsage{Bytes: d.Bytes, LimitBytes: d.Limit}
	}
	if t := s.Traffic; t != nil {
		w.Network = &nodeapi.NetworkUsage{
			RxBytes: t.RxBytes, TxBytes: t.TxBytes, RxPackets: t.RxPackets, TxPackets: t.TxPackets, RxErrors: t.RxErrors, TxErrors: t.TxErrors,
		}
		if v := s.Verdicts; v != nil {
			w.Network.Verdicts = &nodeapi.NetworkVerdicts{Flows: v.Flows, Denied: v.Denied, Malformed: v.Malformed, Throttled: v.Throttled}
		}
	}
	return w
}
