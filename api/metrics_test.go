package api_test

import (
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"s0.run/internal/nodeapi"
)

type metricSample struct {
	TeamID     string    `json:"team_id"`
	SandboxID  string    `json:"sandbox_id"`
	ContextID  string    `json:"context_id"`
	OccurredAt time.Time `json:"occurred_at"`
	Name, Unit string
	Value      float64
	Cursor     string
	Attributes map[string]string
}

type sampleList struct {
	Samples    []metricSample
	NextCursor string `json:"next_cursor"`
	Watermark  string
}

// used is a sample that the node took some seconds before a time.
func used(now time.Time, ago int) *nodeapi.StatsSample {
	return &nodeapi.StatsSample{
		UnixNano: now.Add(-time.Duration(ago) * time.Second).UnixNano(), Generation: 1, CpuNanos: int64(1000-ago) * 1e9, CpuQuotaMillis: 2000,
		MemoryBytes: 300, MemoryWorkingSetBytes: 200, MemoryLimitBytes: 1000, Tasks: 40, TasksLimit: 4096, OomKills: 1,
		Disk: &nodeapi.DiskUsage{Bytes: 50, LimitBytes: 100}, Network: &nodeapi.NetworkUsage{RxBytes: 7, TxBytes: 8, Verdicts: &nodeapi.NetworkVerdicts{Flows: 3, Denied: 4, Malformed: 1, Throttled: 6}},
	}
}

