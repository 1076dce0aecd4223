package api_test

import (
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/store"
)

type teamQuota struct {
	TeamID     string `json:"team_id"`
	Dimension  string
	Kind       string
	LimitValue *int64 `json:"limit_value"`
	IntervalMS *int64 `json:"interval_ms"`
	BurstValue *int64 `json:"burst_value"`
	Current    *int64
	Remaining  *int64
	Unlimited  bool
	Unit       string
	Source     string
}

// teamID is the team of a key.
func (i *instance) teamID(key string) string {
	i.t.Helper()
	var q teamQuota
	i.send(request{method: "GET", path: "/api/v1/quotas/active_sandboxes", token: key}).want(200, &q)
	return q.TeamID
}

func (i *instance) limit(team, dimension, body string) teamQuota {
	i.t.Helper()
	var q teamQuota
	i.send(request{method: "PUT", path: "/internal/v1/teams/" + team + "/quotas/" + dimension, token: i.signIn(), body: body}).want(200, &q)
	return q
}

func TestA15_ExactlyTheQuotaOfManyAtOnce(t *testing.T) {
	t.Parallel()
	first := start(t, func(c *api.Config, n *fakenode.Node) { c.PoolMin, c.PoolMax = 150, 150 })
	second := start(t, func(c *api.Config, _ *fakenode.Node) {
		c.DatabaseURL, c.Nodes, c.KeyFile = first.dsn, []string{first.node.Socket}, first.keyFile
		c.PoolMin, c.PoolMax = 150, 150
	})
	key := first.key("developer")
	team := first.teamID(key)
	first.limit(team, "active_sandboxes", `{"limit_value":10}`)
	var made, refused atomic.Int32
	var wg sync.WaitGroup
	for n := range 100 {
		i := []*instance{first, second}[n%2]
		wg.Go(func() {
			a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`})
			switch {
			case a.status == 201:
				made.Add(1)
			case a.status == 429 && a.code == "quota_exceeded" && a.header.Get("Retry-After") != "":
				refused.Add(1)
			default:
				t.Errorf("%d %s", a.status, a.raw)
			}
		})
	}
	wg.Wait()
	if made.Load() != 10 || refused.Load() != 90 {
		t.Errorf("%d made, %d refused", made.Load(), refused.Load())
	}
	// Each replica lets no more go on than there is room for: whoever is refused
	// takes no slot.
	fakenode.Eventually(t, "what was refused is undone", func() bool { return len(first.node.Sandboxes()) == 10 })
	if burnt := len(first.node.Deleted()); burnt > 10 {
		t.Errorf("%d slots were taken in vain", burnt)
	}
	before := len(first.node.Deleted())
	for range 50 {
		first.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).refused(429, "quota_exceeded")
	}
	if burnt := len(first.node.Deleted()) - before; burnt != 0 {
		t.Errorf("a team at its quota took %d slots", burnt)
	}
	var e struct {
		Error struct {
			Details struct {
				Dimension  string
				LimitValue int64 `json:"limit_value"`
			}
		}
	}
	a := first.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`})
	if err := json.Unmarshal(a.raw, &e); err != nil || e.Error.Details.Dimension != "active_sandboxes" || e.Error.Details.LimitValue != 10 {
		t.Errorf("%s: %v", a.raw, err)
	}
	// What ends leaves room, at once.
	var list struct{ Sandboxes []struct{ ID string } }
	first.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, &list)
	first.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + list.Sandboxes[0].ID, token: key}).want(200, nil)
	second.claim(key)
}

