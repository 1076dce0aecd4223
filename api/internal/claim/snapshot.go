package claim

import (
	"context"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// ErrSnapshotExpired says that a snapshot is about to go.
var ErrSnapshotExpired = errdefs.New(errdefs.InvalidArgument, "the snapshot has expired")

// begin finds the snapshot that the claim begins with, if it asks for one.
func (c *Claimer) begin(ctx context.Context, p *plan) error {
	if p.req.SnapshotID == uuid.Nil {
		return nil
	}
	snap, err := c.cfg.Store.Snapshot(ctx, p.req.TeamID, p.req.SnapshotID)
	switch {
	case err != nil:
		return err
	case snap.Expired:
		return ErrSnapshotExpired
	case snap.TemplateID != p.row.TemplateID:
		return errdefs.New(errdefs.InvalidArgument, "the snapshot is of a sandbox of template %q", snap.TemplateID)
	}
	p.snapshot, p.row.SnapshotID = &snap, snap.ID
	return nil
}

// startWithSnapshot starts a sandbox on the node that has its snapshot. Where that is away, or
// starts too many, another one may that has the object store: if the snapshot is not there,
// what the first one said is the answer.
func (c *Claimer) startWithSnapshot(ctx context.Context, p *plan) (*half, error) {
	except := c.withoutVolumes(p)
	if except[p.snapshot.Node] {
		return nil, errdefs.New(errdefs.Conflict, "a volume is not to be had at the snapshot's node")
	}
	h, err := c.startWhereItIs(ctx, p)
	if err == nil || !errdefs.Is(err, errdefs.Exhausted) && c.cfg.Table.IsSynced(p.snapshot.Node) {
		return h, err
	}
	except[p.snapshot.Node] = true
	node, ok := c.cfg.Table.StoreNode(p.tmpl.Slot.RuntimeClass, except)
	if !ok {
		return nil, err
	}
	h, elsewhere := c.start(ctx, p, node)
	if elsewhere != nil {
		c.cfg.Log.Warn("a snapshot could not be used at another node", "snapshot", p.snapshot.ID, "team", p.row.TeamID, "node", node, "err", elsewhere)
		return nil, err
	}
	return h, nil
}

// startWhereItIs starts a sandbox on the node that has its snapshot.
func (c *Claimer) startWhereItIs(ctx context.Context, p *plan) (*half, error) {
	h, err := c.start(ctx, p, p.snapshot.Node)
	switch {
	case errdefs.Is(err, errdefs.Exhausted):
		err = errdefs.WithCode(errdefs.Exhausted, throttled, "too many sandboxes are starting").WithRetryAfter(throttledRetryAfter).WithCause(err)
	case connect.CodeOf(err) == connect.CodeNotFound: // it was deleted meanwhile
		err = errdefs.New(errdefs.NotFound, "snapshot not found").WithCause(err)
	}
	return h, err
}

// of names the snapshot for a node.
func of(s *store.Snapshot) string {
	if s == nil {
		return ""
	}
	return s.ID.String()
}
