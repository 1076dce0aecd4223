package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestObservability reads what real sandboxes print and use.
func TestObservability(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 1})
	t.Run("logs", func(t *testing.T) { testLogs(t, s) })
	t.Run("metrics", func(t *testing.T) { testMetrics(t, s) })
}

func (u *user) logs(id string, opts client.SandboxLogsOptions) *client.SandboxLogList {
	u.t.Helper()
	list, err := u.c.ListSandboxLogs(u.ctx(), id, opts)
	return must(u, "reading logs", list, err)
}

func messages(entries []client.SandboxLogEntry) string {
	var all []string
	for _, e := range entries {
		all = append(all, string(*e.Stream)+":"+e.Message)
	}
	return strings.Join(all, " ")
}

func testLogs(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	c := u.printInOrder(id)
	repl := u.python(id)
	u.exec(id, repl, "print(6 * 7)")

	whole := u.logs(id, client.SandboxLogsOptions{ContextID: c})
	if m := messages(whole.Logs); m != "stdout:one stderr:problem stdout:two" {
		t.Errorf("printed: %s", m)
	}
	for _, e := range whole.Logs {
		if e.SandboxID != id || *e.ContextID != c || e.ClusterID != s.Cluster || time.Since(e.OccurredAt) > patience || e.OccurredAt.After(time.Now().Add(time.Second)) {
			t.Errorf("%+v", e)
		}
	}
	if m := messages(u.logs(id, client.SandboxLogsOptions{Stream: client.SandboxLogStreamPTY}).Logs); !strings.Contains(m, "pty:42") {
		t.Errorf("a terminal printed %q", m)
	}
	var paged []client.SandboxLogEntry
	for opts := (client.SandboxLogsOptions{ContextID: c, Limit: 2}); ; {
		page := u.logs(id, opts)
		paged = append(paged, page.Logs...)
		if page.NextCursor == nil {
			break
		}
		opts.Cursor = *page.NextCursor
	}
	if messages(paged) != messages(whole.Logs) {
		t.Errorf("in pages: %s", messages(paged))
	}
	u.watchAcrossARestart(id, *whole.Watermark)

	if m := messages(u.logs(id, client.SandboxLogsOptions{ContextID: c}).Logs); m != messages(whole.Logs) {
		t.Errorf("after a restart: %s", m)
	}
	if err := u.c.DeleteContext(u.ctx(), id, c); err != nil {
		t.Fatal(err)
	}
	if m := messages(u.logs(id, client.SandboxLogsOptions{ContextID: c}).Logs); m != messages(whole.Logs) {
		t.Errorf("without its context: %s", m)
	}
	u.remove(id)
	if _, err := u.c.ListSandboxLogs(u.ctx(), id, client.SandboxLogsOptions{}); !isStatus(err, 404) {
		t.Errorf("logs of a sandbox that is gone: %v", err)
	}
}

// printInOrder runs a command that prints on both of its streams, which are read apart:
// it prints the next line when the last one is in the journal.
func (u *user) printInOrder(id string) (contextID string) {
	u.t.Helper()
	c := u.start(id, "sh", "-c", "echo one; read x; echo problem >&2; read x; printf two")
	for _, printed := range []string{"stdout:one", "stdout:one stderr:problem"} {
		u.stack.Eventually("the line to be there", func() error {
			if m := messages(u.logs(id, client.SandboxLogsOptions{ContextID: c}).Logs); m != printed {
				return fmt.Errorf("there is %q", m)
			}
			return nil
		})
		must(u, "asking for the next", c, u.c.WriteContextInput(u.ctx(), id, c, "\n"))
	}
	u.await(id, c)
	return c
}

// watchAcrossARestart follows a ticking process from a cursor while the server is
// killed and comes back, as a client does: behind the last line. No line is missing
// and none comes twice.
func (u *user) watchAcrossARestart(id, cursor string) {
	u.t.Helper()
	tick, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{
		Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done"}},
	})
	must(u, "starting a clock", tick, err)
	enough := errors.New("enough")
	opts := client.SandboxLogsOptions{Cursor: cursor, ContextID: tick.ID}
	next := 1
	follow := func(until int) error {
		ctx, cancel := context.WithTimeout(u.ctx(), patience)
		defer cancel()
		return u.c.FollowSandboxLogs(ctx, id, opts, func(e client.SandboxLogEntry) error {
			if e.Message != fmt.Sprint(next) {
				u.t.Errorf("line %q, want %d", e.Message, next)
			}
			next++
			if opts.Cursor = e.Cursor; next > until {
				return enough
			}
			return nil
		})
	}
	if err := follow(5); !errors.Is(err, enough) {
		u.t.Fatalf("watching: %v", err)
	}
	u.stack.Kill()
	u.stack.Up()
	u.stack.Eventually("a watch after the restart", func() error {
		if err := follow(next + 5); !errors.Is(err, enough) {
			return err
		}
		return nil
	})
}