func TestQuotasAsClientsSeeThem(t *testing.T) {
	t.Parallel()
	i := start(t, func(c *api.Config, _ *fakenode.Node) {
		c.Quotas = map[string]int64{"memory_mib": 8192, "network_egress_bytes": 1e9}
	})
	key := i.key("viewer")
	i.claim(i.key("developer"))
	list := func(query string) map[string]teamQuota {
		t.Helper()
		var all []teamQuota
		i.send(request{method: "GET", path: "/api/v1/quotas" + query, token: key}).want(200, &all)
		m := map[string]teamQuota{}
		for _, q := range all {
			m[q.Dimension] = q
		}
		return m
	}
	few, all := list(""), list("?all=true")
	if len(few) != 7 || len(all) != 13 {
		t.Errorf("%d and %d dimensions", len(few), len(all))
	}
	if q := all["memory_mib"]; q.Unlimited || *q.LimitValue != 8192 || *q.Current == 0 || *q.Remaining != 8192-*q.Current || q.Unit != "MiB" || q.Kind != "capacity" || q.Source != "region_default" {
		t.Errorf("%+v", q)
	}
	if q := few["active_sandboxes"]; !q.Unlimited || q.LimitValue != nil || *q.Current != 1 || q.Remaining != nil || q.Unit != "count" || q.Source != "unlimited" {
		t.Errorf("%+v", q)
	}
	for _, name := range []string{"egress", "network_egress_bytes"} {
		if q := all[name]; q.Dimension != name || q.Unlimited || *q.LimitValue != 1e9 || q.Kind != "rate" || q.Unit != "bytes" {
			t.Errorf("%+v", q)
		}
	}
	if q := few["api_requests"]; *q.LimitValue != 10_000 || *q.IntervalMS != 1000 || *q.BurstValue != 10_000 || q.Current != nil {
		t.Errorf("%+v", q)
	}
	team := i.teamID(key)
	i.limit(team, "memory_mib", `{"unlimited":true}`)
	if q := list("?all=true")["memory_mib"]; !q.Unlimited {
		t.Errorf("%+v", q)
	}
	if q := i.limit(team, "egress", `{"limit_value":5000,"interval_ms":1000,"burst_value":9000}`); *q.IntervalMS != 1000 || *q.BurstValue != 9000 || q.Source != "team_override" {
		t.Errorf("%+v", q)
	}
	i.send(request{method: "DELETE", path: "/internal/v1/teams/" + team + "/quotas/memory_mib", token: i.signIn()}).want(200, nil)
	if q := list("?all=true")["memory_mib"]; q.Unlimited {
		t.Errorf("%+v", q)
	}
	i.send(request{method: "GET", path: "/api/v1/quotas/everything", token: key}).refused(400, "bad_request")
}

func TestWhoMayLimitTeamsAndHow(t *testing.T) {
	t.Parallel()
	i := start(t)
	admin, jwt := i.key("admin"), i.signIn()
	var platform struct{ Key string }
	i.send(request{method: "POST", path: "/api-keys", token: jwt, body: `{"name":"p","scope":"platform","roles":["admin"],"expires_in":"30d"}`}).want(201, &platform)
	team := i.teamID(admin)
	path := "/internal/v1/teams/" + team + "/quotas/active_sandboxes"
	for _, p := range []string{path, "/internal/v1/metering/status", "/internal/v1/metering/events", "/internal/v1/metering/windows"} {
		method, body := "GET", any(nil)
		if p == path {
			method, body = "PUT", `{"limit_value":5}`
		}
		i.send(request{method: method, path: p, token: admin, body: body}).refused(403, "forbidden")
		i.send(request{method: method, path: p, token: jwt, body: body}).want(200, nil)
		i.send(request{method: method, path: p, token: platform.Key, body: body}).want(200, nil)
	}
	for body, dimension := range map[string]string{
		`{}`: "active_sandboxes", `{"unlimited":false}`: "active_sandboxes", `{"limit_value":1,"unlimited":true}`: "active_sandboxes", `{"limit_value":null}`: "active_sandboxes", `{"limit_value":-1}`: "active_sandboxes", `{"limit_value":1e3}`: "active_sandboxes", `{"limit_value":1.5}`: "active_sandboxes",
		`{"limit_value":5,"interval_ms":5}`: "active_sandboxes", `{"limit_value":9000000000000000000}`: "memory_mib", `{"limit_value":5}`: "api_requests",
		`{"limit_value":6}`: "nothing", `{"limit_value":6,"interval_ms":0}`: "egress", `{"limit_value":6,"burst_value":-1}`: "egress", `{"limit_value":"6"}`: "egress", `{"limit":6}`: "egress",
	} {
		a := i.send(request{method: "PUT", path: "/internal/v1/teams/" + team + "/quotas/" + dimension, token: jwt, body: body})
		if a.status != 400 {
			t.Errorf("%s of %s: %d %s", body, dimension, a.status, a.raw)
		}
	}
	for _, unknown := range []string{"00000000-0000-0000-0000-000000000000", "x"} {
		p := "/internal/v1/teams/" + unknown + "/quotas/active_sandboxes"
		i.send(request{method: "PUT", path: p, token: jwt, body: `{"limit_value":5}`}).refused(404, "not_found")
		i.send(request{method: "DELETE", path: p, token: jwt}).refused(404, "not_found")
	}
	i.send(request{method: "DELETE", path: path, token: jwt}).want(200, nil)
	i.send(request{method: "DELETE", path: path, token: jwt}).refused(404, "not_found")
}

