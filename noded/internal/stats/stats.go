// Package stats measures what claimed sandboxes use.
//
// A [Sampler] looks at every claimed sandbox at a fixed pace and keeps the last
// hour's samples in memory, and it looks at one at once when somebody asks.
// Everything is read on the host, from control groups, links and files: no
// sandbox is woken for it, and none has a say in its figures. Slots that nobody
// has claimed are not looked at. What is kept goes with the process, and with the
// sandbox; but what a generation sent and received in all is told for a while after its
// end, so that whoever counts misses nothing of the shortest one.
package stats

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/netns"
)

const (
	// Interval is the pace of the samples.
	Interval = 15 * time.Second
	// Kept is how many samples of a sandbox are kept: an hour.
	Kept = int(time.Hour / Interval)
	// fresh is how old a sample may be for a caller who wants to know now.
	fresh = time.Second
	// told is how long the last figures of a generation are there for those who count:
	// many times what one of them takes to come round. maxOver bounds how many wait.
	told    = 10 * time.Minute
	maxOver = 1 << 16
)

// Sample is what a sandbox uses and has used at a time. Counters begin with its
// generation.
type Sample struct {
	Time       time.Time
	Generation sandbox.Generation
	Usage      cgroup.Stats
	Limits     cgroup.Limits
	Disk       *Disk             // nil where it can't be told
	Traffic    *netns.Traffic    // nil where it can't be told
	Verdicts   *netdapi.Counters // likewise
}

// Disk is what a sandbox has written to its root filesystem.
type Disk struct {
	Bytes, Limit int64 // without a limit: 0
}

// Sandboxes tells whom to measure; see [lifecycle.Manager].
type Sandboxes interface {
	Running(id sandbox.ID, gen sandbox.Generation) (lifecycle.Running, error)
	AllRunning() []lifecycle.Running
}

// Groups reads control groups; see [cgroup.Groups].
type Groups interface {
	Stats(id sandbox.ID) (cgroup.Stats, error)
	Processes(id sandbox.ID) ([]int, error)
}

// Verdicts reads what the network daemon did; see [egress.Agent].
type Verdicts interface {
	Counters(ctx context.Context) (map[sandbox.ID]netdapi.Counters, error)
}

// Traffic reads what passed sandboxes' links; see [netns.Net].
type Traffic interface {
	Traffic() (map[sandbox.ID]netns.Traffic, error)
	TrafficOf(s netns.Slot) (netns.Traffic, error)
}

// Config wires a Sampler. Every field is required.
type Config struct {
	Sandboxes Sandboxes
	Groups    Groups
	Traffic   Traffic
	Verdicts  Verdicts
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

// Sampler is safe for concurrent use.
type Sampler struct {
	cfg      Config
	now      func() time.Time
	sweeps   prometheus.Histogram
	failures prometheus.Counter

	mu     sync.Mutex
	series map[sandbox.ID]*series
	over   []*Final // oldest first
	last   map[generation]*Final
}

type generation struct {
	id  sandbox.ID
	gen sandbox.Generation
}

// Final is what a generation that is over has sent and received in all.
type Final struct {
	Time       time.Time
	ID         sandbox.ID
	Generation sandbox.Generation
	Traffic    netns.Traffic
	Disk       *Disk // as it was seen last; nil: never
}

// series is what is kept of one sandbox.
type series struct {
	samples []Sample // a ring once it has Kept
	next    int      // of the ring: the oldest
	upper   *upper
}

// New makes a sampler without samples.
func New(cfg Config) *Sampler {
	s := &Sampler{
		cfg: cfg, now: time.Now, series: map[sandbox.ID]*series{}, last: map[generation]*Final{},
		sweeps: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "s0_node_sample_seconds", Help: "Time to take a sample of every claimed sandbox.", Buckets: prometheus.ExponentialBuckets(.001, 3, 9),
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "s0_node_sample_failures_total", Help: "Samples that could not be taken."}),
	}
	cfg.Metrics.MustRegister(s.sweeps, s.failures)
	return s
}

// Run takes samples until ctx ends.
func (s *Sampler) Run(ctx context.Context) error {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.sweep(ctx)
		}
	}
}

