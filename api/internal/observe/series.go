package observe

import (
	"context"
	"math"
	"slices"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
)

// Bounds of series.
const (
	DefaultPoints = 240
	MaxPoints     = 1000

	defaultRange = time.Hour
	maxRange     = 30 * 24 * time.Hour
	leastStep    = 15 // seconds: the pace of the samples
)

// SeriesQuery says which series are wanted. Zero fields take their defaults.
type SeriesQuery struct {
	Range
	Names       []string
	StepSeconds int
	Statistic   openapi.SandboxRuntimeMetricStatistic
	MaxPoints   int
}

const (
	auto    = openapi.SandboxRuntimeMetricStatisticAuto
	average = openapi.SandboxRuntimeMetricStatisticAverage
	minimum = openapi.SandboxRuntimeMetricStatisticMinimum
	maximum = openapi.SandboxRuntimeMetricStatisticMaximum
	last    = openapi.SandboxRuntimeMetricStatisticLast
	rate    = openapi.SandboxRuntimeMetricStatisticRate
)

// plan is a query that is complete and makes sense.
type plan struct {
	SeriesQuery
	step        time.Duration
	metrics     []*metric
	unsupported []string
}

func (q SeriesQuery) plan(now time.Time) (plan, error) {
	if q.End.IsZero() {
		q.End = now
	}
	if q.Start.IsZero() {
		q.Start = q.End.Add(-defaultRange)
	}
	if q.MaxPoints == 0 {
		q.MaxPoints = DefaultPoints
	}
	if q.Statistic == "" {
		q.Statistic = auto
	}
	if err := q.check(); err != nil {
		return plan{}, err
	}
	p := plan{SeriesQuery: q}
	p.step = q.step()
	if err := p.choose(); err != nil {
		return plan{}, err
	}
	return p, nil
}

func (q SeriesQuery) check() error {
	switch {
	case !q.Start.Before(q.End):
		return errdefs.New(errdefs.InvalidArgument, "start_time must be before end_time")
	case q.End.Sub(q.Start) > maxRange:
		return errdefs.New(errdefs.InvalidArgument, "a range of more than 30 days")
	case q.MaxPoints < 1 || q.MaxPoints > MaxPoints:
		return errdefs.New(errdefs.InvalidArgument, "max_points must be 1 to %d", MaxPoints)
	case q.StepSeconds < 0 || time.Duration(q.StepSeconds) > maxRange/time.Second:
		return errdefs.New(errdefs.InvalidArgument, "step_seconds must be 1 to %d", maxRange/time.Second)
	case !q.Statistic.Valid():
		return errdefs.New(errdefs.InvalidArgument, "statistic must be auto, average, minimum, maximum, last or rate")
	case len(q.Names) > maxNames:
		return errdefs.New(errdefs.InvalidArgument, "more than %d metrics", maxNames)
	}
	return nil
}

// step is as wide as was asked for, or as it must be for so few points.
func (q SeriesQuery) step() time.Duration {
	need := int(math.Ceil(q.End.Sub(q.Start).Seconds() / float64(q.MaxPoints)))
	if q.StepSeconds == 0 {
		need = max(need, leastStep)
	}
	return time.Duration(max(need, q.StepSeconds, 1)) * time.Second
}

// choose finds the metrics. A rate is of counters: of all of them, if none is named.
func (p *plan) choose() error {
	names := slices.DeleteFunc(slices.Clone(p.Names), func(name string) bool {
		if slices.Contains(unsupported, name) {
			p.unsupported = append(p.unsupported, name)
			return true
		}
		return false
	})
	if len(p.unsupported) > 0 && len(names) == 0 {
		return nil
	}
	found, unknown := named(names, func(m *metric) bool {
		return !m.extra && (len(names) > 0 || p.Statistic != rate || m.kind == counter)
	})
	if unknown != "" {
		return unknownMetric(unknown)
	}
	for _, m := range found {
		if p.Statistic == rate && m.kind == gauge {
			return errdefs.New(errdefs.InvalidArgument, "%s is no counter: it has no rate", m.name)
		}
	}
	p.metrics = found
	return nil
}