// More memory than a quota leaves is refused, and the node is not left with it.
func TestQuotaOfMemoryHoldsForUpdates(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	memory := i.node.Sandboxes()[id].GetMemoryBytes()
	i.limit(i.teamID(key), "memory_mib", `{"limit_value":8192}`)
	put := func(size string) answer {
		return i.send(request{method: "PUT", path: "/api/v1/sandboxes/" + id, token: key, body: `{"config":{"resources":{"memory":"` + size + `"}}}`})
	}
	put("9Gi").refused(429, "quota_exceeded")
	fakenode.Eventually(t, "the node has what the row says", func() bool {
		got := i.node.Sandboxes()[id].GetMemoryBytes()
		return got == memory || got == 2<<30 // the template's own, said or not
	})
	put("8Gi").want(200, nil)
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).refused(429, "quota_exceeded")
}

func TestMeteringPages(t *testing.T) {
	t.Parallel()
	i := start(t)
	key, jwt := i.key("developer"), i.signIn()
	stranger := i.stranger()
	id := i.claim(key)
	i.stop() // its own meter makes a pass now and then
	// An hour that is over, as a pass of a replica's meter closes it.
	exec(t, i.dsn, `UPDATE metering_progress SET recount_from = NULL, windows_until = windows_until - interval '4 hours', events_until = events_until - interval '4 hours'`)
	exec(t, i.dsn, `UPDATE sandboxes SET runs_since = runs_since - interval '2 hours', claimed_at = claimed_at - interval '2 hours'`)
	type window struct {
		WindowID   string `json:"window_id"`
		WindowType string `json:"window_type"`
		SandboxID  string `json:"sandbox_id"`
		TeamID     string `json:"team_id"`
		Value      int64
		Unit       string
	}
	type page struct {
		Windows    []window
		NextCursor string `json:"next_cursor"`
	}
	get := func(path, token string) (p page) {
		t.Helper()
		i.send(request{method: "GET", path: path, token: token}).want(200, &p)
		return p
	}
	meter, err := store.Open(t.Context(), i.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer meter.Close()
	if err := meter.Meter(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.again()
	mine := get("/api/v1/usage/windows?window_type=sandbox.runtime_mib_milliseconds&limit=1000", key)
	if len(mine.Windows) == 0 || mine.Windows[0].SandboxID != id || mine.Windows[0].Value <= 0 || mine.Windows[0].TeamID != "" || mine.Windows[0].Unit != "mib_milliseconds" {
		t.Fatalf("%+v", mine)
	}
	if more := get("/api/v1/usage/windows?cursor="+mine.NextCursor, key); len(more.Windows) != 0 || more.NextCursor != mine.NextCursor {
		t.Errorf("%+v", more)
	}
	if theirs := get("/api/v1/usage/windows", stranger); len(theirs.Windows) != 0 {
		t.Errorf("A01: a stranger sees %+v", theirs)
	}
	if all := get("/internal/v1/metering/windows?limit=1", jwt); len(all.Windows) != 1 || all.Windows[0].TeamID == "" {
		t.Errorf("%+v", all)
	}
	var events struct {
		Events []struct {
			EventType string `json:"event_type"`
			SandboxID string `json:"sandbox_id"`
		}
	}
	i.send(request{method: "GET", path: "/internal/v1/metering/events", token: jwt}).want(200, &events)
	if len(events.Events) != 1 || events.Events[0].EventType != "sandbox.claimed" || events.Events[0].SandboxID != id {
		t.Errorf("%+v", events)
	}
	for _, query := range []string{"?cursor=1", "?cursor=m-1", "?cursor=M1", "?limit=0", "?limit=1001", "?limit=x", "?window_type=x"} {
		if a := i.send(request{method: "GET", path: "/api/v1/usage/windows" + query, token: key}); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d", query, a.status)
		}
	}
	i.send(request{method: "GET", path: "/internal/v1/metering/status", token: jwt}).want(200, nil)
}

// A16: a repeated claim is no second one, for the quota neither.
func TestA16_TheSameClaimCountsOnce(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	i.limit(i.teamID(key), "active_sandboxes", `{"limit_value":1}`)
	claim := func(idempotency, body string) answer {
		return i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: body, header: http.Header{"Idempotency-Key": {idempotency}}})
	}
	var ids sync.Map
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			var c struct {
				SandboxID string `json:"sandbox_id"`
			}
			if a := claim("k", `{"template":"default"}`); a.status == 201 && json.Unmarshal(a.data, &c) == nil {
				ids.Store(c.SandboxID, true)
			} else {
				t.Errorf("%d %s", a.status, a.raw)
			}
		})
	}
	wg.Wait()
	n := 0
	ids.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d sandboxes of one key", n)
	}
	claim("k", `{"template":"default","config":{"ttl":5}}`).refused(422, "bad_request")
	claim("another", `{"template":"default"}`).refused(429, "quota_exceeded")
}
