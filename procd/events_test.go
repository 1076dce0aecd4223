package procd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/proctest"
)

// What happens is streamed until it is acknowledged, and the stream goes on with
// what happens then. Other tests make events, too: what was read is acknowledged,
// so that there is room.
func TestEvents(t *testing.T) {
	t.Parallel()
	c := connect(t)
	dir := filepath.Join(t.TempDir(), "watched")
	c.Call(t, "PUT", procapi.PathEventsConfig, procapi.EventsConfig{WatchDir: dir}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), proctest.Patience)
	defer cancel()
	resp, err := c.Do(ctx, http.MethodGet, procapi.PathEvents+"?after=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, procapi.MaxEventBytes)
	var last uint64
	until := func(what string, fits func(e procapi.Event, payload string) bool) {
		t.Helper()
		for lines.Scan() {
			var e procapi.Event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Seq != last+1 && last > 0 {
				t.Fatalf("event %d: %q, %v", last, lines.Bytes(), err)
			}
			last = e.Seq
			c.Call(t, "POST", procapi.PathEventsAck, procapi.EventsAck{Through: last}, nil)
			if fits(e, fmt.Sprint(e.Payload)) {
				return
			}
		}
		t.Fatalf("never told of %s: %v", what, lines.Err())
	}
	mine := create(t, c, sh("exit 7"))
	until("the start", func(e procapi.Event, p string) bool {
		return e.Type == procapi.EventProcessStarted && strings.Contains(p, mine.ID)
	})
	until("the end", func(e procapi.Event, p string) bool {
		return e.Type == procapi.EventProcessCrashed && strings.Contains(p, mine.ID) && strings.Contains(p, "exit_code:7")
	})
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	until("the file", func(e procapi.Event, p string) bool {
		return e.Type == procapi.EventFileModified && strings.Contains(p, filepath.Join(dir, "file"))
	})
	for path, body := range map[string]string{
		procapi.PathEventsConfig: `{"watch_dir":"` + strings.Repeat("d", procapi.MaxWatchDir+1) + `"}`, procapi.PathEventsAck: `{"through":-1}`,
	} {
		method := map[string]string{procapi.PathEventsConfig: "PUT", procapi.PathEventsAck: "POST"}[path]
		if status, e := c.Refused(t, method, path, body); status != 400 || e.Code != "invalid_request" {
			t.Errorf("%s: %d %+v", path, status, e)
		}
	}
	if status, e := c.Refused(t, "GET", procapi.PathEvents+"?after=x", ""); status != 400 || e.Code != "invalid_request" {
		t.Errorf("a stream from nowhere: %d %+v", status, e)
	}
}
