package client_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"s0.run/api/client"
)

func TestFollowSandboxLogs(t *testing.T) {
	t.Parallel()
	entry := func(message string) string {
		return fmt.Sprintf(`{"type":"log","data":{"message":%q,"cursor":%q}}`, message, "c-"+message)
	}
	for name, c := range map[string]struct {
		lines []string
		want  string
		check func(error) bool
	}{
		"an end": {[]string{`{"type":"heartbeat"}`, entry("a"), `{"type":"watermark","cursor":"x"}`, entry("b")}, "a b", func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"an error": {[]string{entry("a"), `{"type":"error","error":"the sandbox has ended"}`, entry("b")}, "a", func(err error) bool {
			return errors.Is(err, client.ErrWatchEnded) && strings.Contains(err.Error(), "the sandbox has ended")
		}},
		"what is newer":  {[]string{`{"type":"poem","data":{"message":"x"}}`, entry("a")}, "a", func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"nonsense":       {[]string{`{`}, "", func(err error) bool { return err != nil && strings.Contains(err.Error(), "line of the server") }},
		"a line too big": {[]string{entry(strings.Repeat("x", 2<<20))}, "", func(err error) bool { return err != nil && !errors.Is(err, io.ErrUnexpectedEOF) }},
		"enough":         {[]string{entry("stop"), entry("b")}, "stop", func(err error) bool { return errors.Is(err, errEnough) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if q := r.URL.Query(); q.Get("watch") != "true" || q.Get("cursor") != "c" || q.Get("stream") != "stderr" || r.Header.Get("Accept") != "application/x-ndjson" {
					t.Errorf("%s", r.URL)
				}
				fmt.Fprintln(w, strings.Join(c.lines, "\n"))
			}))
			defer srv.Close()
			cl, err := client.New(client.Config{BaseURL: srv.URL})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			err = cl.FollowSandboxLogs(t.Context(), "s", client.SandboxLogsOptions{Cursor: "c", Stream: client.SandboxLogStreamStderr}, func(e client.SandboxLogEntry) error {
				if got = append(got, e.Message); e.Message == "stop" {
					return errEnough
				}
				return nil
			})
			if strings.Join(got, " ") != c.want || !c.check(err) {
				t.Errorf("%.100q, %v", got, err)
			}
		})
	}
}

var errEnough = errors.New("enough")

func TestObservabilityQueries(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.RequestURI()
		io.WriteString(w, `{"success":true,"data":{}}`)
	}))
	defer srv.Close()
	c, err := client.New(client.Config{BaseURL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for want, do := range map[string]func() error{
		"/api/v1/sandboxes/s/observability/logs?context_id=ctx-1&end_time=2026-01-01T00%3A00%3A00Z&limit=5": func() error {
			_, err := c.ListSandboxLogs(t.Context(), "s", client.SandboxLogsOptions{ContextID: "ctx-1", End: at, Limit: 5})
			return err
		},
		"/api/v1/sandboxes/s/observability/metrics?names=a%2Cb&start_time=2026-01-01T00%3A00%3A00Z": func() error {
			_, err := c.ListSandboxMetricSamples(t.Context(), "s", client.MetricSamplesOptions{Names: []string{"a", "b"}, Start: at})
			return err
		},
		"/api/v1/sandboxes/s/metrics?max_points=9&metrics=a&statistic=last&step_seconds=60": func() error {
			_, err := c.SandboxMetrics(t.Context(), "s", client.MetricsOptions{Names: []string{"a"}, StepSeconds: 60, MaxPoints: 9, Statistic: "last"})
			return err
		},
	} {
		if err := do(); err != nil {
			t.Error(err)
		}
		if got := <-asked; got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
	}
}