func TestMetricSamples(t *testing.T) {
	t.Parallel()
	i := start(t)
	owner := i.key("developer")
	key, id := i.key("viewer"), i.claim(owner)
	now := time.Now().UTC().Truncate(time.Millisecond)
	i.node.SetStats(id, used(now, 45), used(now, 30), used(now, 15), used(now, 0))
	base := "/api/v1/sandboxes/" + id + "/observability/metrics"
	get := func(query string) (list sampleList) {
		t.Helper()
		i.send(request{method: "GET", path: base + "?" + query, token: key}).want(200, &list)
		return list
	}
	values := map[string]float64{}
	for _, s := range get("").Samples {
		values[s.Name+s.Attributes["direction"]] = s.Value
		if !s.OccurredAt.Equal(now) || s.SandboxID != id || s.TeamID == "" || s.Unit == "" || s.Attributes["kind"] == "" || s.ContextID != "" {
			t.Errorf("%+v", s)
		}
	}
	for name, want := range map[string]float64{
		"sandbox.cpu.time": 1000, "sandbox.cpu.usage": 1, "sandbox.cpu.utilization": .5, "sandbox.cpu.limit": 2,
		"sandbox.network.flows": 3, "sandbox.network.denied": 5, "sandbox.network.throttled": 6,
		"sandbox.memory.usage": 300, "sandbox.memory.working_set": 200, "sandbox.memory.available": 800, "sandbox.memory.utilization": .2,
		"sandbox.memory.oom_kills": 1, "sandbox.process.count": 40, "sandbox.process.limit": 4096,
		"sandbox.rootfs.writable.usage": 50, "sandbox.rootfs.writable.limit": 100, "sandbox.network.ioreceive": 7, "sandbox.network.iotransmit": 8,
	} {
		if got, ok := values[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, names := range []string{"name=sandbox.cpu.limit&name=sandbox.cpu.time", "names=sandbox.cpu.time,sandbox.cpu.limit", "name[]=sandbox.cpu.limit&name%5B%5D=sandbox.cpu.time"} {
		if list := get(names); len(list.Samples) != 2 || list.Samples[0].Name != "sandbox.cpu.time" || list.Samples[1].Name != "sandbox.cpu.limit" {
			t.Errorf("%s: %+v", names, list.Samples)
		}
	}
	from := url.QueryEscape(now.Add(-40 * time.Second).Format(time.RFC3339Nano))
	query := "name=sandbox.network.io&name=sandbox.cpu.time&start_time=" + from
	whole := get(query)
	if len(whole.Samples) != 9 || whole.NextCursor != "" || !whole.Samples[0].OccurredAt.Equal(now.Add(-30*time.Second)) {
		t.Errorf("%+v", whole)
	}
	var paged []metricSample
	for page, cursor := get(query+"&limit=2"), ""; ; page = get(query + "&limit=2&cursor=" + cursor) {
		paged = append(paged, page.Samples...)
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	if len(paged) != 9 || paged[8].Cursor != whole.Samples[8].Cursor {
		t.Errorf("%d samples in pages: %+v", len(paged), paged)
	}
	if list := get("cursor=" + whole.Watermark); len(list.Samples) != 0 {
		t.Errorf("behind the watermark: %+v", list)
	}
	for _, q := range []string{
		"name=sandbox.cpu", "limit=0", "cursor=x", "cursor=1.2.3", "cursor=99999999999999999999.1", "context_id=x", "context_id=ctx-00000001&cursor=1.1",
		"context_id=ctx-00000001&name=sandbox.cpu.time", "watch=true&context_id=ctx-00000001", "start_time=2026-01-02T00:00:00Z&end_time=2026-01-01T00:00:00Z",
	} {
		i.send(request{method: "GET", path: base + "?" + q, token: key}).refused(400, "bad_request")
	}

	var c struct{ ID string }
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/contexts", token: owner, body: `{"type":"repl"}`}).want(201, &c)
	list := get("context_id=" + c.ID)
	if len(list.Samples) != 3 || list.Samples[1].Name != "context.memory.rss" || list.Samples[1].Value != 4096 || list.Samples[1].ContextID != c.ID {
		t.Errorf("%+v", list)
	}
	i.send(request{method: "GET", path: base + "?context_id=ctx-ffffffff", token: key}).refused(404, "context_not_found")
}

func TestWatchMetrics(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	i.node.SetStats(id, used(time.Now(), 0))
	next := i.watch("/api/v1/sandboxes/"+id+"/observability/metrics?watch=true&names=sandbox.memory.usage,sandbox.process.count", key)
	for _, name := range []string{"sandbox.memory.usage", "sandbox.process.count"} {
		l := next()
		var s metricSample
		if err := json.Unmarshal(l.Data, &s); err != nil || l.Type != "metric_sample" || s.Name != name {
			t.Errorf("%+v: %+v (%v)", l, s, err)
		}
	}
	if l := next(); l.Type != "watermark" || l.Cursor == "" {
		t.Errorf("%+v", l)
	}
}

func TestMetricSeries(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("viewer")
	id := i.claim(i.key("developer"))
	base := "/api/v1/sandboxes/" + id + "/metrics"
	type series struct {
		StartTime   time.Time `json:"start_time"`
		EndTime     time.Time `json:"end_time"`
		StepSeconds int       `json:"step_seconds"`
		Series      []struct {
			Metric, Kind, Unit, Statistic string
			Dimensions                    map[string]string
			Segments                      []struct {
				Points []struct {
					Time  time.Time
					Value float64
				}
			}
		}
		Freshness struct{ Status string }
		Gaps      []struct{ Metric, Reason string }
		Partial   bool
	}
	var none series
	i.send(request{method: "GET", path: base, token: key}).want(200, &none)
	if len(none.Series) != 0 || none.Freshness.Status != "missing" || len(none.Gaps) == 0 || !none.Partial || none.StepSeconds != 15 || none.EndTime.Sub(none.StartTime) < time.Hour {
		t.Errorf("%+v", none)
	}
	now := time.Now()
	i.node.SetStats(id, used(now, 60), used(now, 45), used(now, 30), used(now, 15), used(now, 0))
	var all series
	i.send(request{method: "GET", path: base, token: key}).want(200, &all)
	if len(all.Series) != 15 || all.Partial || all.Freshness.Status != "fresh" {
		t.Errorf("%d series: %+v", len(all.Series), all)
	}
	var some series
	i.send(request{method: "GET", path: base + "?metrics=sandbox.cpu.time,sandbox.rootfs.writable.inodes&step_seconds=60&max_points=100&statistic=maximum&start_time=" +
		url.QueryEscape(now.Add(-10*time.Minute).Format(time.RFC3339)), token: key}).want(200, &some)
	if len(some.Series) != 1 || some.Series[0].Unit != "cores" || some.Series[0].Statistic != "maximum" || some.Series[0].Segments[0].Points[0].Value != 1 ||
		some.StepSeconds != 60 || !some.Partial || some.Gaps[len(some.Gaps)-1].Reason != "unsupported" {
		t.Errorf("%+v", some)
	}
	for _, q := range []string{
		"metrics=x", "metrics=sandbox.process.limit", "statistic=median", "max_points=1001", "max_points=-1", "step_seconds=-1",
		"start_time=2020-01-01T00:00:00Z", "start_time=2026-01-02T00:00:00Z&end_time=2026-01-01T00:00:00Z", "statistic=rate&metrics=sandbox.memory.usage",
	} {
		i.send(request{method: "GET", path: base + "?" + q, token: key}).refused(400, "bad_request")
	}

	var catalog struct {
		Metrics []struct {
			Name, Kind, Unit, Description string
			Dimensions                    []string
		}
	}
	i.send(request{method: "GET", path: base + "/catalog", token: key}).want(200, &catalog)
	if len(catalog.Metrics) != 13 || catalog.Metrics[0].Dimensions == nil {
		t.Errorf("%+v", catalog)
	}
	i.node.Stop()
	i.send(request{method: "GET", path: base, token: key}).refused(503, "unavailable")
	i.send(request{method: "GET", path: base + "/catalog", token: key}).want(200, nil)
}
