package lifecycle

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	pageSize = 500

	// passTimeout bounds the comparison with one node: the next goes on. It is twice what
	// the work may take: a comparison rests between pages for as long as a page took.
	passTimeout = 2 * time.Minute
	longestRest = 100 * time.Millisecond // between two pages of it
)

// Ended takes note that a node says of a sandbox that it failed or is gone. It
// never blocks.
func (k *Keeper) Ended(node string, id sandbox.ID) {
	k.mu.Lock()
	k.ended[id] = node
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// settleEnded makes the rows of sandboxes that ended say so. What the database
// does not take now, the next pass finds again.
func (k *Keeper) settleEnded(ctx context.Context) {
	k.mu.Lock()
	ended := k.ended
	k.ended = map[sandbox.ID]string{}
	k.mu.Unlock()
	for id, node := range ended {
		row, err := k.cfg.Store.AnySandbox(ctx, id)
		if errdefs.Is(err, errdefs.NotFound) {
			continue // a claim that was undone
		}
		if err != nil {
			k.logFailure(ctx, "could not settle a sandbox that ended", err)
			return
		}
		sb, _, known := k.cfg.Table.Lookup(id)
		switch {
		case row.DeletedAt != nil || row.Node != node:
		case row.Status == sandbox.Terminating:
			k.finish(ctx, row)
		case !known && k.rests(ctx, row):
		case !known:
			k.fail(ctx, row, 0, "it ended on its node")
		case sb.State == sandbox.Failed && sb.ClaimID == row.ClaimID.String():
			k.fail(ctx, row, sb.Generation, sb.Reason)
		}
	}
}

// fail records that a sandbox ended by itself, as the generation that its node knows, or 0.
func (k *Keeper) fail(ctx context.Context, row store.Sandbox, gen sandbox.Generation, reason string) {
	changed, err := k.cfg.Store.FailSandbox(ctx, row.TeamID, row, gen, reason)
	if err != nil {
		k.logFailure(ctx, "could not record a failure", err)
	}
	if changed {
		k.cfg.Log.Warn("sandbox failed", "sandbox", row.ID, "gen", max(row.Generation, gen), "team", row.TeamID, "node", row.Node, "reason", reason)
	}
}

// pass compares rows and sandboxes of every node whose stream is whole. One that
// hangs holds up no other, and not for long.
func (k *Keeper) pass(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, n := range k.cfg.Table.Synced() {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, passTimeout)
			defer cancel()
			k.passNode(ctx, n.Name)
			return nil
		})
	}
	g.Wait()
}

func (k *Keeper) passNode(ctx context.Context, node string) {
	list, ok := k.cfg.Table.SandboxesOf(node)
	if !ok {
		return
	}
	theirs := make(map[sandbox.ID]placement.Sandbox, len(list))
	for _, sb := range list {
		theirs[sb.ID] = sb
	}
	if err := k.compareRows(ctx, node, theirs); err != nil {
		k.logFailure(ctx, "could not compare a node with its rows", err)
		return
	}
	k.adoptOrEnd(ctx, node, theirs, len(list))
	k.endOutdated(ctx, node)
}

