package stats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/netns"
)

// machine is everything that a Sampler reads.
type machine struct {
	mu       sync.Mutex
	running  map[sandbox.ID]lifecycle.Running
	usage    map[sandbox.ID]cgroup.Stats
	traffic  map[sandbox.ID]netns.Traffic
	verdicts map[sandbox.ID]netdapi.Counters
	lookups  int // of processes
	broken   error
}

func newMachine() *machine {
	return &machine{running: map[sandbox.ID]lifecycle.Running{}, usage: map[sandbox.ID]cgroup.Stats{}, traffic: map[sandbox.ID]netns.Traffic{}, verdicts: map[sandbox.ID]netdapi.Counters{}}
}

func (m *machine) add(t testing.TB) sandbox.ID {
	t.Helper()
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running[id] = lifecycle.Running{ID: id, Generation: 1, DiskBytes: 1 << 30, OverlayDir: t.TempDir(), Limits: cgroup.Limits{MemoryBytes: 1 << 20}}
	m.usage[id] = cgroup.Stats{CPU: time.Second}
	m.traffic[id], m.verdicts[id] = netns.Traffic{RxBytes: 5}, netdapi.Counters{Denied: 3}
	return id
}

func (m *machine) Running(id sandbox.ID, gen sandbox.Generation) (lifecycle.Running, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.running[id]
	if !ok || gen != 0 && gen != r.Generation {
		return r, errdefs.New(errdefs.NotFound, "sandbox not found")
	}
	return r, nil
}

func (m *machine) AllRunning() (all []lifecycle.Running) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.running {
		all = append(all, r)
	}
	return all
}

func (m *machine) Stats(id sandbox.ID) (cgroup.Stats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.usage[id], m.broken
}

func (m *machine) Processes(sandbox.ID) ([]int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lookups++
	return []int{1 << 30, os.Getpid()}, nil
}

func (m *machine) Counters(context.Context) (map[sandbox.ID]netdapi.Counters, error) {
	return m.verdicts, m.broken
}

func (m *machine) Traffic() (map[sandbox.ID]netns.Traffic, error) { return m.traffic, m.broken }

func (m *machine) TrafficOf(s netns.Slot) (netns.Traffic, error) { return m.traffic[s.ID], m.broken }