// sweep takes a sample of every claimed sandbox and forgets those that are gone.
func (s *Sampler) sweep(ctx context.Context) {
	began := time.Now()
	defer func() { s.sweeps.Observe(time.Since(began).Seconds()) }()
	all := s.cfg.Sandboxes.AllRunning()
	traffic, err := s.cfg.Traffic.Traffic()
	if err != nil {
		s.cfg.Log.Warn("sampling without network counters", "err", err)
	}
	verdicts := s.verdicts(ctx)
	claimed := make(map[sandbox.ID]bool, len(all))
	for _, r := range all {
		claimed[r.ID] = true
		if ctx.Err() != nil {
			return
		}
		var passed link
		if t, ok := traffic[r.ID]; ok {
			passed.traffic = &t
		}
		if v, ok := verdicts[r.ID]; ok {
			passed.verdicts = &v
		}
		s.keep(r, passed)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.series {
		if !claimed[id] {
			delete(s.series, id)
		}
	}
}

// link is what is known of one.
type link struct {
	traffic  *netns.Traffic
	verdicts *netdapi.Counters
}

// verdicts are none where the network daemon does not tell.
func (s *Sampler) verdicts(ctx context.Context) map[sandbox.ID]netdapi.Counters {
	all, err := s.cfg.Verdicts.Counters(ctx)
	if err != nil {
		s.cfg.Log.Warn("sampling without verdicts", "err", err)
	}
	return all
}

// keep takes a sample and keeps it. One that fails leaves a gap.
func (s *Sampler) keep(r lifecycle.Running, passed link) {
	sample, err := s.sample(r, passed)
	if err != nil {
		s.failures.Inc()
		s.cfg.Log.Debug("no sample", "sandbox", r.ID, "gen", r.Generation, "err", err) // it may be ending
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(r).add(sample)
}

// of is called with mu held.
func (s *Sampler) of(r lifecycle.Running) *series {
	e := s.series[r.ID]
	if e == nil {
		e = &series{upper: &upper{dir: r.OverlayDir}}
		s.series[r.ID] = e
	}
	return e
}

// sample measures one sandbox.
func (s *Sampler) sample(r lifecycle.Running, passed link) (Sample, error) {
	usage, err := s.cfg.Groups.Stats(r.ID)
	if err != nil {
		return Sample{}, err
	}
	s.mu.Lock()
	upper := s.of(r).upper
	s.mu.Unlock()
	sample := Sample{Time: s.now(), Generation: r.Generation, Usage: usage, Limits: r.Limits, Traffic: passed.traffic, Verdicts: passed.verdicts}
	if bytes, ok := upper.bytes(func() ([]int, error) { return s.cfg.Groups.Processes(r.ID) }); ok {
		sample.Disk = &Disk{Bytes: bytes, Limit: r.DiskBytes}
	}
	return sample, nil
}

// Samples answers what is kept of a running sandbox from a time on, oldest first,
// and what it uses now. gen is the generation that the caller means; 0: any.
func (s *Sampler) Samples(ctx context.Context, id sandbox.ID, gen sandbox.Generation, since time.Time) ([]Sample, error) {
	r, err := s.cfg.Sandboxes.Running(id, gen)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	kept := s.of(r).since(since)
	s.mu.Unlock()
	if n := len(kept); n > 0 && s.now().Sub(kept[n-1].Time) < fresh {
		return kept, nil
	}
	var passed link
	if t, err := s.cfg.Traffic.TrafficOf(r.Network); err == nil {
		passed.traffic = &t
	}
	if v, ok := s.verdicts(ctx)[r.ID]; ok {
		passed.verdicts = &v
	}
	now, err := s.sample(r, passed)
	if err != nil {
		return nil, err
	}
	return append(kept, now), nil
}

// Ended keeps what a sandbox has sent and received, whose link is about to go: with that
// its counters do. To say it again, when the link is gone, changes nothing; while it is
// there, its counters take the place of those that were told.
func (s *Sampler) Ended(r lifecycle.Running) {
	traffic, err := s.cfg.Traffic.TrafficOf(r.Network)
	if err != nil {
		return
	}
	last := Final{Time: s.now(), ID: r.ID, Generation: r.Generation, Traffic: traffic}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.series[r.ID]; e != nil {
		if n := len(e.samples); n > 0 {
			last.Disk = e.samples[(e.next+n-1)%n].Disk
		}
	}
	of := generation{r.ID, r.Generation}
	if before := s.last[of]; before != nil {
		last.Time = before.Time
		*before = last
		return
	}
	s.last[of] = &last
	s.over = append(s.over, &last)
	s.forget(last.Time)
}

// forget is called with mu held.
func (s *Sampler) forget(now time.Time) {
	n := max(len(s.over)-maxOver, 0)
	for n < len(s.over) && now.Sub(s.over[n].Time) > told {
		n++
	}
	for _, f := range s.over[:n] {
		delete(s.last, generation{f.ID, f.Generation})
	}
	s.over = slices.Delete(s.over, 0, n)
}

// Finals are what is known of generations that are over, the oldest first.
func (s *Sampler) Finals() []Final {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(s.now())
	all := make([]Final, len(s.over))
	for i, f := range s.over {
		all[i] = *f
	}
	return all
}

// Latest is the newest sample that was kept of each sandbox.
func (s *Sampler) Latest() map[sandbox.ID]Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[sandbox.ID]Sample, len(s.series))
	for id, e := range s.series {
		if n := len(e.samples); n > 0 {
			all[id] = e.samples[(e.next+n-1)%n]
		}
	}
	return all
}

func (e *series) add(sample Sample) {
	if len(e.samples) < Kept {
		e.samples = append(e.samples, sample)
		return
	}
	e.samples[e.next] = sample
	e.next = (e.next + 1) % Kept
}

// since copies the samples from a time on, oldest first.
func (e *series) since(t time.Time) []Sample {
	var out []Sample
	for i := range e.samples {
		if sample := e.samples[(e.next+i)%len(e.samples)]; !sample.Time.Before(t) {
			out = append(out, sample)
		}
	}
	return out
}
