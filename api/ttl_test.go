package api_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"
)

func TestTTLsOnTheWire(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	type times struct {
		ExpiresAt     time.Time `json:"expires_at"`
		HardExpiresAt time.Time `json:"hard_expires_at"`
		AutoResume    bool      `json:"auto_resume"`
	}
	claim := func(config string) string {
		t.Helper()
		var c struct {
			SandboxID string `json:"sandbox_id"`
		}
		i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default","config":` + config + `}`}).want(201, &c)
		return "/api/v1/sandboxes/" + c.SandboxID
	}
	get := func(path string) (got times) {
		t.Helper()
		i.send(request{method: "GET", path: path, token: key}).want(200, &got)
		return got
	}
	refresh := func(path string, body any) (got times) {
		t.Helper()
		i.send(request{method: "POST", path: path + "/refresh", token: key, body: body}).want(200, &got)
		return got
	}
	path := claim(`{"ttl":600,"hard_ttl":1200}`)
	before := get(path)
	if d := before.HardExpiresAt.Sub(before.ExpiresAt); d != 10*time.Minute || !before.AutoResume {
		t.Errorf("%+v", before)
	}
	for _, body := range []any{nil, "{}"} { // both windows begin again
		got := refresh(path, body)
		if !got.ExpiresAt.After(before.ExpiresAt) || got.HardExpiresAt.Sub(got.ExpiresAt) != 10*time.Minute {
			t.Errorf("%v: %+v after %+v", body, got, before)
		}
		before = got
	}
	if got := refresh(path, `{"duration":60}`); got.HardExpiresAt.Sub(got.ExpiresAt) != 19*time.Minute {
		t.Errorf("%+v", got)
	}
	i.send(request{method: "PUT", path: path, token: key, body: `{"config":{"ttl":0}}`}).want(200, nil)
	if got := get(path); !got.ExpiresAt.IsZero() || got.HardExpiresAt.IsZero() {
		t.Errorf("ttl 0 switches off the ttl alone: %+v", got)
	}
	i.send(request{method: "PUT", path: path, token: key, body: `{"config":{"hard_ttl":0,"auto_resume":false}}`}).want(200, nil)
	if got := refresh(path, nil); !got.ExpiresAt.IsZero() || !got.HardExpiresAt.IsZero() {
		t.Errorf("%+v", got)
	}
	if get(path).AutoResume {
		t.Error("auto_resume is still on")
	}
	if got := get(claim(`{}`)); !got.ExpiresAt.IsZero() || !got.HardExpiresAt.IsZero() {
		t.Errorf("without any: %+v", got)
	}
	for _, bad := range []string{`{"ttl":-1}`, `{"hard_ttl":-1}`, `{"ttl":11,"hard_ttl":10}`, `{"ttl":2147483648}`, `{"ttl":1.5}`} {
		i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default","config":` + bad + `}`}).refused(400, "bad_request")
		i.send(request{method: "PUT", path: path, token: key, body: `{"config":` + bad + `}`}).refused(400, "bad_request")
	}
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: `{"template_id":"other","spec":{"mainContainer":{"image":"x","resources":{"memory":"1Gi"}},"pool":{"minIdle":1,"maxIdle":1}}}`}).want(201, nil)
	var ids []string
	for n := range 5 {
		body := map[string]string{"template": []string{"default", "other"}[n%2]}
		var c struct {
			SandboxID string `json:"sandbox_id"`
		}
		i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: body}).want(201, &c)
		ids = append(ids, c.SandboxID)
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + ids[0] + "/pause", token: key}).want(200, nil)
	slices.Reverse(ids) // newest first
	for query, want := range map[string]struct {
		ids   []string
		count int
		more  bool
	}{
		"":                                 {ids, 5, false},
		"?limit=2":                         {ids[:2], 5, true},
		"?limit=2&offset=3":                {ids[3:], 5, false},
		"?offset=5":                        {nil, 5, false},
		"?status=running":                  {ids[:4], 4, false},
		"?status=paused":                   {ids[4:], 1, false},
		"?paused=true":                     {ids[4:], 1, false},
		"?paused=false&limit=3":            {ids[:3], 4, true},
		"?template_id=other":               {[]string{ids[1], ids[3]}, 2, false},
		"?template_id=other&paused=true":   {nil, 0, false},
		"?template_id=default&limit=1":     {ids[:1], 3, true},
		"?status=failed&template_id=other": {nil, 0, false},
	} {
		var got struct {
			Sandboxes []struct{ ID string }
			Count     int
			HasMore   bool `json:"has_more"`
		}
		a := i.send(request{method: "GET", path: "/api/v1/sandboxes" + query, token: key}).want(200, &got)
		var list []string
		for _, sb := range got.Sandboxes {
			list = append(list, sb.ID)
		}
		if !slices.Equal(list, want.ids) || got.Count != want.count || got.HasMore != want.more {
			t.Errorf("%q: %v of %d, more %v; want %+v", query, list, got.Count, got.HasMore, want)
		}
		var raw struct{ Sandboxes json.RawMessage }
		if err := json.Unmarshal(a.data, &raw); err != nil || string(raw.Sandboxes) == "null" {
			t.Errorf("%q: %s", query, a.raw)
		}
	}
}

// What a claim may not have, a change may not give.
func TestTheTemplatesGreatestTTL(t *testing.T) {
	t.Parallel()
	i := start(t)
	admin, key := i.key("admin"), i.key("developer")
	i.send(request{method: "POST", path: "/api/v1/templates", token: admin, body: `{"template_id":"short","spec":{"mainContainer":{"image":"s0/default","resources":{"memory":"2Gi"}},"pool":{"minIdle":0,"maxIdle":1},"lifecycle":{"maxTTL":60}}}`}).want(201, nil)
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"short","config":{"ttl":61}}`}).refused(400, "bad_request")
	var c struct {
		SandboxID string `json:"sandbox_id"`
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"short","config":{"ttl":30}}`}).want(201, &c)
	path := "/api/v1/sandboxes/" + c.SandboxID
	for _, body := range []string{`{"config":{"ttl":61}}`, `{"config":{"ttl":0}}`} {
		i.send(request{method: "PUT", path: path, token: key, body: body}).refused(400, "bad_request")
	}
	i.send(request{method: "PUT", path: path, token: key, body: `{"config":{"ttl":60}}`}).want(200, nil)
	i.send(request{method: "POST", path: path + "/refresh", token: key, body: `{"duration":61}`}).refused(400, "bad_request")
	i.send(request{method: "POST", path: path + "/refresh", token: key, body: `{"duration":45}`}).want(200, nil)
	i.send(request{method: "DELETE", path: "/api/v1/templates/short", token: admin}).want(200, nil)
	i.send(request{method: "PUT", path: path, token: key, body: `{"config":{"ttl":3600}}`}).want(200, nil)
}
