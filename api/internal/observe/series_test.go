package observe

import (
	"math"
	"slices"
	"testing"
	"time"

	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
)

var began = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

// at is a sample some seconds after began.
func at(seconds int, change func(*nodeapi.StatsSample)) *nodeapi.StatsSample {
	s := &nodeapi.StatsSample{
		UnixNano: began.Add(time.Duration(seconds) * time.Second).UnixNano(), Generation: 1,
		CpuNanos: int64(seconds) * 5e8, CpuQuotaMillis: 2000, MemoryBytes: 300, MemoryWorkingSetBytes: 250, MemoryLimitBytes: 1000, Tasks: 7,
		Network: &nodeapi.NetworkUsage{RxBytes: uint64(100 * seconds), TxBytes: uint64(10 * seconds)},
	}
	if change != nil {
		change(s)
	}
	return s
}

func samples(list ...*nodeapi.StatsSample) *nodeapi.StatsResponse {
	return &nodeapi.StatsResponse{Samples: list, IntervalMillis: 15_000}
}

func planOf(t *testing.T, q SeriesQuery) plan {
	t.Helper()
	p, err := q.plan(began.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlans(t *testing.T) {
	t.Parallel()
	p := planOf(t, SeriesQuery{})
	if p.End.Sub(p.Start) != time.Hour || p.step != 15*time.Second || len(p.metrics) != len(Catalog().Metrics) || p.Statistic != auto {
		t.Errorf("%+v", p)
	}
	for _, c := range []struct {
		q    SeriesQuery
		step time.Duration
	}{
		{SeriesQuery{MaxPoints: 10}, 6 * time.Minute},
		{SeriesQuery{StepSeconds: 60}, time.Minute},
		{SeriesQuery{StepSeconds: 1, MaxPoints: 1000}, 4 * time.Second},
		{SeriesQuery{Range: Range{Start: began.Add(time.Hour - time.Second)}, StepSeconds: 1}, time.Second},
		{SeriesQuery{Range: Range{Start: began.Add(time.Hour - 30*24*time.Hour)}}, 3 * time.Hour},
	} {
		if p := planOf(t, c.q); p.step != c.step {
			t.Errorf("%+v: step %v, want %v", c.q, p.step, c.step)
		}
	}
	if p := planOf(t, SeriesQuery{Statistic: rate}); len(p.metrics) != 3 {
		t.Errorf("%d metrics have a rate", len(p.metrics))
	}
	for _, q := range []SeriesQuery{
		{Range: Range{Start: began.Add(2 * time.Hour)}}, {Range: Range{Start: began, End: began}}, {Range: Range{Start: began.Add(-31 * 24 * time.Hour)}},
		{MaxPoints: -1}, {MaxPoints: 1001}, {StepSeconds: -1}, {StepSeconds: math.MaxInt}, {Statistic: "median"}, {Names: []string{"sandbox.cpu"}},
		{Names: []string{"sandbox.process.limit"}}, {Statistic: rate, Names: []string{"sandbox.memory.usage"}}, {Names: make([]string, 51)},
	} {
		if p, err := q.plan(began.Add(time.Hour)); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%+v: %+v, %v", q, p, err)
		}
	}
}

// points is what a series says, segment by segment.
func points(p plan, name string, n int, resp *nodeapi.StatsResponse) (out [][]float64) {
	i := slices.IndexFunc(p.metrics, func(m *metric) bool { return m.name == name })
	all := p.series(p.metrics[i], moments(resp))
	if n >= len(all) {
		return nil
	}
	for _, segment := range all[n].Segments {
		var values []float64
		for _, point := range segment.Points {
			values = append(values, point.Value)
		}
		out = append(out, values)
	}
	return out
}

func same(t *testing.T, what string, got, want [][]float64) {
	t.Helper()
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestSeries(t *testing.T) {
	t.Parallel()
	p := planOf(t, SeriesQuery{Range: Range{Start: began, End: began.Add(2 * time.Minute)}, StepSeconds: 30})
	steady := samples(at(0, nil), at(15, nil), at(30, nil), at(45, nil), at(60, nil))
	same(t, "cores", points(p, "sandbox.cpu.usage", 0, steady), [][]float64{{.5, .5, .5}})
	same(t, "share", points(p, "sandbox.cpu.utilization", 0, steady), [][]float64{{.25, .25, .25}})
	same(t, "rate of CPU time", points(p, "sandbox.cpu.time", 0, steady), [][]float64{{.5, .5, .5}})
	same(t, "received", points(p, "sandbox.network.io", 0, steady), [][]float64{{100, 100, 100}})
	same(t, "sent", points(p, "sandbox.network.io", 1, steady), [][]float64{{10, 10, 10}})
	same(t, "memory", points(p, "sandbox.memory.utilization", 0, steady), [][]float64{{.25, .25, .25}})
	same(t, "available", points(p, "sandbox.memory.available", 0, steady), [][]float64{{750, 750, 750}})
	same(t, "no disk", points(p, "sandbox.rootfs.writable.usage", 0, steady), nil)

	// A hole, and counters that begin anew, each begin a segment; no rate crosses them.
	broken := samples(at(0, nil), at(15, nil), at(75, nil), at(90, nil), at(105, func(s *nodeapi.StatsSample) {
		s.Generation, s.CpuNanos, s.Network = 2, 0, &nodeapi.NetworkUsage{}
	}), at(119, func(s *nodeapi.StatsSample) {
		s.Generation, s.CpuNanos, s.Network = 2, 28e9, &nodeapi.NetworkUsage{RxBytes: 1400}
	}))
	same(t, "cores", points(p, "sandbox.cpu.usage", 0, broken), [][]float64{{.5}, {.5}, {2}})
	same(t, "received", points(p, "sandbox.network.io", 0, broken), [][]float64{{100}, {100}, {100}})
	same(t, "tasks", points(p, "sandbox.process.count", 0, broken), [][]float64{{7}, {7, 7}, {7}})
	var reasons []string
	for _, h := range p.holes(moments(broken), holeOf(broken)) {
		reasons = append(reasons, string(h.reason))
	}
	if !slices.Equal(reasons, []string{"no_data", "series_reset"}) {
		t.Errorf("%v", reasons)
	}
}

func TestStatistics(t *testing.T) {
	t.Parallel()
	resp := samples()
	for i, v := range []int64{100, 400, 200} {
		resp.Samples = append(resp.Samples, at(15*i, func(s *nodeapi.StatsSample) {
			s.MemoryBytes, s.Network = v, &nodeapi.NetworkUsage{RxBytes: uint64(150 * i * i)}
		}))
	}
	for statistic, want := range map[openapi.SandboxRuntimeMetricStatistic][2]float64{
		auto: {700. / 3, 20}, average: {700. / 3, 20}, minimum: {100, 10}, maximum: {400, 30}, last: {200, 600},
	} {
		p := planOf(t, SeriesQuery{Range: Range{Start: began, End: began.Add(time.Minute)}, MaxPoints: 1, Statistic: statistic})
		same(t, string(statistic), points(p, "sandbox.memory.usage", 0, resp), [][]float64{{want[0]}})
		same(t, string(statistic)+" of a counter", points(p, "sandbox.network.io", 0, resp), [][]float64{{want[1]}})
	}
}

// Whatever a node says, no point is outside of the range, none is beyond the
// number, and none is no number: JSON has no word for it.
func FuzzSeries(f *testing.F) {
	f.Add(int64(0), int64(15), int64(1), int64(-5), uint64(3), 7)
	f.Add(int64(math.MaxInt64), int64(math.MinInt64), int64(math.MaxInt64), int64(0), uint64(math.MaxUint64), 1)
	f.Fuzz(func(t *testing.T, t1, t2, cpu1, cpu2 int64, rx uint64, maxPoints int) {
		q := SeriesQuery{Range: Range{Start: began, End: began.Add(time.Hour)}, MaxPoints: maxPoints}
		p, err := q.plan(began)
		if err != nil {
			return
		}
		resp := samples(
			&nodeapi.StatsSample{UnixNano: t1, CpuNanos: cpu1, CpuQuotaMillis: cpu2, MemoryBytes: cpu1, Network: &nodeapi.NetworkUsage{RxBytes: rx}},
			&nodeapi.StatsSample{UnixNano: t2, CpuNanos: cpu2, CpuQuotaMillis: cpu1, MemoryLimitBytes: cpu2, Network: &nodeapi.NetworkUsage{TxBytes: rx}},
		)
		row := slices.DeleteFunc(moments(resp), func(m moment) bool { return !p.holds(m.at()) })
		for _, m := range p.metrics {
			for _, s := range p.series(m, row) {
				n := 0
				for _, segment := range s.Segments {
					for _, point := range segment.Points {
						n++
						if math.IsNaN(point.Value) || math.IsInf(point.Value, 0) || point.Time.Before(p.Start) || !point.Time.Before(p.End) {
							t.Errorf("%s: %+v", m.name, point)
						}
					}
				}
				if n > p.MaxPoints+len(s.Segments) {
					t.Errorf("%s: %d points, want %d", m.name, n, p.MaxPoints)
				}
			}
		}
	})
}

func TestRanges(t *testing.T) {
	t.Parallel()
	year := func(y int) *time.Time { return new(time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC)) }
	for _, c := range []struct {
		start, end *time.Time
		want       Range
	}{
		{nil, nil, Range{}},
		{year(2026), year(2027), Range{*year(2026), *year(2027)}},
		{year(1), year(9999), Range{}},
		{year(9999), year(1), Range{latest, earliest}},
	} {
		if got := NewRange(c.start, c.end); !got.Start.Equal(c.want.Start) || !got.End.Equal(c.want.End) {
			t.Errorf("%v to %v: %v, want %v", c.start, c.end, got, c.want)
		}
	}
}
