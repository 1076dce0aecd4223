package api_test

import (
	"strings"
	"testing"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
)

// Virtual machines are for templates where a node has them. The memory of one is its
// template's: a claim that wants other costs no slot.
func TestC01_MachinesWhereANodeHasThem(t *testing.T) {
	t.Parallel()
	const template = `{"template_id":"machine","spec":{"mainContainer":{"image":"x","resources":{"memory":"1Gi"}},"runtimeClassName":"kata","pool":{"minIdle":0,"maxIdle":0}}}`
	without := start(t)
	a := without.send(request{method: "POST", path: "/api/v1/templates", token: without.key("admin"), body: template}).refused(400, "bad_request")
	if !strings.Contains(a.msg, "no node has Kata Containers") {
		t.Errorf("%q", a.msg)
	}
	i := start(t, func(_ *api.Config, n *fakenode.Node) { n.Classes = []string{"kata"} })
	key := i.key("admin")
	i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: template}).want(201, nil)
	a = i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"machine","config":{"resources":{"memory":"2Gi"}}}`}).refused(400, "bad_request")
	if !strings.Contains(a.msg, "its template's") {
		t.Errorf("%q", a.msg)
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"machine","config":{"resources":{"memory":"1Gi"}}}`}).want(201, nil)
}
