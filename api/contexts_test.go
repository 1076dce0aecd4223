package api_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/procapi"
)

// TestRequestTimeout: a client says how long it waits for a process, and procd
// hears it.
func TestRequestTimeout(t *testing.T) {
	t.Parallel()
	told := make(chan string, 1)
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		proc := n.Proc
		n.Proc = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			told <- r.Header.Get(procapi.TimeoutHeader)
			proc.ServeHTTP(w, r)
		})
	})
	key := i.key("developer")
	contexts := "/api/v1/sandboxes/" + i.claim(key) + "/contexts"
	send := func(path, body, timeout string) answer {
		r := request{method: "POST", path: path, token: key, body: body}
		if timeout != "" {
			r.header = http.Header{"Request-Timeout": {timeout}}
		}
		return i.send(r)
	}
	const wait, start = `{"type":"cmd","cmd":{"command":["true"]},"wait_until_done":true}`, `{"type":"repl"}`
	var c struct{ ID string }
	send(contexts, start, "").want(201, &c)
	if got := <-told; got != "" {
		t.Errorf("a request that does not wait told procd to wait for %s ms", got)
	}
	for timeout, ms := range map[string]string{"": "30000", "90": "90000", "0.25": "250", "86400": "86400000", "0.0000001": "1"} {
		send(contexts, wait, timeout).want(201, nil)
		if got := <-told; got != ms {
			t.Errorf("a command with Request-Timeout %q: procd heard %q", timeout, got)
		}
		send(contexts+"/"+c.ID+"/exec", `{"data":"1"}`, timeout).want(200, nil)
		if got := <-told; got != ms {
			t.Errorf("an exec with Request-Timeout %q: procd heard %q", timeout, got)
		}
	}
	for _, bad := range []string{"0", "-1", "86401", "NaN", "Inf", "1e300", "soon", "1s"} {
		send(contexts, wait, bad).refused(400, "invalid_request")
		send(contexts+"/"+c.ID+"/exec", `{"data":"1"}`, bad).refused(400, "invalid_request")
	}
}

// TestA23_WaitingRequestsOfATeamAreBounded: execs that wait for ever cost a team
// its own further ones, and nobody else anything.
func TestA23_WaitingRequestsOfATeamAreBounded(t *testing.T) {
	t.Parallel()
	const most = 512
	release, waiting := make(chan struct{}), make(chan struct{}, most)
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		proc := n.Proc
		n.Proc = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/exec") {
				waiting <- struct{}{}
				<-release
			}
			proc.ServeHTTP(w, r)
		})
	})
	key := i.key("developer")
	contexts := "/api/v1/sandboxes/" + i.claim(key) + "/contexts"
	var c struct{ ID string }
	i.send(request{method: "POST", path: contexts, token: key, body: `{"type":"repl"}`}).want(201, &c)
	exec := request{method: "POST", path: contexts + "/" + c.ID + "/exec", token: key, body: `{"data":"1"}`}
	var all sync.WaitGroup
	for range most {
		all.Go(func() { i.send(exec).want(200, nil) })
	}
	for range most {
		<-waiting
	}
	if a := i.send(exec).refused(429, "quota_exceeded"); a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	i.send(request{method: "GET", path: contexts, token: key}).want(200, nil) // what does not wait is served
	close(release)
	all.Wait()
	i.send(exec).want(200, nil)
}
