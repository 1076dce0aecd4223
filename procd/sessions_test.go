package procd

import (
	"bufio"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/proctest"
	"s0.run/internal/warm"
)

func createSession(t *testing.T, c *proctest.Conn, spec procapi.SessionSpec) procapi.Session {
	t.Helper()
	var s procapi.Session
	c.Call(t, "POST", procapi.PathSessions, spec, &s)
	t.Cleanup(func() { c.Raw(t, "DELETE", atSession(s.ID, ""), "") })
	return s
}

func atSession(id, call string) string { return procapi.PathSessions + "/" + id + call }

// eventStream is a session's events as they come.
type eventStream struct {
	t     *testing.T
	lines *bufio.Scanner
	all   []procapi.SessionEvent
}

func followSession(t *testing.T, c *proctest.Conn, id string, after uint64) *eventStream {
	t.Helper()
	resp, err := c.Do(t.Context(), http.MethodGet, atSession(id, "/events/stream?after="+strconv.FormatUint(after, 10)), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d", resp.StatusCode)
	}
	s := &eventStream{t: t, lines: bufio.NewScanner(resp.Body)}
	s.lines.Buffer(nil, procapi.MaxSessionEvent)
	return s
}

// until reads until a condition holds for all that has come, or to the end.
func (s *eventStream) until(enough func(all []procapi.SessionEvent) bool) []procapi.SessionEvent {
	s.t.Helper()
	for !enough(s.all) && s.lines.Scan() {
		var ev procapi.SessionEvent
		if err := json.Unmarshal(s.lines.Bytes(), &ev); err != nil {
			s.t.Fatal(err)
		}
		s.all = append(s.all, ev)
	}
	if err := s.lines.Err(); err != nil {
		s.t.Fatal(err)
	}
	return s.all
}

func awaitEvents(t *testing.T, c *proctest.Conn, id string, enough func(all []procapi.SessionEvent) bool) []procapi.SessionEvent {
	t.Helper()
	return followSession(t, c, id, 0).until(enough)
}

// waitGone waits until a process is dead, reaped or not.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("process %d is still there: %s", pid, stat)
		}
	}
}

func printed(all []procapi.SessionEvent) string {
	var b strings.Builder
	for _, ev := range all {
		b.Write(ev.Data)
	}
	return b.String()
}

func prints(text string) func([]procapi.SessionEvent) bool {
	return func(all []procapi.SessionEvent) bool { return strings.Contains(printed(all), text) }
}

func happens(typ string) func([]procapi.SessionEvent) bool {
	return func(all []procapi.SessionEvent) bool { return len(all) > 0 && all[len(all)-1].Type == typ }
}

func never([]procapi.SessionEvent) bool { return false }

func TestASessionOnATerminal(t *testing.T) {
	t.Parallel()
	c := connect(t)
	s := createSession(t, c, procapi.SessionSpec{
		Name: "shell", Command: []string{"sh", "-c", `stty size; echo "$TERM $GREETING"; read line; stty size; echo "got $line"`}, Env: map[string]string{"GREETING": "hello"},
		IO: procapi.SessionIO{Mode: procapi.IOPTY, Terminal: &procapi.SessionTerminal{Rows: 30, Cols: 100}},
	})
	awaitEvents(t, c, s.ID, prints("30 100\r\nxterm-256color hello\r\n"))
	c.Call(t, "PUT", atSession(s.ID, "/terminal"), procapi.SessionResize{Rows: 31, Cols: 101, ExpectedAttempt: s.Attempt.ID}, nil)
	var receipt procapi.SessionInputReceipt
	for range 2 {
		c.Call(t, "POST", atSession(s.ID, "/inputs"), procapi.SessionInput{InputID: "1", Data: []byte("a line\n")}, &receipt)
	}
	if !receipt.Duplicate {
		t.Errorf("receipt %+v", receipt)
	}
	all := awaitEvents(t, c, s.ID, happens("session.exited"))
	if out := printed(all); strings.Count(out, "a line") != 2 || !strings.Contains(out, "31 101\r\ngot a line\r\n") { // echoed and answered
		t.Errorf("printed %q", out)
	}
	for i, ev := range all {
		if ev.Seq != uint64(i+1) || ev.SessionID != s.ID {
			t.Errorf("event %d: %+v", i, ev)
		}
	}
	var logs procapi.LogPage
	c.Call(t, "GET", procapi.PathLogs+"?context_id="+s.ID, nil, &logs)
	if len(logs.Lines) == 0 || logs.Lines[0].Message != "30 100" || logs.Lines[0].PID != s.Attempt.PID {
		t.Errorf("logs %+v", logs)
	}
	var page procapi.SessionEventPage
	c.Call(t, "GET", atSession(s.ID, "/events?after=2&limit=3"), nil, &page)
	if len(page.Events) != 3 || page.Events[0].Seq != 3 || page.Cursor.Latest != uint64(len(all)) {
		t.Errorf("page %+v", page)
	}
}

