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

// startWhereItIs starts a sandbox on the node that has its snapshot.
func (c *Claimer) startWhereItIs(ctx context.Context, p *plan) (*half, error) {
	if c.withoutVolumes(p)[p.snapshot.Node] {
		return nil, errdefs.New(errdefs.Conflict, "a volume is not to be had at the snapshot's node")
	}
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
