package observe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/ndjson"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	// lookback is how much earlier samples are asked for than they are wanted: what
	// follows from two needs the one before.
	lookback = time.Minute
	// maxNames bounds what a query names.
	maxNames = 50
	// lastIndex is behind every value of a sample.
	lastIndex = 999
)

var sampleCursorPattern = regexp.MustCompile(`^[0-9]{1,18}[0-9]?\.[0-9]{1,3}$`)

// SampleQuery says which samples are wanted. Without a range and a cursor it is
// what the sandbox uses now. Limit is set.
type SampleQuery struct {
	Range
	Limit     int
	Cursor    string
	ContextID string // a context in place of the sandbox
	Names     []string
}

// position is a value's place among all: its sample's time, and its index within.
type position struct {
	time  int64
	index int
}

func (p position) String() string { return fmt.Sprintf("%d.%d", p.time, p.index) }

func (p position) before(other position) bool {
	return p.time < other.time || p.time == other.time && p.index < other.index
}

func parsePosition(cursor string) (p position, err error) {
	if !sampleCursorPattern.MatchString(cursor) {
		return p, errCursor
	}
	nanos, index, _ := strings.Cut(cursor, ".")
	if p.time, err = strconv.ParseInt(nanos, 10, 64); err != nil {
		return p, errCursor
	}
	p.index, err = strconv.Atoi(index)
	return p, err
}

func (q SampleQuery) check() error {
	if q.ContextID != "" && !contextPattern.MatchString(q.ContextID) {
		return errdefs.New(errdefs.InvalidArgument, "context_id is invalid")
	}
	if len(q.Names) > maxNames {
		return errdefs.New(errdefs.InvalidArgument, "more than %d names", maxNames)
	}
	return errors.Join(checkLimit(q.Limit), q.Range.check())
}

// Samples lists what a sandbox uses or used.
func (o *Observer) Samples(ctx context.Context, to dataplane.Target, q SampleQuery) (openapi.SandboxMetricSampleList, error) {
	list := openapi.SandboxMetricSampleList{Samples: []openapi.SandboxMetricSample{}}
	if err := q.check(); err != nil {
		return list, err
	}
	if q.ContextID != "" {
		return o.contextSamples(ctx, to, q)
	}
	wanted, unknown := named(q.Names, func(*metric) bool { return true })
	if unknown != "" {
		return list, unknownMetric(unknown)
	}
	var after position
	if q.Cursor != "" {
		var err error
		if after, err = parsePosition(q.Cursor); err != nil {
			return list, err
		}
	}
	row, err := o.row(ctx, to, q, after)
	if err != nil {
		return list, err
	}
	who := o.identity(to)
	for _, m := range row {
		for _, s := range who.samples(m, wanted, after) {
			if len(list.Samples) == q.Limit {
				next := list.Samples[q.Limit-1].Cursor
				list.NextCursor, list.Watermark = &next, &next
				return list, nil
			}
			list.Samples = append(list.Samples, s)
		}
		mark := position{m.GetUnixNano(), lastIndex}.String()
		list.Watermark = &mark
	}
	return list, nil
}

// row is the samples that may have something for the query.
func (o *Observer) row(ctx context.Context, to dataplane.Target, q SampleQuery, after position) ([]moment, error) {
	now := q.Start.IsZero() && q.End.IsZero() && q.Cursor == ""
	since := q.Start
	if t := time.Unix(0, after.time); q.Cursor != "" && t.After(since) {
		since = t
	}
	if now {
		since = o.now()
	}
	if !since.IsZero() {
		since = since.Add(-lookback)
	}
	resp, err := o.cfg.Plane.Stats(ctx, to, since)
	if err != nil {
		return nil, err
	}
	row := moments(resp)
	if now {
		return row[max(0, len(row)-1):], nil
	}
	var in []moment
	for _, m := range row {
		if q.holds(m.at()) && !(position{m.GetUnixNano(), lastIndex}).before(after) {
			in = append(in, m)
		}
	}
	return in, nil
}

// samples are a moment's values behind a position.
func (who identity) samples(m moment, wanted []*metric, after position) []openapi.SandboxMetricSample {
	var list []openapi.SandboxMetricSample
	for i := range metrics {
		metric := &metrics[i]
		if !slices.Contains(wanted, metric) {
			continue
		}
		for n, v := range metric.values(m.StatsSample, m.before) {
			at := position{m.GetUnixNano(), i*len(directions) + n}
			if !after.before(at) {
				continue
			}
			s := who.sample(m.at(), metric.name, string(metric.unit), v)
			s.Cursor = at.String()
			s.Attributes = map[string]any{"kind": metric.kind}
			for k, d := range metric.dimensions(n) {
				s.Attributes[k] = d
			}
			list = append(list, s)
		}
	}
	return list
}