// TestB09_ASessionEndsWithWhatItStarted: a background child that holds the streams
// does not outlive the attempt.
func TestB09_ASessionEndsWithWhatItStarted(t *testing.T) {
	t.Parallel()
	c := connect(t)
	s := createSession(t, c, procapi.SessionSpec{Command: []string{"sh", "-c", `trap "" TERM; sleep 1000 & echo "child $!"; wait; wait`}, Lifecycle: procapi.SessionLifecycle{GraceSeconds: new(int64(0))}})
	out := printed(awaitEvents(t, c, s.ID, prints("\n")))
	child, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(out, "child ")))
	if err != nil {
		t.Fatalf("printed %q", out)
	}
	c.Call(t, "PUT", atSession(s.ID, "/desired-state"), procapi.SessionDesiredState{State: procapi.DesiredStopped}, &s)
	if s.Phase != procapi.PhaseStopping {
		t.Errorf("phase %s", s.Phase)
	}
	awaitEvents(t, c, s.ID, happens("session.stopped"))
	waitGone(t, child)
	c.Call(t, "GET", atSession(s.ID, ""), nil, &s)
	if s.Attempt.Reason != "stopped" || s.Attempt.ExitCode == nil || *s.Attempt.ExitCode != 137 {
		t.Errorf("attempt %+v", s.Attempt)
	}
}

func TestASessionIsRestartedAndDeleted(t *testing.T) {
	t.Parallel()
	c := connect(t)
	file := filepath.Join(t.TempDir(), "count")
	s := createSession(t, c, procapi.SessionSpec{
		Command:   []string{"sh", "-c", `echo x >>` + file + `; test $(wc -l <` + file + `) -ge 3 || exit 1; echo ready; exec sleep 1000`},
		Lifecycle: procapi.SessionLifecycle{Restart: procapi.SessionRestart{Policy: procapi.RestartOnFailure, InitialBackoffMS: 1, MaxBackoffMS: 2}},
		Readiness: procapi.SessionReadiness{Type: procapi.ReadyOutput, Output: "ready"},
	})
	awaitEvents(t, c, s.ID, happens("session.running"))
	c.Call(t, "GET", atSession(s.ID, ""), nil, &s)
	if s.Attempt.Number != 3 || s.RestartCount != 2 {
		t.Errorf("%+v, attempt %+v", s, s.Attempt)
	}
	if status, e := c.Refused(t, "POST", atSession(s.ID, "/attempts"), procapi.SessionAttemptRequest{}); status != http.StatusConflict || e.Code != procapi.CodeAttemptRunning {
		t.Errorf("%d %+v", status, e)
	}
	pid := s.Attempt.PID
	c.Call(t, "POST", atSession(s.ID, "/attempts"), procapi.SessionAttemptRequest{ReplaceCurrent: true}, &s)
	if s.Attempt.Number != 4 {
		t.Errorf("attempt %+v", s.Attempt)
	}
	waitGone(t, pid)
	stream := followSession(t, c, s.ID, s.Cursor.Latest)
	c.Call(t, "DELETE", atSession(s.ID, ""), nil, nil)
	if all := stream.until(never); !happens(procapi.SessionDeleted)(all) {
		t.Errorf("the stream ended after %+v", all)
	}
	waitGone(t, s.Attempt.PID)
	if status, e := c.Refused(t, "GET", atSession(s.ID, ""), nil); status != http.StatusNotFound || e.Code != procapi.CodeSessionNotFound {
		t.Errorf("%d %+v", status, e)
	}
}

func TestB10_SessionsThatCannotStart(t *testing.T) {
	t.Parallel()
	c := connect(t)
	for name, spec := range map[string]procapi.SessionSpec{
		"no such program":   {Command: []string{"/no/such/program"}},
		"no such directory": {Command: []string{"true"}, Cwd: "/no/such/directory"},
		"no command":        {},
	} {
		if status, e := c.Refused(t, "POST", procapi.PathSessions, spec); status != http.StatusBadRequest || e.Code != "invalid_request" {
			t.Errorf("%s: %d %+v", name, status, e)
		}
	}
	if status, _ := c.Raw(t, "POST", procapi.PathSessions, `{"command":["true"],"priority":1}`); status != http.StatusBadRequest {
		t.Errorf("an unknown field: %d", status)
	}
	for _, query := range []string{"?after=-1", "?limit=0", "?limit=1001", "?after=x", "?after=1&after=2"} {
		if status, _ := c.Raw(t, "GET", atSession("sess-1", "/events"+query), ""); status != http.StatusBadRequest {
			t.Errorf("%s: %d", query, status)
		}
	}
}

// Probes run inside, and what they say is in the session and its events.
func TestSessionProbes(t *testing.T) {
	t.Parallel()
	c := connect(t)
	l := listen(t, "tcp", "127.0.0.1:0", func(net.Conn) {})
	port := l.Addr().(*net.TCPAddr).Port
	probe := func(of warm.Probe) *procapi.SessionProbe {
		of.TimeoutSeconds = 60 // a process may be long in starting
		return &procapi.SessionProbe{Probe: of.WithDefaults()}
	}
	s := createSession(t, c, procapi.SessionSpec{Command: []string{"sleep", "1000"}, Probes: procapi.SessionProbes{
		Startup: probe(warm.Probe{TCPPort: port}), Readiness: probe(warm.Probe{Exec: []string{"true"}}),
		Liveness: probe(warm.Probe{Exec: []string{"sh", "-c", "echo gone; exit 3"}, FailureThreshold: 1}),
	}})
	events := awaitEvents(t, c, s.ID, func(all []procapi.SessionEvent) bool {
		return len(all) > 0 && all[len(all)-1].Type == "session."+procapi.PhaseFailed
	})
	var got []string
	for _, e := range events {
		if e.Type == procapi.ProbePassed || e.Type == procapi.ProbeFailed || e.Type == procapi.AttemptExited {
			got = append(got, e.Type+" "+e.Reason)
		}
	}
	for _, want := range []string{
		"probe.passed " + procapi.ProbeStartup, `probe.failed Liveness probe failed: command "sh": exited with code 3: gone`, "attempt.exited " + procapi.EndedByLiveness,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q among %q", want, got)
		}
	}
}
