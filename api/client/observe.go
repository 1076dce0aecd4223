package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ErrWatchEnded is in the error of a watch that has nothing more to tell, for its
// sandbox has ended. Any other end is one to go on from.
var ErrWatchEnded = errors.New("the watch has ended")

// maxWatchLine bounds a line of a watch.
const maxWatchLine = 1 << 20

// SandboxLogsOptions chooses what ListSandboxLogs returns. The zero value is the
// first page of all lines.
type SandboxLogsOptions struct {
	Start, End time.Time // open where zero
	ContextID  string
	Stream     SandboxLogStream
	Cursor     string // lines behind it
	Limit      int    // 1 to 1000; defaults to the server's page size
}

func (o SandboxLogsOptions) query() url.Values {
	q := url.Values{}
	setTimes(q, o.Start, o.End)
	setAll(q, map[string]string{"context_id": o.ContextID, "stream": string(o.Stream), "cursor": o.Cursor})
	setInts(q, map[string]int{"limit": o.Limit})
	return q
}

func setAll(q url.Values, values map[string]string) {
	for name, v := range values {
		if v != "" {
			q.Set(name, v)
		}
	}
}

func setInts(q url.Values, values map[string]int) {
	for name, v := range values {
		if v != 0 {
			q.Set(name, strconv.Itoa(v))
		}
	}
}

func setTimes(q url.Values, start, end time.Time) {
	for name, t := range map[string]time.Time{"start_time": start, "end_time": end} {
		if !t.IsZero() {
			q.Set(name, t.Format(time.RFC3339Nano))
		}
	}
}

// ListSandboxLogs lists what a sandbox's processes printed, oldest first.
func (c *Client) ListSandboxLogs(ctx context.Context, id string, opts SandboxLogsOptions) (*SandboxLogList, error) {
	return do[SandboxLogList](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "observability", "logs"), query: opts.query()})
}

// FollowSandboxLogs calls found with every line, first those that there are. It
// ends with an error: found's, [ErrWatchEnded], or one behind which to go on with
// the last line's cursor.
func (c *Client) FollowSandboxLogs(ctx context.Context, id string, opts SandboxLogsOptions, found func(SandboxLogEntry) error) error {
	return follow(ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "observability", "logs"), query: opts.query()}, "log", found)
}

// follow reads a watch's lines of one type.
func follow[T any](ctx context.Context, c *Client, in call, typ string, found func(T) error) error {
	in.query.Set("watch", "true")
	in.header = http.Header{"Accept": {"application/x-ndjson"}}
	resp, err := c.send(ctx, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxWatchLine)
	for lines.Scan() {
		var line struct {
			Type  string
			Data  T
			Error string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("watching %s: line of the server: %w", in.path, err)
		}
		switch line.Type {
		case typ:
			if err := found(line.Data); err != nil {
				return err
			}
		case "error":
			return fmt.Errorf("%w: %s", ErrWatchEnded, line.Error)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("watching %s: %w", in.path, err)
	}
	return fmt.Errorf("watching %s: %w", in.path, io.ErrUnexpectedEOF)
}

// MetricSamplesOptions chooses what ListSandboxMetricSamples returns. The zero
// value is what the sandbox uses now.
type MetricSamplesOptions struct {
	Start, End time.Time // open where zero
	ContextID  string    // a context in place of the sandbox
	Names      []string  // defaults to all
	Cursor     string    // samples behind it
	Limit      int       // 1 to 1000; defaults to the server's page size
}

// ListSandboxMetricSamples lists samples of what a sandbox uses, oldest first.
func (c *Client) ListSandboxMetricSamples(ctx context.Context, id string, opts MetricSamplesOptions) (*SandboxMetricSampleList, error) {
	q := url.Values{}
	setTimes(q, opts.Start, opts.End)
	setAll(q, map[string]string{"context_id": opts.ContextID, "names": strings.Join(opts.Names, ","), "cursor": opts.Cursor})
	setInts(q, map[string]int{"limit": opts.Limit})
	return do[SandboxMetricSampleList](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "observability", "metrics"), query: q})
}

// MetricsOptions chooses what SandboxMetrics returns. The zero value is all of the
// last hour.
type MetricsOptions struct {
	Start, End  time.Time
	Names       []string                      // defaults to the whole catalog
	StepSeconds int                           // width of a point; defaults to what MaxPoints needs
	Statistic   SandboxRuntimeMetricStatistic // defaults to the average of gauges and the rate of counters
	MaxPoints   int                           // 1 to 1000; defaults to 240
}

// SandboxMetrics returns series of what a sandbox used.
func (c *Client) SandboxMetrics(ctx context.Context, id string, opts MetricsOptions) (*SandboxRuntimeMetrics, error) {
	q := url.Values{}
	setTimes(q, opts.Start, opts.End)
	setAll(q, map[string]string{"metrics": strings.Join(opts.Names, ","), "statistic": string(opts.Statistic)})
	setInts(q, map[string]int{"step_seconds": opts.StepSeconds, "max_points": opts.MaxPoints})
	return do[SandboxRuntimeMetrics](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "metrics"), query: q})
}

// SandboxMetricsCatalog returns what series there are.
func (c *Client) SandboxMetricsCatalog(ctx context.Context, id string) (*SandboxRuntimeMetricsCatalog, error) {
	return do[SandboxRuntimeMetricsCatalog](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "metrics", "catalog")})
}
