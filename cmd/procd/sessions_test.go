package main

import (
	"bufio"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/proctest"
)

// awaitSession reads a session's events until one of a type has come, or the text
// was printed, and returns what was printed and how the last attempt before it
// ended.
func awaitSession(t *testing.T, c *proctest.Conn, id, what string) (printed string, ended procapi.SessionEvent) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	defer cancel()
	resp, err := c.Do(ctx, "GET", procapi.PathSessions+"/"+id+"/events/stream", nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("following: %v, %v", resp, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, procapi.MaxSessionEvent)
	var all []string
	for lines.Scan() {
		var ev procapi.SessionEvent
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			t.Fatal(err)
		}
		all = append(all, ev.Type+" "+ev.Reason+string(ev.Data))
		printed += string(ev.Data)
		if ev.Type == procapi.AttemptExited {
			ended = ev
		}
		if ev.Type == what || strings.Contains(printed, what) {
			return printed, ended
		}
	}
	t.Fatalf("no %s (%v) after\n%s", what, lines.Err(), strings.Join(all, "\n"))
	return "", ended
}

// TestSessionsInGVisor: what depends on the kernel, terminals, groups and signals.
func TestSessionsInGVisor(t *testing.T) {
	t.Parallel()
	c := startGVisor(t).Conn
	create := func(spec procapi.SessionSpec) (s procapi.Session) {
		t.Helper()
		c.Call(t, "POST", procapi.PathSessions, spec, &s)
		return s
	}
	at := func(s procapi.Session, call string) string { return procapi.PathSessions + "/" + s.ID + call }

	t.Run("signals", func(t *testing.T) {
		s := create(procapi.SessionSpec{
			Command: []string{"sh", "-c", `trap "echo caught" INT; echo up; while :; do sleep 0.05; done`},
			IO:      procapi.SessionIO{Mode: procapi.IOPTY}, Readiness: procapi.SessionReadiness{Type: procapi.ReadyOutput, Output: "up\r\n"},
		})
		awaitSession(t, c, s.ID, "session.running")
		c.Call(t, "POST", at(s, "/signals"), procapi.SessionSignal{Signal: "INT", ExpectedAttempt: s.Attempt.ID}, nil)
		awaitSession(t, c, s.ID, "caught")
		c.Call(t, "POST", at(s, "/signals"), procapi.SessionSignal{Signal: "KILL"}, nil)
		if _, ended := awaitSession(t, c, s.ID, "session.failed"); ended.Reason != "killed" || *ended.ExitCode != 137 {
			t.Errorf("ended %+v", ended)
		}
	})
	t.Run("a stop that is ignored ends in a kill of all", func(t *testing.T) {
		grace := int64(0)
		s := create(procapi.SessionSpec{
			Command:   []string{"sh", "-c", `trap "" TERM; setsid sleep 1000 & sleep 1000 & echo up; wait; wait; wait`},
			Lifecycle: procapi.SessionLifecycle{GraceSeconds: &grace}, Readiness: procapi.SessionReadiness{Type: procapi.ReadyOutput, Output: "up"},
		})
		awaitSession(t, c, s.ID, "session.running")
		c.Call(t, "PUT", at(s, "/desired-state"), procapi.SessionDesiredState{State: procapi.DesiredStopped}, nil)
		if _, ended := awaitSession(t, c, s.ID, "session.stopped"); ended.Reason != "stopped" {
			t.Errorf("ended %+v", ended)
		}
		var left procapi.Context
		c.Call(t, "POST", procapi.PathContexts, procapi.CreateContext{
			Type: "cmd", CMD: &procapi.CMDRequest{Command: []string{"sh", "-c", `for f in /proc/[0-9]*/cmdline; do tr '\0' ' ' <$f; echo; done 2>/dev/null`}}, WaitUntilDone: true,
		}, &left)
		if left.Stdout == nil || strings.Contains(*left.Stdout, "sleep 1000") {
			t.Errorf("still there: %v", *left.Stdout)
		}
	})
	t.Run("end of input", func(t *testing.T) {
		for _, mode := range []string{procapi.IOPipes, procapi.IOPTY} {
			s := create(procapi.SessionSpec{Command: []string{"cat"}, IO: procapi.SessionIO{Mode: mode}})
			c.Call(t, "POST", at(s, "/inputs"), procapi.SessionInput{InputID: "1", Data: []byte("the end\n"), EOF: true}, nil)
			if printed, _ := awaitSession(t, c, s.ID, "session.exited"); !strings.Contains(printed, "the end") {
				t.Errorf("%s: printed %q", mode, printed)
			}
		}
	})
}