func testMetrics(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	before := u.metrics(id)
	u.run(id, "dd", "if=/dev/urandom", "of=/root/x", "bs=1M", "count=50", "status=none")
	hold, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{
		Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"python3", "-uc", "a = b'x' * (100 << 20); print('holding'); input()"}},
	})
	must(u, "holding memory", hold, err)
	s.Eventually("100 MiB to be held", func() error {
		if m := messages(u.logs(id, client.SandboxLogsOptions{ContextID: hold.ID}).Logs); m != "stdout:holding" {
			return fmt.Errorf("it printed %q", m)
		}
		return nil
	})
	u.run(id, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done")
	var after map[string]float64
	s.Eventually("all of that to be shown", func() error { // the newest sample may be older
		after = u.metrics(id)
		for name, want := range map[string][2]float64{
			"sandbox.rootfs.writable.usage": {50 << 20, 60 << 20}, "sandbox.memory.working_set": {100 << 20, 400 << 20},
			"sandbox.process.count": {10, 1000},
		} {
			if grown := after[name] - before[name]; grown < want[0] || grown > want[1] {
				return fmt.Errorf("%s went from %.0f to %.0f, want %.0f more", name, before[name], after[name], want[0])
			}
		}
		return nil
	})
	if used := after["sandbox.memory.utilization"]; used <= 0 || used >= 1 || after["sandbox.memory.limit"] != 2<<30 || after["sandbox.cpu.limit"] != 1 {
		t.Errorf("%v", after)
	}
	u.series(id)
	s.Eventually("what is worked, sent, answered and denied to be counted", func() error {
		u.run(id, "python3", "-c", works)
		now := u.metrics(id)
		for name, want := range map[string]float64{
			"sandbox.cpu.time": 1, "sandbox.network.io transmit": 200_000, "sandbox.network.packets transmit": 200, "sandbox.network.io receive": 40, "sandbox.network.denied": 1,
		} {
			if grown := now[name] - before[name]; grown < want {
				return fmt.Errorf("%s grew by %.0f, want %.0f", name, grown, want)
			}
		}
		return nil
	})
}

// works keeps a processor busy, sends what goes nowhere, and something that is answered
// with a refusal.
const works = `
import socket, time
while time.process_time() < 0.5:
    pass
to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(200):
    to.sendto(b"x" * 1000, ("169.254.169.254", 9))
try:
    socket.create_connection(("169.254.169.254", 80), 20)
except OSError:
    pass
`

// metrics is what a sandbox uses now, by name, and direction where there are two.
func (u *user) metrics(id string) map[string]float64 {
	u.t.Helper()
	list, err := u.c.ListSandboxMetricSamples(u.ctx(), id, client.MetricSamplesOptions{})
	now := map[string]float64{}
	for _, s := range must(u, "reading metrics", list, err).Samples {
		if direction := s.Attributes["direction"]; direction != nil {
			s.Name += fmt.Sprint(" ", direction)
		}
		now[s.Name] = s.Value
	}
	return now
}

// series looks at a chart once the node has looked at the sandbox by itself.
func (u *user) series(id string) {
	u.t.Helper()
	u.stack.Eventually("a series of two samples", func() error {
		m, err := u.c.SandboxMetrics(u.ctx(), id, client.MetricsOptions{})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(m.Series, func(s client.SandboxRuntimeMetricSeries) bool { return s.Metric == "sandbox.cpu.utilization" })
		if i < 0 {
			return errors.New("not yet")
		}
		if p := m.Series[i].Segments[0].Points[0].Value; p < 0 || p > 2 || len(m.Series) != 15 || m.Freshness.Status != "fresh" {
			u.t.Errorf("%+v", m)
		}
		return nil
	})
}
