package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/procapi"
)

// entry is a line as clients decode it.
type entry struct {
	TeamID     string    `json:"team_id"`
	SandboxID  string    `json:"sandbox_id"`
	RegionID   string    `json:"region_id"`
	ClusterID  string    `json:"cluster_id"`
	ContextID  string    `json:"context_id"`
	ProcessID  string    `json:"process_id"`
	OccurredAt time.Time `json:"occurred_at"`
	IngestedAt time.Time `json:"ingested_at"`
	Stream     string    `json:"stream"`
	Message    string    `json:"message"`
	Cursor     string    `json:"cursor"`
	Attributes map[string]any
}

type logList struct {
	Logs       []entry
	NextCursor string `json:"next_cursor"`
	Watermark  string `json:"watermark"`
}

func printed(message string) procapi.LogLine {
	return procapi.LogLine{Time: time.Unix(1_700_000_000, 0), ContextID: "ctx-00000001", PID: 7, Stream: "stdout", Message: message}
}

// withProcd starts a server whose sandboxes have a procd that the test knows.
func withProcd(t *testing.T) (*instance, *fakenode.Procd) {
	t.Helper()
	procd := fakenode.NewProcd()
	return start(t, func(_ *api.Config, n *fakenode.Node) { n.Proc = procd }), procd
}

func TestLogs(t *testing.T) {
	t.Parallel()
	i, procd := withProcd(t)
	key := i.key("viewer")
	id := i.claim(i.key("developer"))
	for _, base := range []string{"/api/v1/sandboxes/" + id + "/observability/logs", "/api/v1/sandboxes/" + id + "/logs"} {
		var none logList
		i.send(request{method: "GET", path: base, token: key}).want(200, &none)
		if none.Logs == nil || len(none.Logs) != 0 || none.NextCursor != "" {
			t.Errorf("%s: %+v", base, none)
		}
	}
	future := printed("from the future")
	future.Time = time.Now().Add(time.Hour)
	long := printed("long")
	long.Truncated, long.LostBytes, long.Stream = true, 5, "pty"
	procd.Print(id, printed("one"), long, future)
	base := "/api/v1/sandboxes/" + id + "/observability/logs"
	var first, rest logList
	i.send(request{method: "GET", path: base + "?limit=2", token: key}).want(200, &first)
	if len(first.Logs) != 2 || first.NextCursor == "" || first.Watermark != first.Logs[1].Cursor {
		t.Fatalf("%+v", first)
	}
	l := first.Logs[0]
	if l.TeamID == "" || l.SandboxID != id || l.RegionID != "local" || l.ClusterID != "local" || l.ContextID != "ctx-00000001" || l.ProcessID != "7" ||
		!l.OccurredAt.Equal(time.Unix(1_700_000_000, 0)) || !l.IngestedAt.Equal(l.OccurredAt) || l.Stream != "stdout" || l.Message != "one" || l.Attributes != nil {
		t.Errorf("%+v", l)
	}
	if a := first.Logs[1].Attributes; a["truncated"] != true || a["lost_bytes"] != 5. {
		t.Errorf("%+v", first.Logs[1])
	}
	i.send(request{method: "GET", path: base + "?cursor=" + first.NextCursor, token: key}).want(200, &rest)
	if len(rest.Logs) != 1 || rest.NextCursor != "" || rest.Logs[0].OccurredAt.After(time.Now()) {
		t.Errorf("%+v", rest)
	}
	for _, q := range []string{
		"limit=0", "limit=1001", "limit=x", "cursor=1", "cursor=0123456789abcdef.99999999999999999999", "cursor=" + url.QueryEscape("'; DROP TABLE sandboxes"),
		"context_id=../x", "stream=stdin", "start_time=yesterday", "start_time=2026-01-01T00:00:00Z&end_time=2026-01-01T00:00:00Z",
		"watch=true&end_time=2026-01-01T00:00:00Z", "watch=true&limit=0",
	} {
		i.send(request{method: "GET", path: base + "?" + q, token: key}).refused(400, "bad_request")
	}
}

// What is asked reaches procd in its own words.
func TestLogQueries(t *testing.T) {
	t.Parallel()
	asked := make(chan url.Values, 1)
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.Proc = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked <- r.URL.Query()
			json.NewEncoder(w).Encode(procapi.LogPage{Epoch: fakenode.LogEpoch, Lines: []procapi.LogLine{
				{Seq: 9, Time: time.Now(), ContextID: "ctx-0000000a", Stream: "stderr"},
			}, Next: 9, Dropped: 3})
		})
	})
	key := i.key("developer")
	id := i.claim(key)
	var list logList
	i.send(request{method: "GET", token: key, path: "/api/v1/sandboxes/" + id + "/observability/logs?limit=7&cursor=" + fakenode.LogEpoch +
		".5&context_id=ctx-0000000a&stream=stderr&start_time=2026-01-01T00:00:00.5Z&end_time=2026-01-02T01:00:00%2B01:00"}).want(200, &list)
	want := url.Values{
		procapi.LogLimit: {"7"}, procapi.LogAfter: {fakenode.LogEpoch + ".5"}, procapi.LogContext: {"ctx-0000000a"}, procapi.LogStream: {"stderr"},
		procapi.LogSince: {"2026-01-01T00:00:00.5Z"}, procapi.LogUntil: {"2026-01-02T00:00:00Z"},
	}
	if got := <-asked; got.Encode() != want.Encode() {
		t.Errorf("asked %v, want %v", got, want)
	}
	if list.Logs[0].Attributes["dropped_lines"] != 3. {
		t.Errorf("%+v", list.Logs[0])
	}
}