// Series answers what a sandbox used, in points of a chart.
func (o *Observer) Series(ctx context.Context, to dataplane.Target, q SeriesQuery) (openapi.SandboxRuntimeMetrics, error) {
	p, err := q.plan(o.now())
	if err != nil {
		return openapi.SandboxRuntimeMetrics{}, err
	}
	resp, err := o.cfg.Plane.Stats(ctx, to, p.Start.Add(-lookback))
	if err != nil {
		return openapi.SandboxRuntimeMetrics{}, err
	}
	if q.End.IsZero() { // the node has looked again since
		p.End = o.now()
	}
	row := slices.DeleteFunc(moments(resp), func(m moment) bool { return !p.holds(m.at()) })
	out := openapi.SandboxRuntimeMetrics{
		StartTime: p.Start.UTC(), EndTime: p.End.UTC(), StepSeconds: int(p.step / time.Second),
		Series: []openapi.SandboxRuntimeMetricSeries{}, Gaps: []openapi.SandboxRuntimeMetricGap{},
		Freshness: p.freshness(row, holeOf(resp)),
	}
	holes := p.holes(row, holeOf(resp))
	for _, m := range p.metrics {
		series := p.series(m, row)
		out.Series = append(out.Series, series...)
		if len(series) == 0 {
			out.Gaps = append(out.Gaps, p.missing(m, row))
			continue
		}
		for _, h := range holes {
			out.Gaps = append(out.Gaps, h.of(m.name))
		}
	}
	for _, name := range p.unsupported {
		out.Gaps = append(out.Gaps, p.whole(name, openapi.SandboxRuntimeMetricGapReasonUnsupported))
	}
	out.Partial = slices.ContainsFunc(out.Gaps, func(g openapi.SandboxRuntimeMetricGap) bool {
		young := g.StartTime.Equal(out.StartTime) && !g.EndTime.Equal(out.EndTime)
		return !young && g.Reason != openapi.SandboxRuntimeMetricGapReasonSeriesReset
	})
	return out, nil
}

// missing says why there is no series of a metric.
func (p *plan) missing(m *metric, row []moment) openapi.SandboxRuntimeMetricGap {
	if len(row) < 2 { // too few for what follows from two
		return p.whole(m.name, openapi.SandboxRuntimeMetricGapReasonNoData)
	}
	return p.whole(m.name, openapi.SandboxRuntimeMetricGapReasonUnavailable)
}

// series are a metric's, one for each of its values.
func (p *plan) series(m *metric, row []moment) []openapi.SandboxRuntimeMetricSeries {
	lines := 1
	if m.directed {
		lines = len(directions)
	}
	var all []openapi.SandboxRuntimeMetricSeries
	for n := range lines {
		s := openapi.SandboxRuntimeMetricSeries{
			Metric: openapi.SandboxRuntimeMetricName(m.name), Kind: m.kind, Unit: m.unit, Statistic: p.Statistic, Dimensions: m.dimensions(n),
		}
		switch {
		case p.Statistic == auto && m.kind == counter:
			s.Statistic = rate
		case p.Statistic == auto:
			s.Statistic = average
		}
		read := func(at moment) (float64, bool) { return m.value(at, n) }
		if m.kind == counter && s.Statistic != last {
			s.Unit = perSecond[m.unit]
			read = func(at moment) (float64, bool) { return m.rate(at, n) }
		}
		if s.Segments = p.segments(row, s.Statistic, read); len(s.Segments) > 0 {
			all = append(all, s)
		}
	}
	return all
}

// perSecond are the units of counters' rates.
var perSecond = map[openapi.SandboxRuntimeMetricUnit]openapi.SandboxRuntimeMetricUnit{
	seconds: cores, bytes: openapi.SandboxRuntimeMetricUnitBytesPerSecond, count: openapi.SandboxRuntimeMetricUnitCountPerSecond,
}

// value is a metric's n-th value at a moment.
func (m *metric) value(at moment, n int) (float64, bool) {
	v := m.values(at.StatsSample, at.before)
	if n >= len(v) {
		return 0, false
	}
	return v[n], true
}

// rate is how fast a counter grew before a moment. One that shrank began anew.
func (m *metric) rate(at moment, n int) (float64, bool) {
	if at.before == nil {
		return 0, false
	}
	now, before := m.values(at.StatsSample, nil), m.values(at.before, nil)
	if n >= len(now) || n >= len(before) || now[n] < before[n] {
		return 0, false
	}
	return (now[n] - before[n]) * 1e9 / float64(at.GetUnixNano()-at.before.GetUnixNano()), true
}