// newSampler has a clock that a test sets.
func newSampler(m *machine) (s *Sampler, advance func(time.Duration)) {
	s = New(Config{Sandboxes: m, Groups: m, Traffic: m, Verdicts: m, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	now := time.Unix(1_000_000, 0)
	s.now = func() time.Time { return now }
	return s, func(d time.Duration) { now = now.Add(d) }
}

func TestSamplesAreKeptForAnHour(t *testing.T) {
	t.Parallel()
	m := newMachine()
	id := m.add(t)
	s, advance := newSampler(m)
	began := s.now()
	for i := range Kept + 10 {
		m.usage[id] = cgroup.Stats{CPU: time.Duration(i)}
		s.sweep(t.Context())
		advance(Interval)
	}
	m.usage[id] = cgroup.Stats{CPU: 1_000}
	got, err := s.Samples(t.Context(), id, 1, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != Kept+1 {
		t.Fatalf("%d samples, want %d and one of now", len(got), Kept)
	}
	for i, sample := range got {
		if sample.Verdicts == nil || sample.Verdicts.Denied != 3 {
			t.Fatalf("sample %d: the network daemon counted %+v", i, sample.Verdicts)
		}
	}
	for i, sample := range got[:Kept] {
		if want := began.Add(time.Duration(i+10) * Interval); !sample.Time.Equal(want) || sample.Usage.CPU != time.Duration(i+10) {
			t.Fatalf("sample %d: %+v, want one of %v", i, sample, want)
		}
	}
	if now := got[Kept]; now.Usage.CPU != 1_000 || !now.Time.Equal(s.now()) || now.Generation != 1 || now.Limits.MemoryBytes != 1<<20 {
		t.Errorf("now: %+v", now)
	}
	got, err = s.Samples(t.Context(), id, 0, s.now().Add(-2*Interval))
	if err != nil || len(got) != 3 {
		t.Errorf("%d samples of the last two intervals (%v)", len(got), err)
	}
	s.sweep(t.Context())
	if got, _ = s.Samples(t.Context(), id, 0, s.now()); len(got) != 1 {
		t.Errorf("%d samples of this second", len(got)) // the one that was just taken is good enough
	}
}

func TestTheLatestSampleOfEach(t *testing.T) {
	t.Parallel()
	m := newMachine()
	a, b := m.add(t), m.add(t)
	s, advance := newSampler(m)
	if n := len(s.Latest()); n != 0 {
		t.Errorf("%d samples before the first", n)
	}
	for range Kept + 3 {
		advance(Interval)
		s.sweep(t.Context())
	}
	latest := s.Latest()
	for _, id := range []sandbox.ID{a, b} {
		if sample := latest[id]; !sample.Time.Equal(s.now()) || sample.Generation != 1 || sample.Traffic.RxBytes != 5 {
			t.Errorf("%s: %+v", id, sample)
		}
	}
	delete(m.running, a)
	s.sweep(t.Context())
	if latest = s.Latest(); len(latest) != 1 || latest[b].Time.IsZero() {
		t.Errorf("after one has ended: %v", latest)
	}
}

func TestOnlyWhoRunsIsMeasured(t *testing.T) {
	t.Parallel()
	m := newMachine()
	id, other := m.add(t), m.add(t)
	s, _ := newSampler(m)
	s.sweep(t.Context())
	delete(m.running, id)
	for _, gen := range []sandbox.Generation{0, 1} {
		if _, err := s.Samples(t.Context(), id, gen, time.Time{}); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("a sandbox that is gone: %v", err)
		}
	}
	if _, err := s.Samples(t.Context(), other, 2, time.Time{}); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("another generation: %v", err)
	}
	s.sweep(t.Context())
	if len(s.series) != 1 {
		t.Errorf("%d sandboxes are remembered", len(s.series))
	}
}

func TestWhatCantBeReadIsLeftOut(t *testing.T) {
	t.Parallel()
	m := newMachine()
	id := m.add(t)
	s, advance := newSampler(m)
	s.sweep(t.Context())
	advance(Interval)
	m.broken = errors.New("no such file")
	s.sweep(t.Context())
	if _, err := s.Samples(t.Context(), id, 0, time.Time{}); err == nil {
		t.Error("a sample without control group")
	}
	families, err := s.cfg.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if v := f.GetMetric()[0]; f.GetName() == "s0_node_sample_failures_total" && v.GetCounter().GetValue() != 1 ||
			f.GetName() == "s0_node_sample_seconds" && v.GetHistogram().GetSampleCount() != 2 {
			t.Errorf("%s: %v", f.GetName(), v)
		}
	}
	m.broken = nil
	got, err := s.Samples(t.Context(), id, 0, time.Time{})
	if err != nil || len(got) != 2 || got[0].Disk != nil || got[0].Traffic == nil || got[0].Traffic.RxBytes != 5 {
		t.Errorf("%+v (%v)", got, err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, _ := newSampler(newMachine())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
}

// The sentry unlinks the file as soon as it has opened it.
func TestDiskOfAnUnlinkedFile(t *testing.T) {
	t.Parallel()
	m := newMachine()
	id := m.add(t)
	s, advance := newSampler(m)
	name := filepath.Join(m.running[id].OverlayDir, upperPrefix+"123")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(os.Remove(name), f.Truncate(1<<30)); err != nil {
		t.Fatal(err)
	}
	disk := func() int64 {
		t.Helper()
		advance(Interval)
		got, err := s.Samples(t.Context(), id, 0, s.now())
		if err != nil || len(got) != 1 || got[0].Disk == nil || got[0].Disk.Limit != 1<<30 {
			t.Fatalf("%+v (%v)", got, err)
		}
		return got[0].Disk.Bytes
	}
	empty := disk()
	if _, err := f.WriteAt(make([]byte, 4<<20), 512<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil { // what is not allocated yet has no blocks
		t.Fatal(err)
	}
	if grown := disk() - empty; grown != 4<<20 {
		t.Errorf("4 MiB were written into a hole, %d bytes were counted", grown)
	}
	if m.lookups != 1 {
		t.Errorf("the file was searched %d times", m.lookups)
	}
	// Another file at the same descriptor, as after a pid's reuse, is not it.
	u := s.series[id].upper
	u.at.ino++
	if bytes, ok := u.bytes(func() ([]int, error) { return nil, nil }); ok {
		t.Errorf("%d bytes of another file", bytes)
	}
	if _, ok := u.bytes(func() ([]int, error) { t.Error("searched again at once"); return nil, nil }); ok {
		t.Error("found where nobody looked")
	}
}

// BenchmarkSweep is what the node pays every Interval for a thousand sandboxes,
// here without their links.
func BenchmarkSweep(b *testing.B) {
	s0test.NeedRoot(b)
	layout, err := cgroup.Detect()
	if err != nil {
		b.Fatal(err)
	}
	groups, err := cgroup.Open(layout, "/s0-bench-stats-"+strconv.Itoa(os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	defer groups.Close()
	m := newMachine()
	for i := range 1000 {
		id := m.add(b)
		if err := groups.Create(id, cgroup.Limits{MemoryBytes: 64 << 20, CPUMillis: 500, Pids: 50}); err != nil {
			b.Fatal(err)
		}
		defer groups.Remove(context.Background(), id)
		f, err := os.Create(filepath.Join(m.running[id].OverlayDir, fmt.Sprint(upperPrefix, i)))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
	}
	s := New(Config{Sandboxes: m, Groups: withSelf{groups}, Traffic: m, Verdicts: m, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	s.sweep(b.Context()) // finds the files
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	for b.Loop() {
		s.sweep(b.Context())
	}
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	spent := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	b.ReportMetric(float64(spent.Microseconds())/float64(b.N)/1000, "cpu-ms/op")
}

// withSelf says that this process is every sandbox's.
type withSelf struct{ *cgroup.Groups }

func (withSelf) Processes(sandbox.ID) ([]int, error) { return []int{os.Getpid()}, nil }

// What a generation had in all is told for a while after its end, however short it was,
// and no longer.
func TestTheLastOfAGenerationIsTold(t *testing.T) {
	t.Parallel()
	m := newMachine()
	short, long := m.add(t), m.add(t)
	s, advance := newSampler(m)
	s.Ended(lifecycle.Running{ID: short, Generation: 1, Network: netns.Slot{ID: short}}) // no sample was taken of it
	s.sweep(t.Context())
	s.series[long].samples[0].Disk = &Disk{Bytes: 1}
	advance(Interval)
	m.traffic[long] = netns.Traffic{RxBytes: 9}
	s.Ended(lifecycle.Running{ID: long, Generation: 3, Network: netns.Slot{ID: long}})
	s.Ended(lifecycle.Running{ID: long, Generation: 3, Network: netns.Slot{ID: long}}) // it is told once
	m.broken = errors.New("the link is gone")
	s.Ended(lifecycle.Running{ID: long, Generation: 3, Network: netns.Slot{ID: long}})
	got := s.Finals()
	if len(got) != 2 || got[0].ID != short || got[0].Traffic.RxBytes != 5 || got[0].Disk != nil || got[1].ID != long || got[1].Generation != 3 || got[1].Traffic.RxBytes != 9 || got[1].Disk == nil {
		t.Fatalf("told: %+v", got)
	}
	advance(told - Interval)
	if got := s.Finals(); len(got) != 2 {
		t.Errorf("%d are told", len(got))
	}
	advance(1)
	if got := s.Finals(); len(got) != 1 || got[0].ID != long {
		t.Errorf("told: %+v", got)
	}
	m.broken = nil
	for i := range maxOver + 5 {
		s.Ended(lifecycle.Running{ID: short, Generation: sandbox.Generation(i), Network: netns.Slot{ID: short}})
	}
	if got := s.Finals(); len(got) != maxOver || len(s.last) != maxOver || got[0].Generation == 0 {
		t.Errorf("%d are kept", len(got))
	}
}
