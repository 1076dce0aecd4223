package lifecycle

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/claim"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	// MaxForks bounds the children of one fork.
	MaxForks = 16
	// storeTimeout bounds the storing of a fork that its node has made, repeats included.
	storeTimeout, storePause = 5 * time.Second, 100 * time.Millisecond
	// undoTimeout bounds the undoing of a fork; then a pass finds what nobody has.
	undoTimeout = 30 * time.Second
)

// ForkRequest asks for sandboxes that are what another is at this moment.
type ForkRequest struct {
	TeamID  uuid.UUID
	UserID  uuid.UUID
	Source  sandbox.ID
	Count   int    // of children; 0: one
	Memory  *bool  // processes and memory, too; nil: as a paused source was saved, a running one's files alone
	TTL     *int32 // nil: the source's
	HardTTL *int32 // nil: the source's
	Key     string // the idempotency key; empty: none
}

// Fork makes paused sandboxes of what a sandbox of a team is now, all or none, and answers
// when they are durable. A client that leaves does not stop it.
func (k *Keeper) Fork(ctx context.Context, req ForkRequest) ([]store.Sandbox, error) {
	req.Count = cmp.Or(req.Count, 1)
	if req.Count < 1 || req.Count > MaxForks {
		return nil, errdefs.New(errdefs.InvalidArgument, "count must be 1 to %d", MaxForks)
	}
	if made, err := k.earlierFork(ctx, req); !errdefs.Is(err, errdefs.NotFound) {
		return made, err
	}
	source, err := k.cfg.Store.Sandbox(ctx, req.TeamID, req.Source)
	if err != nil {
		return nil, err
	}
	if source.Status != sandbox.Running && source.Status != sandbox.Paused {
		return nil, errdefs.New(errdefs.Conflict, "the sandbox is %s", source.Status)
	}
	n, err := req.rows(source)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTimeout)
	defer cancel()
	if err := k.forkAtNode(ctx, req, source, &n); err != nil {
		return nil, err
	}
	made, maybe, err := k.storeForks(ctx, n)
	switch {
	case err == nil:
		k.cfg.Log.Info("forked a sandbox", "sandbox", source.ID, "gen", source.Generation, "team", source.TeamID, "node", source.Node, "children", len(made))
		return made, nil
	case maybe && req.Key != "": // whoever repeats the key may find the rows; if not, a pass ends what has none
		return nil, err
	}
	k.undoFork(ctx, n, true)
	switch {
	case errors.Is(err, store.ErrKeyTaken): // the same request, at the same time
		return k.earlierFork(ctx, req)
	case errors.Is(err, store.ErrGivenUp):
		return nil, errdefs.New(errdefs.Unavailable, "the sandbox could not be forked in time").WithRetryAfter(time.Second).WithCause(err)
	}
	return nil, err
}

// earlierFork answers what a fork with this key has made before (A16).
func (k *Keeper) earlierFork(ctx context.Context, req ForkRequest) ([]store.Sandbox, error) {
	if req.Key == "" {
		return nil, errdefs.New(errdefs.NotFound, "no key")
	}
	made, err := k.cfg.Store.ForksByKey(ctx, req.TeamID, req.Key)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(made[0].RequestHash, req.hash()) {
		return nil, errdefs.New(errdefs.Unprocessable, "this Idempotency-Key was used for another request")
	}
	for _, sb := range made {
		if sb.DeletedAt != nil || sb.Status == sandbox.Terminating {
			return nil, errdefs.New(errdefs.Conflict, "sandbox %s, which this Idempotency-Key has made, has ended", sb.ID)
		}
	}
	return made, nil
}

