package e2e_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// E24: what a real sandbox sends is among its events, and what a policy would deny is
// seen before it does.
func testNetworkAudit(t *testing.T, s *s0test.Stack, w *internet, o *origin) {
	u := newUser(t, s)
	dry := `{"mode":"block-all","enforcement":"audit-only","egress":{"trafficRules":[
		{"action":"allow","cidrs":["` + w.near.String() + `/32"]},{"action":"allow","domains":["audited.test"],"ports":[{"port":443}]}],
		"protocolRules":[{"protocol":"http","domains":["audited.test"],"ports":[{"port":443}],"http":{"methods":{"allowed":["GET"]}}}]}}`
	id, other := u.claimWith(dry), u.claimWith(w.nearOnly())
	u.wantOutcomes(id, map[string]string{to(w.near, 7): "here"})
	u.wantOutcomes(other, map[string]string{to(w.far, 7): "refused", to(w.far6, 7): "refused"})
	u.wantFlows(id, map[string]netip.Addr{"network.allowed": w.near})
	u.wantMetered(id)
	u.wantFlows(other, map[string]netip.Addr{"network.denied": w.far6})

	u.wantOutcomes(id, map[string]string{to(w.public, 7): "here", to(w.public6, 7): "here", to(w.far, 7): "refused", to(w.far6, 7): "refused"}) // what is private stays denied
	u.wantFlows(id, map[string]netip.Addr{"network.would_deny": w.public, "network.denied": w.far6})
	u.wantFlows(id, map[string]netip.Addr{"network.would_deny": w.public6, "network.denied": w.far})
	const both = "getent ahostsv4 unnamed.test; curl -sS -4 -d x https://audited.test/audited"
	if out := u.sh(id, both); len(o.got("/audited")) != 1 || !strings.Contains(out, w.near.String()) {
		t.Errorf("a name and a request that would be denied: %s", out)
	}
	u.wantFlowTo(id, "network.would_deny", "unnamed.test", 53)
	u.wantFlowTo(id, "network.would_deny", "audited.test", 443)
	u.setNetwork(id, strings.Replace(dry, "audit-only", "enforce", 1))
	u.wantOutcomes(id, map[string]string{to(w.near, 7): "here", to(w.public, 7): "refused", to(w.public6, 7): "refused"})
	u.wantFlows(id, map[string]netip.Addr{"network.denied": w.public})
	u.wantFlows(id, map[string]netip.Addr{"network.denied": w.public6})
	if out := u.sh(id, both); len(o.got("/audited")) != 1 || strings.Contains(out, w.near.String()) {
		t.Errorf("a name and a request that are denied: %s", out)
	}
	u.wantFlowTo(id, "network.denied", "unnamed.test", 53)
	u.wantFlowTo(id, "network.denied", "audited.test", 443)
	for _, e := range u.flows(other, "") {
		if e.SandboxID != other {
			t.Errorf("told of another's flow: %+v", e)
		}
	}
	list, err := u.c.ListSandboxMetricSamples(u.ctx(), other, client.MetricSamplesOptions{Names: []string{"sandbox.network.flows", "sandbox.network.denied"}})
	must(u, "what the network daemon did", list, err)
	counted := map[string]float64{}
	for _, m := range list.Samples {
		counted[m.Name] = m.Value
	}
	if n, ok := counted["sandbox.network.flows"]; !ok || n != 0 || counted["sandbox.network.denied"] < 2 {
		t.Errorf("of a sandbox that was refused twice: %v", counted)
	}
}

// wantMetered: what came in past the proxy, by the records of a sandbox, is among what its
// use is metered by.
func (u *user) wantMetered(id string) {
	u.t.Helper()
	recorded := 0.0
	for _, e := range u.flows(id, "network.allowed") {
		recorded += e.Attributes["ingress_bytes"].(float64)
	}
	u.stack.Eventually("what came in to be metered", func() error { // the newest sample may be older
		if metered := u.metrics(id)["sandbox.network.io receive"]; recorded == 0 || metered < recorded {
			return fmt.Errorf("%.0f bytes came in, %.0f are metered", recorded, metered)
		}
		return nil
	})
}

func (u *user) flows(id, action string) []client.SandboxEvent {
	u.t.Helper()
	list, err := u.c.ListSandboxEvents(u.ctx(), id, client.SandboxEventsOptions{Source: "netd", Action: action})
	return must(u, "the flows of "+id, list, err).Events
}

// wantFlowTo waits for a record of what was for a name.
func (u *user) wantFlowTo(id, action, host string, port float64) {
	u.t.Helper()
	u.stack.Eventually(fmt.Sprintf("%s to %s:%v among the events of %s", action, host, port, id), func() error {
		list := u.flows(id, action)
		for _, e := range list {
			if e.Attributes["host"] == host && e.Attributes["dest_port"] == port {
				return nil
			}
		}
		return fmt.Errorf("there are %+v", list)
	})
}

// wantFlows waits for a record of each kind, to an address.
func (u *user) wantFlows(id string, want map[string]netip.Addr) {
	u.t.Helper()
	for action, to := range want {
		u.stack.Eventually(fmt.Sprintf("%s to %s among the events of %s", action, to, id), func() error {
			list := u.flows(id, action)
			for _, e := range list {
				if e.Attributes["dest_ip"] != to.String() {
					continue
				}
				if e.Attributes["dest_port"] != 7.0 || action != "network.denied" && (e.Attributes["egress_bytes"] == 0.0 || e.Attributes["ingress_bytes"] == 0.0) {
					return fmt.Errorf("told %+v", e)
				}
				return nil
			}
			return fmt.Errorf("there are %+v", list)
		})
	}
}
