package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestSessions is a supervised command, its restarts, and a stream of its events
// that outlives the server's.
func TestSessions(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 1})
	u := newUser(t, s)
	id := u.claim()
	counting := client.ExecutionSessionSpec{Command: []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done"}}
	var session client.ExecutionSession
	u.session("POST", id, "", counting, &session)

	events := u.sessionEvents(id, session.ID, 0)
	ticks, last := 0, int64(0)
	follow := func(until int) error {
		for ticks < until {
			ev, err := events()
			if err != nil {
				return err
			}
			if ev.Seq != last+1 {
				t.Fatalf("event %d after %d", ev.Seq, last)
			}
			last = ev.Seq
			for range bytes.Count(ev.DataBase64, []byte("\n")) {
				ticks++
			}
			if len(ev.DataBase64) > 0 && !strings.HasSuffix(string(ev.DataBase64), fmt.Sprintf("tick %d\n", ticks)) {
				t.Fatalf("after %d ticks came %q", ticks, ev.DataBase64)
			}
		}
		return nil
	}
	if err := follow(5); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	for { // what was under way is read to its end
		if err := follow(ticks + 1); err != nil {
			break
		}
	}
	s.Up()
	u.awaitAnswer(id)
	events = u.sessionEvents(id, session.ID, last)
	if err := follow(ticks + 5); err != nil {
		t.Fatal(err)
	}
	var now client.ExecutionSession
	u.session("GET", id, "/"+session.ID, nil, &now)
	if *now.Attempt.Pid != *session.Attempt.Pid || now.RestartCount != 0 || now.Phase != client.ExecutionSessionPhaseRunning {
		t.Errorf("%+v, attempt %+v", now, now.Attempt)
	}
	u.session("DELETE", id, "/"+session.ID, nil, nil)
	for {
		ev, err := events()
		if err != nil {
			t.Fatalf("the stream ended with %v, not with session.deleted", err)
		}
		if ev.Type == "session.deleted" {
			break
		}
	}
}

// session makes a call about a sandbox's sessions.
func (u *user) session(method, id, path string, in, out any) {
	u.t.Helper()
	body, err := json.Marshal(in)
	must(u, "encoding", body, err)
	resp, err := http.DefaultClient.Do(u.sessionRequest(method, id, path, body))
	must(u, method+" a session", resp, err)
	defer resp.Body.Close()
	env := struct{ Data any }{out}
	if err := json.NewDecoder(resp.Body).Decode(&env); err != nil || resp.StatusCode/100 != 2 {
		u.t.Fatalf("%s %s: %s (%v)", method, path, resp.Status, err)
	}
}

func (u *user) sessionRequest(method, id, path string, body []byte) *http.Request {
	u.t.Helper()
	req, err := http.NewRequestWithContext(u.ctx(), method, u.stack.URL+"/api/v1/sandboxes/"+id+"/sessions"+path, bytes.NewReader(body))
	must(u, "a request", req, err)
	req.Header.Set("Authorization", "Bearer "+u.stack.Key())
	return req
}

// sessionEvents follows a session's events behind a number.
func (u *user) sessionEvents(id, sessionID string, after int64) (next func() (client.ExecutionSessionEvent, error)) {
	u.t.Helper()
	req := u.sessionRequest("GET", id, "/"+sessionID+"/events/stream", nil)
	req.Header.Set("Last-Event-ID", fmt.Sprint(after))
	resp, err := http.DefaultClient.Do(req)
	must(u, "following a session", resp, err)
	u.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		u.t.Fatalf("following a session: %s", resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func() (ev client.ExecutionSessionEvent, err error) {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				err = json.Unmarshal([]byte(data), &ev)
				return ev, err
			}
		}
		if err = lines.Err(); err == nil {
			err = fmt.Errorf("the stream of %s has ended", sessionID)
		}
		return ev, err
	}
}
