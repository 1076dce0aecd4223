package api_test

import (
	"fmt"
	"testing"
	"time"

	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

// sent is a record as a node tells it.
func sent(id, flow, action, outcome, host string) *nodeapi.Flow {
	return &nodeapi.Flow{
		Id: flow, Sandbox: id, Generation: 1, UnixNano: time.Now().UnixNano(), Action: action, Outcome: outcome,
		Record: fmt.Appendf(nil, `{"flow_id":%q,"action":%q,"outcome":%q,"host":%q,"dest_ip":"93.184.0.2","egress_bytes":7}`, flow, action, outcome, host),
	}
}

// X48: a node's clock is ahead. What it says of a sandbox that never gets a row holds up
// nothing behind it until then.
func TestX48_ANodeAheadKeepsNoRecordsWaiting(t *testing.T) {
	t.Parallel()
	i := start(t)
	nobody, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	lost := sent(string(nobody), "n", "allow", "completed", "")
	lost.UnixNano += int64(time.Hour)
	i.node.Send(lost)
	fakenode.Eventually(t, "all records are done with", func() bool { return i.node.Unstored() == 0 })
}

// What a sandbox sends is among its events, once, whatever is told twice.
func TestFlowsAreEvents(t *testing.T) {
	t.Parallel()
	i := start(t)
	owner := i.key("developer")
	key, id, other := i.key("viewer"), i.claim(owner), i.claim(owner)
	nobody, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	lost := sent(string(nobody), "n", "allow", "completed", "")
	lost.UnixNano -= int64(time.Minute) // it never gets a row
	i.node.Send(lost,
		sent(id, "a", "allow", "completed", "a.test"), sent(id, "d", "deny", "denied", ""), sent(id, "w", "would-deny", "completed", "w.test"),
		sent(id, "f", "allow", "error", "f.test"), sent(id, "a", "allow", "completed", "a.test"), sent(other, "o", "allow", "completed", "o.test"),
		&nodeapi.Flow{Id: "m", Sandbox: id, Generation: 1, More: true, Record: []byte(`{"more":{"flows":5}}`)},
		&nodeapi.Flow{Id: "not json", Sandbox: id, Generation: 1, Record: []byte(`{`)},
		&nodeapi.Flow{Id: "j", Sandbox: id, Generation: 1, Record: []byte(`{`)},
	)
	fakenode.Eventually(t, "all records are done with", func() bool { return i.node.Unstored() == 0 })
	for query, want := range map[string]string{
		"source=netd": "network.allowed a.test completed, network.denied 93.184.0.2 denied, network.would_deny w.test completed, network.failed f.test error, network.more " + id + " completed, ",
		"event_type=network_audit&outcome=denied": "network.denied 93.184.0.2 denied, ",
		"action=network.would_deny":               "network.would_deny w.test completed, ",
		"source=manager":                          "sandbox.ready " + id + " completed, ",
	} {
		got := ""
		for _, e := range i.events(key, id, "?"+query).Events {
			got += fmt.Sprintf("%s %s %s, ", e.Action, e.Resource.ID, e.Outcome)
			if e.Source == "netd" && (e.EventType != "network_audit" || e.TeamID == "" || e.Attributes == nil) {
				t.Errorf("shown as %+v", e)
			}
		}
		if got != want {
			t.Errorf("%s:\n%s\nwant\n%s", query, got, want)
		}
	}
	if list := i.events(key, other, "?source=netd").Events; len(list) != 1 || list[0].Attributes["egress_bytes"] != 7.0 {
		t.Errorf("the other one sent %+v", list)
	}
}

// A node that is another sandbox's says nothing of it.
func TestA01_ANodeTellsOfItsOwnSandboxesAlone(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	later := sent(id, "later", "allow", "completed", "x")
	later.Generation, later.UnixNano = 2, later.UnixNano-int64(time.Minute)
	i.node.Send(later, sent(id, "mine", "allow", "completed", "x"))
	fakenode.Eventually(t, "all records are done with", func() bool { return i.node.Unstored() == 0 })
	if list := i.events(key, id, "?source=netd").Events; len(list) != 1 || list[0].EventID != "evt_flow_mine" {
		t.Errorf("told of %+v", list)
	}
}

func TestBandwidthIsTold(t *testing.T) {
	t.Parallel()
	i := start(t)
	team := i.teamID(i.key("developer"))
	is := func(what string, f func(*nodeapi.SetBandwidthRequest) bool) {
		t.Helper()
		fakenode.Eventually(t, what, func() bool { b := i.node.Bandwidth(); return b != nil && f(b) })
	}
	is("the node is told that there is no limit", func(b *nodeapi.SetBandwidthRequest) bool {
		return len(b.GetTeams()) == 0 && b.GetOthers().GetEach().GetEgress() == nil
	})
	i.limit(team, "network_egress_bytes", `{"limit_value":500000,"interval_ms":500,"burst_value":9}`)
	i.limit(team, "network_ingress_bytes", `{"limit_value":500000}`) // a month's: no rate
	i.limit(team, "sandbox_network_ingress_bytes", `{"limit_value":70}`)
	is("the node is told of the team's limits", func(b *nodeapi.SetBandwidthRequest) bool {
		if len(b.GetTeams()) != 1 || b.GetTeams()[0].GetTeam() != team {
			return false
		}
		together, each := b.GetTeams()[0].GetTogether(), b.GetTeams()[0].GetEach()
		return together.GetEgress().GetBytes() == 1_000_000 && together.GetEgress().GetBurst() == 9 && together.GetIngress() == nil &&
			each.GetIngress().GetBytes() == 70 && each.GetEgress() == nil
	})
	i.limit(team, "network_ingress_bytes", `{"limit_value":0}`) // which is used up
	is("the node is told that nothing more may come in", func(b *nodeapi.SetBandwidthRequest) bool {
		return b.GetTeams()[0].GetTogether().GetIngress().GetBytes() == 1
	})
	i.send(request{method: "PUT", path: "/internal/v1/teams/" + team + "/quotas/sandbox_network_egress_bytes", token: i.signIn(), body: `{"limit_value":1,"interval_ms":3600000}`}).refused(400, "bad_request")
	i.limit(team, "network_egress_bytes", `{"unlimited":true}`)
	is("the node is told that a limit is gone", func(b *nodeapi.SetBandwidthRequest) bool {
		return len(b.GetTeams()) == 1 && b.GetTeams()[0].GetTogether().GetEgress() == nil
	})
}
