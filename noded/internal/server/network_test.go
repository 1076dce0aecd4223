package server

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/egress"
)

// fakeNetwork is a network daemon.
type fakeNetwork struct{}

func (fakeNetwork) Counters(context.Context) (map[sandbox.ID]netdapi.Counters, error) {
	return nil, nil
}

func (fakeNetwork) TakeFlows(_ context.Context, stored netdapi.Mark) (netdapi.Events, error) {
	if stored.Run == "away" {
		return netdapi.Events{}, egress.ErrUnavailable
	}
	return netdapi.Events{Mark: netdapi.Mark{Run: "r", Through: stored.Through + 2}, Events: []netdapi.Event{
		{FlowID: "f", SandboxID: "s", Generation: 3, Timestamp: time.Unix(5, 0), Action: "deny", Outcome: "denied", DestIP: netip.MustParseAddr("fd00::1")},
		{FlowID: "g", SandboxID: "s", Generation: 3, Timestamp: time.Unix(6, 0), More: &netdapi.More{Flows: 2}},
	}}, nil
}

func (fakeNetwork) SetBandwidth(_ context.Context, b egress.Bandwidths) error {
	if b.Teams["t"].Each.Egress != (netdapi.Rate{Bytes: 1, Burst: 2}) || b.Teams["t"].Together.Ingress.Bytes != 3 || b.Others.Each.Ingress.Bytes != 4 {
		return errdefs.New(errdefs.Internal, "told %+v", b)
	}
	return nil
}

func TestFlowsAndBandwidth(t *testing.T) {
	t.Parallel()
	n := start(t, nil)
	ctx := t.Context()
	got, err := n.rpc.TakeFlows(ctx, &nodeapi.TakeFlowsRequest{Stored: &nodeapi.FlowMark{Run: "r", Through: 7}})
	if err != nil || got.GetMark().GetThrough() != 9 || len(got.GetFlows()) != 2 {
		t.Fatalf("took %v, %v", got, err)
	}
	var record netdapi.Event
	first, second := got.GetFlows()[0], got.GetFlows()[1]
	if err := json.Unmarshal(first.GetRecord(), &record); err != nil || record.DestIP.String() != "fd00::1" {
		t.Errorf("the record is %s, %v", first.GetRecord(), err)
	}
	if first.GetId() != "f" || first.GetSandbox() != "s" || first.GetGeneration() != 3 || first.GetUnixNano() != 5e9 || first.GetAction() != "deny" || first.GetOutcome() != "denied" || first.GetMore() || !second.GetMore() {
		t.Errorf("took %v and %v", first, second)
	}
	if _, err := n.rpc.TakeFlows(ctx, &nodeapi.TakeFlowsRequest{Stored: &nodeapi.FlowMark{Run: "away"}}); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("without a network daemon: %v", err)
	}
	rate := func(bytes, burst uint64) *nodeapi.Rate { return &nodeapi.Rate{Bytes: bytes, Burst: burst} }
	said := &nodeapi.SetBandwidthRequest{
		Teams:  []*nodeapi.TeamBandwidth{{Team: "t", Each: &nodeapi.Bandwidth{Egress: rate(1, 2)}, Together: &nodeapi.Bandwidth{Ingress: rate(3, 0)}}},
		Others: &nodeapi.TeamBandwidth{Each: &nodeapi.Bandwidth{Ingress: rate(4, 0)}},
	}
	if _, err := n.rpc.SetBandwidth(ctx, said); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", strings.Repeat("t", 257)} {
		_, err := n.rpc.SetBandwidth(ctx, &nodeapi.SetBandwidthRequest{Teams: []*nodeapi.TeamBandwidth{{Team: name}}})
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("team %.10q: %v", name, err)
		}
	}
}

// A node without netd is asked for flows every few seconds, and says once that there are
// none; again when netd was there meanwhile.
func TestFlowsOfNobodyAreSaidOnce(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer // one call after the other
	s := &Server{cfg: Config{Network: fakeNetwork{}, Log: slog.New(slog.NewTextHandler(&log, nil))}}
	take := func(run string, want connect.Code) {
		t.Helper()
		_, err := s.TakeFlows(t.Context(), &nodeapi.TakeFlowsRequest{Stored: &nodeapi.FlowMark{Run: run}})
		if (err == nil) != (want == 0) || err != nil && connect.CodeOf(err) != want {
			t.Errorf("%s: %v", run, err)
		}
	}
	for lines, run := range []string{"away", "there", "away"} {
		take(run, map[string]connect.Code{"away": connect.CodeUnavailable}[run])
		take(run, map[string]connect.Code{"away": connect.CodeUnavailable}[run])
		if got, want := strings.Count(log.String(), "\n"), []int{1, 1, 2}[lines]; got != want || strings.Contains(log.String(), "ERROR") {
			t.Errorf("after %s the log has %d lines, want %d:\n%s", run, got, want, log.String())
		}
	}
}
