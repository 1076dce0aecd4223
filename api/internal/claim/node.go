package claim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

// claimSlot is the node's half of a claim of a slot.
func (c *Claimer) claimSlot(ctx context.Context, h *half) error {
	defer c.cfg.Metrics.phase("node", time.Now())
	ctx, cancel := context.WithTimeout(ctx, warmTimeout)
	defer cancel()
	req := h.request()
	req.Slot = string(h.row.ID)
	resp, err := c.cfg.Nodes.Claim(ctx, h.node, req)
	if err != nil {
		return fmt.Errorf("claiming slot %s: %w", h.row.ID, err)
	}
	if got := resp.GetSandbox(); got.GetId() != req.Slot || got.GetGeneration() != uint64(h.row.Generation) {
		return fmt.Errorf("claiming slot %s: the node answered sandbox %q of generation %d", h.row.ID, got.GetId(), got.GetGeneration())
	}
	return nil
}

func (h *half) request() *nodeapi.ClaimRequest {
	p := h.p
	req := &nodeapi.ClaimRequest{
		ClaimId: h.row.ClaimID.String(), PoolKey: p.tmpl.PoolKey,
		Team: h.row.TeamID.String(), User: h.row.UserID.String(), Env: p.env, Network: p.network, Mounts: h.mounts,
	}
	if p.row.MemoryBytes != p.tmpl.Slot.MemoryBytes {
		req.MemoryBytes, req.CpuMillis = p.row.MemoryBytes, p.cpuMillis
	}
	if w := p.row.Webhook; w != nil {
		req.Events = &nodeapi.EventsConfig{WatchDir: w.WatchDir}
	}
	return req
}

// slotTaken reports that another claim has the slot: nothing is to be undone.
func slotTaken(err error) bool { return connect.CodeOf(err) == connect.CodeAborted }

// start starts a sandbox on a node without a slot.
func (c *Claimer) start(ctx context.Context, p *plan, node string) (*half, error) {
	defer c.cfg.Metrics.phase("start", time.Now())
	rpc, err := c.cfg.Nodes.RPC(node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, coldTimeout)
	defer cancel()
	h := c.half(p, node, "", 0)
	if err := c.hold(ctx, h, nil); err != nil {
		return nil, err
	}
	req := h.request()
	req.Spec, req.Snapshot = nodeapi.SpecToWire(p.tmpl.Slot), of(p.snapshot)
	resp, err := rpc.Claim(ctx, req)
	if err != nil {
		c.undoStart(ctx, h, err)
		c.undoVolumes(ctx, h)
		return nil, startError(fmt.Errorf("starting a sandbox on %s: %w", node, err))
	}
	id, err := sandbox.ParseID(resp.GetSandbox().GetId())
	if err != nil {
		c.undoVolumes(ctx, h)
		return nil, fmt.Errorf("starting a sandbox on %s: %w", node, err)
	}
	h.row.ID, h.row.Generation = id, sandbox.Generation(resp.GetSandbox().GetGeneration())
	return h, nil
}

// undoStart takes back what a node may have started whose answer was lost: nobody else
// knows of it, for its id was in that answer.
func (c *Claimer) undoStart(ctx context.Context, h *half, err error) {
	switch connect.CodeOf(err) {
	case connect.CodeResourceExhausted, connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeFailedPrecondition:
		return // the node has refused before it began
	}
	c.undo(ctx, h, "start", c.deleteClaim)
}

func (c *Claimer) deleteClaim(ctx context.Context, h *half) error {
	rpc, err := c.cfg.Nodes.RPC(h.node)
	if err != nil {
		return err
	}
	_, err = rpc.Delete(ctx, &nodeapi.DeleteRequest{ClaimId: h.row.ClaimID.String(), Reason: "its claim failed"})
	if connect.CodeOf(err) == connect.CodeInvalidArgument {
		return nil // an older node: reconciliation has it, by its claim id
	}
	return err
}

func startError(err error) error {
	if why := imageError(err); why != nil {
		return why
	}
	if why := volumes.Refused(err); why != nil {
		return why
	}
	if connect.CodeOf(err) == connect.CodeResourceExhausted {
		return errdefs.New(errdefs.Exhausted, "too many sandboxes are starting").WithCause(err)
	}
	return errdefs.New(errdefs.Unavailable, "the sandbox could not be started").WithRetryAfter(throttledRetryAfter).WithCause(err)
}

// imageError tells what is wrong with a template's image, or how far its pull is:
// the node's words about it are for tenants.
func imageError(err error) error {
	var failed *connect.Error
	if !errors.As(err, &failed) || failed.Meta().Get(nodeapi.CodeHeader) != nodeapi.CodeImage {
		return nil
	}
	return errdefs.New(errdefs.Unavailable, "the sandbox could not be started: %s", nodeapi.Text(failed.Message())).
		WithRetryAfter(throttledRetryAfter).WithCause(err)
}

// undo takes a lost half back, in the background and detached: the answer does
// not wait, and what fails for too long is left to reconciliation.
func (c *Claimer) undo(ctx context.Context, h *half, what string, f func(context.Context, *half) error) {
	ctx = context.WithoutCancel(ctx)
	c.undos.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, undoTimeout)
		defer cancel()
		for {
			err := f(ctx, h)
			if err == nil {
				return
			}
			select {
			case <-time.After(undoPause):
			case <-ctx.Done():
				c.cfg.Log.Error("a lost half of a claim is left to reconciliation", "half", what,
					"sandbox", h.row.ID, "gen", h.row.Generation, "team", h.row.TeamID, "claim", h.row.ClaimID, "err", err)
				return
			}
		}
	})
}

func (c *Claimer) removeRow(ctx context.Context, h *half) error {
	return c.cfg.Store.RemoveClaim(ctx, h.row.ID, h.row.ClaimID)
}

// deleteUnlessStored waits for the database to say whether the row is there.
func (c *Claimer) deleteUnlessStored(ctx context.Context, h *half) error {
	sb, err := c.cfg.Store.AnySandbox(ctx, h.row.ID)
	switch {
	case err == nil && sb.ClaimID == h.row.ClaimID:
		return nil
	case err != nil && !errdefs.Is(err, errdefs.NotFound):
		return err
	}
	return c.deleteAtNode(ctx, h)
}

func (c *Claimer) deleteAtNode(ctx context.Context, h *half) error {
	rpc, err := c.cfg.Nodes.RPC(h.node)
	if err != nil {
		return err
	}
	_, err = rpc.Delete(ctx, &nodeapi.DeleteRequest{Id: string(h.row.ID), Generation: uint64(h.row.Generation), ClaimId: h.row.ClaimID.String(), Reason: "its claim failed"})
	if connect.CodeOf(err) == connect.CodeFailedPrecondition {
		return nil // a later generation: it is not ours any more
	}
	return err
}
