package lifecycle

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	// moves bounds how many other nodes one resume tries.
	moves = 3
	// unwantedEvery is how often there is a look for images in the object store that
	// nobody wants, unwantedLease when another attempt to remove them may be made, and
	// unwantedBatch how many sandboxes' at a time.
	unwantedEvery, unwantedLease, unwantedBatch = 10 * time.Second, 5 * time.Minute, 50
	// removeTimeout is for all objects of a sandbox's images.
	removeTimeout = 2 * time.Minute
)

var errBeingResumed = errdefs.New(errdefs.Unavailable, "the sandbox is being resumed").WithRetryAfter(time.Second)

// errAhead is where a row is older than what runs: the database has lost commits.
var errAhead = errdefs.New(errdefs.Unavailable, "the sandbox is not where the database has it").WithRetryAfter(time.Minute)

// errDrained is a drained node's refusal, in its place.
var errDrained = connect.NewError(connect.CodeResourceExhausted, errors.New("the sandbox's node gets nothing new"))

// Stored takes note that a node says something new of whether a paused sandbox is in the
// object store. It never blocks.
func (k *Keeper) Stored(node string, id sandbox.ID) {
	k.mu.Lock()
	k.stored[id] = node
	k.mu.Unlock()
	select {
	case k.wakeStored <- struct{}{}:
	default:
	}
}

// stored is the generation of a row's image in the object store; 0: there is none.
func stored(row store.Sandbox) sandbox.Generation {
	if row.Stored == nil {
		return 0
	}
	return *row.Stored
}

// settleStored makes the rows say it. What the database does not take now, the next
// comparison with the node finds.
func (k *Keeper) settleStored(ctx context.Context) {
	k.mu.Lock()
	said := k.stored
	k.stored = map[sandbox.ID]string{}
	k.mu.Unlock()
	for id := range said {
		if sb, synced, ok := k.cfg.Table.Lookup(id); ok && synced && sb.State == sandbox.Paused {
			k.recordStored(ctx, sb)
		}
	}
}

func (k *Keeper) recordStored(ctx context.Context, sb placement.Sandbox) {
	changed, err := k.cfg.Store.SetStored(ctx, sb.Node, sb.ID, sb.ClaimID, sb.Generation, sb.Stored)
	if err != nil {
		k.logFailure(ctx, "could not record a stored image", err)
	}
	if changed {
		k.cfg.Log.Info("a paused sandbox is or is not in the object store", "sandbox", sb.ID, "gen", sb.Generation, "team", sb.Team, "node", sb.Node, "stored", sb.Stored)
	}
}

// resumeAt has the row's node resume a sandbox: what the node has, or else what is in the
// object store. Who has begun the resume gives it its volumes anew.
func (k *Keeper) resumeAt(ctx context.Context, row store.Sandbox, begun bool) (*nodeapi.Sandbox, error) {
	if begun && k.cfg.Table.Closed(row.Node) {
		return nil, errDrained
	}
	rpc, err := k.cfg.Nodes.RPC(row.Node)
	if err != nil {
		return nil, err
	}
	mounts, err := k.cfg.Volumes.Again(ctx, row, begun)
	if err != nil {
		return nil, err
	}
	req := &nodeapi.ResumeRequest{Id: string(row.ID), AfterGeneration: uint64(row.Generation), Mounts: mounts}
	if row.Stored != nil {
		req.Stored = &nodeapi.StoredImage{
			Generation: uint64(*row.Stored), Team: row.TeamID.String(), ClaimId: row.ClaimID.String(), AfterGeneration: uint64(row.Generation),
		}
	}
	return rpc.Resume(ctx, req)
}

// resumeElsewhere resumes a sandbox at another node whose own can't, after refused. It
// needs to be in the object store, and this caller to have begun the resume. It returns
// the row as it is by then, and if it fails the refusal that says most: a node's own word
// before that nobody else could be asked, or has the store.
//
// There are never two of a sandbox (R2): who began its resume is alone with it, moves its
// row before another node is asked, and asks for a generation that is later than any that
// there may have been. A node that is lost and comes back has an older one, which ends.
func (k *Keeper) resumeElsewhere(ctx context.Context, row store.Sandbox, by uuid.UUID, refused error) (store.Sandbox, *nodeapi.Sandbox, error) {
	reason := refused
	tried := map[string]bool{row.Node: true}
	for range moves {
		if row.Stored == nil || !k.mayMove(row, refused) {
			break
		}
		node, ok := k.cfg.Table.StoreNode("", tried)
		if !ok {
			break
		}
		tried[node] = true
		if can, err := k.cfg.Volumes.CanMove(ctx, row, node); !can {
			if err != nil {
				return row, nil, err
			}
			continue
		}
		moved, ok, err := k.cfg.Store.Move(ctx, row, by, node)
		if err != nil {
			return row, nil, err
		}
		if !ok {
			return row, nil, errBeingResumed
		}
		k.cfg.Log.Warn("moved a paused sandbox to another node", "sandbox", row.ID, "gen", moved.Generation, "team", row.TeamID, "from", row.Node, "node", node, "err", refused)
		row = moved
		sb, err := k.resumeAt(ctx, row, true)
		if err == nil {
			return row, sb, nil
		}
		if refused = err; !refuses(reason) {
			reason = err
		}
	}
	return row, nil, reason
}

