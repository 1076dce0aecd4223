package events

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	flowsTimeout = 5 * time.Second  // of a call that waits a second at most
	flowsPause   = time.Second      // between batches: those of a second are stored together
	claimTime    = 10 * time.Second // after which, by either's clock, a claim has its row, or never will
	maxFlow      = 16 << 10         // bytes of one record; netd's are smaller
	maxFlowBatch = 1000             // records; a node sends fewer
)

// errTooEarly is what records end in whose sandbox may get its row yet.
var errTooEarly = errors.New("a sandbox has no row yet")

// followFlows stores what a node's sandboxes send, until ctx ends. The node keeps each
// batch until the next is asked for.
func (f *Feed) followFlows(ctx context.Context, node string) {
	var stored *nodeapi.FlowMark
	var early time.Time // since when the same records wait for a row
	pause := firstPause
	for ctx.Err() == nil {
		next, err := f.takeFlows(ctx, node, stored, early.IsZero() || time.Since(early) < claimTime)
		if err == nil {
			stored, pause, early = next, firstPause, time.Time{}
			continue
		}
		switch {
		case !errors.Is(err, errTooEarly):
			early = time.Time{}
		case early.IsZero():
			early = time.Now()
		}
		f.cfg.Log.Debug("could not take a node's records of flows", "node", node, "err", err, "retry_in", pause)
		sleep(ctx, pause)
		pause = min(2*pause, longest)
	}
}

func (f *Feed) takeFlows(ctx context.Context, node string, stored *nodeapi.FlowMark, wait bool) (next *nodeapi.FlowMark, err error) {
	rpc, err := f.cfg.Nodes.RPC(node)
	if err != nil {
		return nil, err
	}
	call, cancel := context.WithTimeout(ctx, flowsTimeout)
	defer cancel()
	resp, err := rpc.TakeFlows(call, &nodeapi.TakeFlowsRequest{Stored: stored})
	if err != nil {
		return nil, err
	}
	if err := f.storeFlows(ctx, node, resp.GetFlows(), wait); err != nil {
		return nil, err
	}
	if len(resp.GetFlows()) > 0 {
		sleep(ctx, flowsPause)
	}
	return resp.GetMark(), nil
}

// storeFlows fails where the same records can be stored later; for a row they wait if
// they shall. What can't ever be stored is dropped, and told to the operator.
func (f *Feed) storeFlows(ctx context.Context, node string, flows []*nodeapi.Flow, wait bool) error {
	now := time.Now()
	batches := map[store.FlowsOf][]store.NewEvent{}
	for _, flow := range flows[:min(len(flows), maxFlowBatch)] {
		id, err := sandbox.ParseID(flow.GetSandbox())
		e, ok := checkFlow(flow, now)
		if err != nil || !ok {
			f.cfg.Log.Warn("dropped a record of a flow that makes no sense", "node", node)
			continue
		}
		of := store.FlowsOf{Node: node, Sandbox: id, Generation: sandbox.Generation(flow.GetGeneration())}
		batches[of] = append(batches[of], e)
	}
	var failed error
	for of, list := range batches {
		failed = errors.Join(failed, f.storeBatchOfFlows(ctx, of, list, wait && now.Sub(list[len(list)-1].OccurredAt) < claimTime))
	}
	return failed
}

func (f *Feed) storeBatchOfFlows(ctx context.Context, of store.FlowsOf, list []store.NewEvent, wait bool) error {
	err := f.cfg.Store.AddFlows(ctx, of, list)
	switch {
	case err == nil:
		return nil
	case errdefs.Is(err, errdefs.NotFound):
		if wait {
			return errTooEarly
		}
		f.cfg.Log.Debug("dropped records of flows of a sandbox that has no row", "sandbox", of.Sandbox, "gen", of.Generation, "count", len(list))
		return nil
	case errdefs.Is(err, errdefs.Unavailable) || ctx.Err() != nil:
		return err
	}
	f.cfg.Log.Error("dropped records of flows that could not be stored", "sandbox", of.Sandbox, "gen", of.Generation, "count", len(list), "err", err)
	return nil
}

// checkFlow makes an event of a record, if it is one.
func checkFlow(flow *nodeapi.Flow, now time.Time) (e store.NewEvent, ok bool) {
	record := bytes.ToValidUTF8(flow.GetRecord(), []byte("\uFFFD"))
	if !idPattern.MatchString(flow.GetId()) || len(record) > maxFlow || !json.Valid(record) {
		return e, false
	}
	at := time.Unix(0, flow.GetUnixNano())
	if at.After(now) {
		at = now
	}
	return store.NewEvent{EventID: "evt_flow_" + flow.GetId(), Type: flowType(flow), Payload: string(record), OccurredAt: at}, true
}

// Types of events that tell of flows.
const (
	flowAllowed   = "network.allowed"
	flowDenied    = "network.denied"
	flowWouldDeny = "network.would_deny"
	flowFailed    = "network.failed"
	flowMore      = "network.more" // many at once
)

func flowType(f *nodeapi.Flow) string {
	switch {
	case f.GetMore():
		return flowMore
	case f.GetOutcome() == "denied" || f.GetAction() == "deny":
		return flowDenied
	case f.GetAction() == "would-deny":
		return flowWouldDeny
	case f.GetOutcome() == "error":
		return flowFailed
	}
	return flowAllowed
}