// watchLine is a line of a watch as clients decode it.
type watchLine struct {
	Type      string
	Data      json.RawMessage
	Cursor    string
	Watermark string
	Time      time.Time
	Error     string
}

// watch follows a watch until the test ends.
func (i *instance) watch(path, token string) (next func() watchLine) {
	i.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	i.t.Cleanup(cancel)
	req := i.request(request{method: "GET", path: path, token: token, header: http.Header{"Accept": {"application/x-ndjson"}}}).WithContext(ctx)
	resp, err := checked.RoundTrip(req)
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		i.t.Fatalf("%s: %s of %s", path, resp.Status, resp.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(resp.Body)
	return func() (l watchLine) {
		i.t.Helper()
		timer := time.AfterFunc(20*time.Second, cancel)
		defer timer.Stop()
		if !lines.Scan() {
			i.t.Fatalf("the watch has ended: %v", lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			i.t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		return l
	}
}

func TestWatchLogs(t *testing.T) {
	t.Parallel()
	i, procd := withProcd(t)
	key := i.key("developer")
	id := i.claim(key)
	path := "/api/v1/sandboxes/" + id + "/observability/logs?watch=true"
	next := i.watch(path, key)
	if l := next(); l.Type != "heartbeat" || l.Time.IsZero() {
		t.Errorf("%+v", l)
	}
	for n := range 3 {
		procd.Print(id, printed(fmt.Sprint("line ", n)))
		l := next()
		var e entry
		if err := json.Unmarshal(l.Data, &e); err != nil || l.Type != "log" || e.Message != fmt.Sprint("line ", n) || e.SandboxID != id {
			t.Errorf("%+v: %+v (%v)", l, e, err)
		}
		if mark := next(); mark.Type != "watermark" || mark.Cursor != e.Cursor || mark.Watermark != e.Cursor {
			t.Errorf("%+v after %+v", mark, e)
		}
	}
	// The node's daemon restarts; the watch goes on where it was.
	i.node.Stop()
	procd.Print(id, printed("meanwhile"))
	i.node.Listen(t)
	l := next()
	for l.Type == "heartbeat" {
		l = next()
	}
	if !strings.Contains(string(l.Data), `"meanwhile"`) {
		t.Errorf("%+v", l)
	}
	mark := next()
	if l := i.watch(path+"&cursor="+mark.Cursor, key)(); l.Type != "heartbeat" {
		t.Errorf("behind the watermark: %+v", l)
	}
	i.node.Gone(id)
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key})
	for l = next(); l.Type == "heartbeat"; l = next() {
	}
	if l.Type != "error" || l.Error == "" {
		t.Errorf("the sandbox is gone: %+v", l)
	}
}

// A server that stops does not wait for watches.
func TestWatchesEndWithTheServer(t *testing.T) {
	t.Parallel()
	i, _ := withProcd(t)
	key := i.key("developer")
	next := i.watch("/api/v1/sandboxes/"+i.claim(key)+"/logs?watch=true", key)
	next()
	began := time.Now()
	i.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the stop took %v", took)
	}
}

// B13: what a procd that lies says of its journal is refused, and shows nothing of
// another sandbox.
func TestB13_HostileJournals(t *testing.T) {
	t.Parallel()
	page := make(chan string, 1)
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.Proc = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, <-page) })
	})
	key := i.key("developer")
	id := i.claim(key)
	line := `{"seq":1,"time":"2026-01-01T00:00:00Z","context_id":"ctx-00000001","pid":1,"stream":"stdout","message":"m"}`
	with := func(old, new string) string {
		return `{"epoch":"0123456789abcdef","next":1,"lines":[` + strings.Replace(line, old, new, 1) + `]}`
	}
	path := "/api/v1/sandboxes/" + id + "/observability/logs?limit=2"
	page <- with("", "")
	i.send(request{method: "GET", path: path, token: key}).want(200, nil)
	for _, p := range []string{
		`null`, `[]`, `{}`, `{"epoch":"../../../etc/pwd"}`, with(`"seq":1`, `"seq":0`), with(`"seq":1`, `"seq":2`), with(`"seq":1`, `"seq":-1`),
		with("ctx-00000001", "ctx-00000001/../x"), with("stdout", "stdin"), with(`"pid":1`, `"pid":-1`), with(`"time":"2026`, `"time":"12026`),
		with(`"m"`, `"`+strings.Repeat("m", 64<<10)+`"`), `{"epoch":"0123456789abcdef","next":3,"lines":[` + strings.Repeat(line+",", 2) + line + `]}`,
		`{"epoch":"0123456789abcdef","next":18446744073709551615,"lines":[]}`,
	} {
		page <- p
		i.send(request{method: "GET", path: path, token: key}).refused(502, "unavailable")
	}
	page <- with(`"m"`, `"m","team_id":"another","sandbox_id":"another","attributes":{"x":1}`)
	var list logList
	i.send(request{method: "GET", path: path, token: key}).want(200, &list)
	if e := list.Logs[0]; e.SandboxID != id || e.TeamID == "another" || e.Attributes != nil {
		t.Errorf("%+v", e)
	}
}