// refuses reports whether an error is what a node says of itself, so that another one may
// do what it can't: it is full, or can't take up the image.
func refuses(err error) bool {
	code := connect.CodeOf(err)
	return code == connect.CodeResourceExhausted || code == connect.CodeFailedPrecondition
}

// mayMove reports whether a node's refusal is a reason to ask another one: it is full, it
// can't take up the image, or nobody has heard of it for so long that it counts as lost.
func (k *Keeper) mayMove(row store.Sandbox, refused error) bool {
	return refuses(refused) || k.cfg.Table.Silence(row.Node) >= k.cfg.LostAfter
}

// rests reports whether a row is of a sandbox that its node need not have: it is paused
// and in the object store. One whose resume nobody finishes is paused again when nobody
// can be at it any more.
func (k *Keeper) rests(ctx context.Context, row store.Sandbox) bool {
	if row.Stored == nil || row.Status != sandbox.Paused && row.Status != sandbox.Starting {
		return false
	}
	if row.Status == sandbox.Starting {
		if err := k.cfg.Store.GiveUpResume(ctx, row); err != nil {
			k.logFailure(ctx, "could not give up a resume", err)
		}
	}
	return true
}

// endOutdated ends what a node still has of sandboxes that went on at another node: their
// rows say so.
func (k *Keeper) endOutdated(ctx context.Context, node string) {
	for _, sb := range k.cfg.Table.Outdated(node) {
		row, err := k.cfg.Store.AnySandbox(ctx, sb.ID)
		if errdefs.Is(err, errdefs.NotFound) {
			continue // that is no evidence
		}
		if err != nil {
			k.logFailure(ctx, "could not look for a sandbox's row", err)
			return
		}
		if wentOn(row, sb) {
			k.end(ctx, sb, "it went on at another node")
		}
	}
}

// wentOn reports whether a row says that an instance is not the sandbox any more. The one
// that was stored is what the sandbox is until another node runs it: that the row was moved
// does not show that the other node can read the store (R7).
func wentOn(row store.Sandbox, sb placement.Sandbox) bool {
	if row.DeletedAt == nil && row.Stored != nil && sb.State == sandbox.Paused && sb.Stored == *row.Stored {
		return false
	}
	return row.ClaimID.String() == sb.ClaimID && row.Node != sb.Node && row.Generation >= sb.Generation
}

// isAhead reports whether another node has a later instance than the row knows. No commit
// makes that so, only the loss of some: nobody may have another instance made (R2).
func (k *Keeper) isAhead(row store.Sandbox) bool {
	sb, _, ok := k.cfg.Table.Lookup(row.ID)
	return ok && sb.ClaimID == row.ClaimID.String() && sb.Node != row.Node && sb.Generation > row.Generation
}

// removeUnwanted removes images from the object store that nobody wants any more, as the
// rows of their sandboxes say. Any node that has the store can.
func (k *Keeper) removeUnwanted(ctx context.Context) {
	node, ok := k.cfg.Table.StoreNode("", nil)
	if !ok && !k.cfg.Table.NoStore() {
		return // who could remove them can't be asked now
	}
	list, err := k.cfg.Store.LeaseUnwantedImages(ctx, unwantedLease, unwantedBatch)
	if err != nil {
		k.logFailure(ctx, "could not look for images that nobody wants", err)
		return
	}
	for _, row := range list {
		if ok {
			err = k.removeImages(ctx, node, row)
		}
		if err == nil {
			err = k.cfg.Store.ImagesRemoved(ctx, row.TeamID, row)
		}
		if err != nil {
			k.logFailure(ctx, "could not remove images that nobody wants", err)
			return
		}
	}
}

func (k *Keeper) removeImages(ctx context.Context, node string, row store.Sandbox) error {
	rpc, err := k.cfg.Nodes.RPC(node)
	if err != nil {
		return nodes.ErrUnreachable.WithCause(err)
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	req := &nodeapi.RemoveStoredRequest{Id: string(row.ID)}
	if row.DeletedAt == nil {
		req.BelowGeneration = uint64(row.Generation)
	}
	_, err = rpc.RemoveStored(ctx, req)
	return err
}