// compareRows settles every row of a node, and removes from theirs what has one. It
// works half of the time at most: a claim that comes meanwhile finds a CPU.
func (k *Keeper) compareRows(ctx context.Context, node string, theirs map[sandbox.ID]placement.Sandbox) error {
	var after sandbox.ID
	for {
		began := time.Now()
		page, err := k.cfg.Store.SandboxesOn(ctx, node, after, k.cfg.Settled, pageSize)
		if err != nil {
			return err
		}
		for _, row := range page {
			sb, has := theirs[row.ID]
			if k.compare(ctx, row, sb, has) {
				delete(theirs, row.ID)
			}
		}
		if len(page) < pageSize {
			return nil
		}
		after = page[len(page)-1].ID
		select {
		case <-time.After(min(time.Since(began), longestRest)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// compare settles one row; it reports whether the node's sandbox is the row's. Nearly
// all rows are as they should be: only of the others more is read.
func (k *Keeper) compare(ctx context.Context, row store.NodeRow, sb placement.Sandbox, has bool) bool {
	same := has && sb.ClaimID == row.ClaimID.String()
	if agree(row, sb, same) {
		return same
	}
	read, err := k.cfg.Store.AnySandbox(ctx, row.ID)
	switch {
	case errdefs.Is(err, errdefs.NotFound):
	case err != nil:
		k.logFailure(ctx, "could not read a sandbox's row", err)
	case read.DeletedAt == nil && read.ClaimID == row.ClaimID && read.Generation == row.Generation && read.Status == row.Status:
		k.settle(ctx, read, sb, has, same)
	}
	return same // what changed meanwhile is compared with a newer list
}

// agree reports that there is nothing to do about a row; same, that the node's
// sandbox is the row's.
func agree(row store.NodeRow, sb placement.Sandbox, same bool) bool {
	switch {
	case row.Status == sandbox.Terminating:
		return !row.Settled
	case row.Status == sandbox.Failed:
		return !row.Settled || !same || sb.State != sandbox.Running || sb.Generation > row.Generation
	case same && sb.State == sandbox.Failed:
		return false
	case same && sb.State == sandbox.Paused && row.Status == sandbox.Paused && sb.Generation == row.Generation && row.Stored != (sb.Stored != 0):
		return false // what the node said of it came before the row of the pause
	case !row.Settled:
		return true
	case same && sb.State == sandbox.Running:
		return row.Status == sandbox.Running && sb.Generation <= row.Generation
	case same && sb.State == sandbox.Paused:
		return row.Status == sandbox.Paused && sb.Generation <= row.Generation && row.Stored == (sb.Stored != 0)
	}
	return same
}

// settle settles a row with which its node's sandbox, or that there is none, does not agree.
func (k *Keeper) settle(ctx context.Context, row store.Sandbox, sb placement.Sandbox, has, same bool) {
	switch {
	case row.Status == sandbox.Terminating:
		k.finish(ctx, row)
	case same && row.Status == sandbox.Failed:
		k.end(ctx, sb, row.Reason) // a node that was removed, and joined anew (R2)
	case same && sb.State == sandbox.Failed:
		k.fail(ctx, row, sb.Generation, sb.Reason)
	case same:
		k.settleState(ctx, row, sb.State, sb.Generation)
		if sb.State == sandbox.Paused && sb.Stored != stored(row) {
			k.Stored(sb.Node, sb.ID) // which looks again: the list is older than the row
		}
	case has:
		k.dropLostClaim(ctx, row)
	default:
		k.failIfUnknown(ctx, row)
	}
}

// dropLostClaim removes a row whose sandbox the node gave to another claim: its
// own was refused and never acknowledged, and its undoing failed.
func (k *Keeper) dropLostClaim(ctx context.Context, row store.Sandbox) {
	k.cfg.Log.Warn("removing the row of a claim that was lost", "sandbox", row.ID, "gen", row.Generation, "team", row.TeamID, "claim", row.ClaimID)
	if err := k.cfg.Store.RemoveClaim(ctx, row.ID, row.ClaimID); err != nil {
		k.logFailure(ctx, "could not remove a lost claim", err)
	}
}

// failIfUnknown asks the node itself: that a list lacks something proves nothing. What runs
// elsewhere, as a commit that was lost had it, has not failed.
func (k *Keeper) failIfUnknown(ctx context.Context, row store.Sandbox) {
	if k.isAhead(row) {
		return
	}
	rpc, err := k.cfg.Nodes.RPC(row.Node)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := rpc.Get(ctx, &nodeapi.GetRequest{Id: string(row.ID)}); connect.CodeOf(err) == connect.CodeNotFound && !k.rests(ctx, row) {
		k.fail(ctx, row, 0, "its node has no record of it")
	}
}