// hash identifies what was asked for.
func (r ForkRequest) hash() []byte {
	b, err := json.Marshal(struct {
		Fork         sandbox.ID
		Count        int
		Memory       *bool
		TTL, HardTTL *int32
	}{r.Source, r.Count, r.Memory, r.TTL, r.HardTTL})
	if err != nil {
		panic("a fork's request must marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// rows are the children's, without the generation that their node decides.
func (r ForkRequest) rows(source store.Sandbox) (store.NewForks, error) {
	n := store.NewForks{
		TeamID: r.TeamID, UserID: r.UserID, Source: source.ID, Node: source.Node, TTLSeconds: source.TTLSeconds, HardTTLSeconds: source.HardTTLSeconds,
	}
	if r.TTL != nil {
		n.TTLSeconds = *r.TTL
	}
	if r.HardTTL != nil {
		n.HardTTLSeconds = *r.HardTTL
	}
	if r.TTL == nil && n.HardTTLSeconds > 0 {
		n.TTLSeconds = min(n.TTLSeconds, n.HardTTLSeconds) // what is inherited gives way
	}
	if r.HardTTL == nil && n.HardTTLSeconds > 0 {
		n.HardTTLSeconds = max(n.TTLSeconds, n.HardTTLSeconds)
	}
	if r.Key != "" {
		n.IdempotencyKey, n.RequestHash = r.Key, r.hash()
	}
	for range r.Count {
		id, err := sandbox.NewID(source.ID.Cluster())
		if err != nil {
			return store.NewForks{}, err
		}
		n.Children = append(n.Children, store.NewFork{ID: id, ClaimID: uuid.New()})
	}
	return n, claim.CheckTTLs(n.TTLSeconds, n.HardTTLSeconds)
}

// forkAtNode has the source's node make the children, which are known before it is asked.
// What it may have made although its answer is a failure is undone.
func (k *Keeper) forkAtNode(ctx context.Context, req ForkRequest, source store.Sandbox, n *store.NewForks) error {
	rpc, err := k.cfg.Nodes.RPC(source.Node)
	if err != nil {
		return err
	}
	if err := k.cfg.Store.BeginForks(ctx, *n); err != nil {
		return err
	}
	call := &nodeapi.ForkRequest{Id: string(source.ID), Generation: uint64(source.Generation), Memory: req.Memory, User: req.UserID.String()}
	for _, c := range n.Children {
		call.Children = append(call.Children, &nodeapi.ForkChild{Id: string(c.ID), ClaimId: c.ClaimID.String()})
	}
	resp, err := rpc.Fork(ctx, call)
	if err == nil && len(resp.GetChildren()) != len(n.Children) {
		err = errors.New("the node answered with other children than were asked for")
	}
	if err != nil {
		k.undoFork(ctx, *n, connect.IsWireError(err))
		return switchError(err, "the sandbox can't be forked in its present state", "the sandbox could not be forked")
	}
	for i, c := range resp.GetChildren() {
		n.Children[i].Generation = sandbox.Generation(c.GetGeneration())
	}
	return nil
}

// differs is a node's refusal of an image that it can't start as it was saved, with the
// reason, which is for its tenant; nil: it is another.
func differs(err error) error {
	refused, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil
	}
	switch code := refused.Meta().Get(nodeapi.CodeHeader); code {
	case nodeapi.CodeMemoryDiffers, nodeapi.CodeImageDiffers:
		return errdefs.WithCode(errdefs.Conflict, code, "%s", nodeapi.Text(refused.Message())).WithCause(err)
	}
	return nil
}

// storeForks stores the children's rows, again while the outcome is unknown (G07). maybe
// tells that they may be stored although it failed.
func (k *Keeper) storeForks(ctx context.Context, n store.NewForks) (made []store.Sandbox, maybe bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for {
		made, err = k.cfg.Store.InsertForks(ctx, n)
		if !errdefs.Is(err, errdefs.Unavailable) {
			return made, false, err
		}
		maybe = maybe || store.Unknown(err)
		select {
		case <-time.After(storePause):
		case <-ctx.Done():
			return nil, maybe, err
		}
	}
}

// undoFork removes children that nobody will be told of. What can't be undone now a pass
// ends, and so it does with what a node makes later that has not answered.
func (k *Keeper) undoFork(ctx context.Context, n store.NewForks, answered bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := k.endChildren(ctx, n)
	if err == nil && answered {
		err = k.cfg.Store.ForgetForks(ctx, n)
	}
	if err != nil {
		k.logFailure(ctx, "could not undo a fork", err)
	}
}

// endChildren gives a fork up and ends its children, rows of theirs first: one that is there
// all the same is of a write whose outcome was unknown.
func (k *Keeper) endChildren(ctx context.Context, n store.NewForks) error {
	if err := k.cfg.Store.GiveUpForks(ctx, n); err != nil {
		return err
	}
	for _, c := range n.Children {
		if err := k.cfg.Store.RemoveClaim(ctx, c.ID, c.ClaimID); err != nil {
			return err
		}
		if err := k.deleteAtNode(ctx, n.Node, c.ID, 0, "fork failed"); err != nil {
			return err
		}
	}
	return nil
}