func (who identity) sample(at time.Time, name, unit string, value float64) openapi.SandboxMetricSample {
	return openapi.SandboxMetricSample{
		TeamID: who.team, SandboxID: who.sandbox, RegionID: who.region, ClusterID: who.cluster,
		OccurredAt: at, IngestedAt: at, Name: name, Unit: &unit, Value: value,
	}
}

func unknownMetric(name string) error {
	return errdefs.New(errdefs.InvalidArgument, "there is no metric %.64q; see the catalog", name)
}

type contextMetric struct {
	name string
	kind openapi.SandboxRuntimeMetricKind
	unit openapi.SandboxRuntimeMetricUnit
	read func(procapi.ContextStats) float64
}

// contextMetrics are what procd tells of a context's process tree.
var contextMetrics = []contextMetric{
	{"context.cpu.time", counter, seconds, func(s procapi.ContextStats) float64 { return float64(s.CPUNanos) / 1e9 }},
	{"context.memory.rss", gauge, bytes, func(s procapi.ContextStats) float64 { return float64(s.RSSBytes) }},
	{"context.process.count", gauge, count, func(s procapi.ContextStats) float64 { return float64(s.Processes) }},
}

// contextSamples is what a context uses now: nobody keeps what it used.
func (o *Observer) contextSamples(ctx context.Context, to dataplane.Target, q SampleQuery) (openapi.SandboxMetricSampleList, error) {
	list := openapi.SandboxMetricSampleList{Samples: []openapi.SandboxMetricSample{}}
	if !q.Start.IsZero() || !q.End.IsZero() || q.Cursor != "" {
		return list, errdefs.New(errdefs.InvalidArgument, "what a context uses is known for now alone: start_time, end_time and cursor do not go with context_id")
	}
	for _, name := range q.Names {
		if !slices.ContainsFunc(contextMetrics, func(m contextMetric) bool { return m.name == name }) {
			return list, errdefs.New(errdefs.InvalidArgument, "there is no metric %.64q of a context", name)
		}
	}
	var said procapi.ContextStats
	err := o.cfg.Plane.Call(ctx, to, dataplane.Request{
		Method: http.MethodGet, Path: procapi.PathContexts + "/" + q.ContextID + "/stats", Timeout: dataplane.CallTimeout,
	}, nil, &said, func() error {
		if said.Processes < 0 || said.CPUNanos < 0 || said.RSSBytes < 0 {
			return errors.New("negative usage")
		}
		return nil
	})
	if err != nil {
		return list, err
	}
	who, now := o.identity(to), o.now().UTC()
	for i, m := range contextMetrics {
		if len(q.Names) > 0 && !slices.Contains(q.Names, m.name) || len(list.Samples) == q.Limit {
			continue
		}
		s := who.sample(now, m.name, string(m.unit), m.read(said))
		s.ContextID, s.Cursor, s.Attributes = &q.ContextID, position{now.UnixNano(), i}.String(), map[string]any{"kind": m.kind}
		list.Samples = append(list.Samples, s)
	}
	return list, nil
}

// WatchSamples answers the first batch of a watch, and the source of those that
// follow: what the node kept since, and what the sandbox uses then.
func (o *Observer) WatchSamples(ctx context.Context, to dataplane.Target, q SampleQuery) ([]ndjson.Line, ndjson.Source, error) {
	if !q.End.IsZero() || q.ContextID != "" {
		return nil, nil, errdefs.New(errdefs.InvalidArgument, "end_time and context_id do not go with watch")
	}
	if err := q.check(); err != nil {
		return nil, nil, err
	}
	q.Limit = MaxPage // of a batch, which is nobody's matter
	more := false
	batch := func(ctx context.Context) ([]ndjson.Line, error) {
		list, err := o.Samples(ctx, to, q)
		if err != nil || list.Watermark == nil {
			return nil, err
		}
		q.Cursor, more = *list.Watermark, list.NextCursor != nil
		lines := make([]ndjson.Line, 0, len(list.Samples)+1)
		for _, s := range list.Samples {
			lines = append(lines, ndjson.Line{Type: "metric_sample", Data: s})
		}
		return append(lines, ndjson.Watermark(q.Cursor)), nil
	}
	first, err := batch(ctx)
	return first, func(ctx context.Context) ([]ndjson.Line, error) {
		if !more && !ndjson.Sleep(ctx, ndjson.Heartbeat) {
			return nil, ctx.Err()
		}
		return batch(ctx)
	}, err
}