// segments puts values into steps. A new segment begins where a moment continues none.
func (p *plan) segments(row []moment, statistic openapi.SandboxRuntimeMetricStatistic, read func(moment) (float64, bool)) []openapi.SandboxRuntimeMetricSegment {
	c := chart{statistic: statistic}
	for _, m := range row {
		if m.before == nil {
			c.endSegment()
		}
		if v, ok := read(m); ok {
			c.add(p.stepOf(m.at()), v)
		}
	}
	c.endSegment()
	return c.segments
}

// chart is segments in the making.
type chart struct {
	statistic openapi.SandboxRuntimeMetricStatistic
	segments  []openapi.SandboxRuntimeMetricSegment
	points    []openapi.SandboxRuntimeMetricPoint // of the segment that is under way
	step      time.Time                           // that is under way
	values    []float64                           // of the step
}

func (c *chart) add(step time.Time, value float64) {
	if !step.Equal(c.step) {
		c.endStep()
		c.step = step
	}
	c.values = append(c.values, value)
}

func (c *chart) endStep() {
	if len(c.values) > 0 {
		c.points = append(c.points, openapi.SandboxRuntimeMetricPoint{Time: c.step, Value: summarize(c.values, c.statistic)})
		c.values = nil
	}
}

func (c *chart) endSegment() {
	if c.endStep(); len(c.points) > 0 {
		c.segments = append(c.segments, openapi.SandboxRuntimeMetricSegment{Points: c.points})
		c.points = nil
	}
}

// stepOf is where the step of a time begins. The last one is as long as it must be.
func (p *plan) stepOf(t time.Time) time.Time {
	n := min(t.Sub(p.Start)/p.step, time.Duration(p.MaxPoints-1))
	return p.Start.Add(n * p.step).UTC()
}

func summarize(values []float64, statistic openapi.SandboxRuntimeMetricStatistic) float64 {
	switch statistic {
	case minimum:
		return slices.Min(values)
	case maximum:
		return slices.Max(values)
	case last:
		return values[len(values)-1]
	}
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// hole is a stretch of time without samples, or between those of which the later
// does not continue the earlier.
type hole struct {
	start, end time.Time
	reason     openapi.SandboxRuntimeMetricGapReason
}

func (h hole) of(name string) openapi.SandboxRuntimeMetricGap {
	return openapi.SandboxRuntimeMetricGap{Metric: openapi.SandboxRuntimeMetricName(name), StartTime: h.start.UTC(), EndTime: h.end.UTC(), Reason: h.reason}
}

func (p *plan) whole(name string, reason openapi.SandboxRuntimeMetricGapReason) openapi.SandboxRuntimeMetricGap {
	return hole{p.Start, p.End, reason}.of(name)
}

// holes finds where samples are missing. Before the first there may have been no
// sandbox.
func (p *plan) holes(row []moment, longest time.Duration) []hole {
	var all []hole
	from := p.Start
	for _, m := range row {
		switch {
		case m.reset:
			all = append(all, hole{from, m.at(), openapi.SandboxRuntimeMetricGapReasonSeriesReset})
		case m.at().Sub(from) > longest:
			all = append(all, hole{from, m.at(), openapi.SandboxRuntimeMetricGapReasonNoData})
		}
		from = m.at()
	}
	if p.End.Sub(from) > longest {
		all = append(all, hole{from, p.End, openapi.SandboxRuntimeMetricGapReasonNoData})
	}
	return all
}

func (p *plan) freshness(row []moment, longest time.Duration) openapi.SandboxRuntimeMetricFreshness {
	if len(row) == 0 {
		return openapi.SandboxRuntimeMetricFreshness{Status: openapi.SandboxRuntimeMetricFreshnessStatusMissing}
	}
	newest := row[len(row)-1].at()
	age := max(0, p.End.Sub(newest).Seconds())
	f := openapi.SandboxRuntimeMetricFreshness{NewestObservedAt: &newest, AgeSeconds: &age, Status: openapi.SandboxRuntimeMetricFreshnessStatusFresh}
	if age > longest.Seconds() {
		f.Status = openapi.SandboxRuntimeMetricFreshnessStatusStale
	}
	return f
}
