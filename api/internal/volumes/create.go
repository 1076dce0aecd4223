package volumes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sealed"
)

// CreateRequest asks for a volume.
type CreateRequest struct {
	TeamID, UserID uuid.UUID
	Snapshot       uuid.UUID // that it begins as; uuid.Nil: it is empty
	Source         uuid.UUID // a volume that it is a fork of; uuid.Nil: none
	Backend        string    // s0fs or s3
	Bucket         *Bucket   // of backend s3
	Secret         Secret
	Owner          *Owner // nil: root, or the source's
	AccessMode     string // empty: RWO, or the source's
	Key            string // the idempotency key; empty: none
}

// Owner owns what is written without a sandbox.
type Owner struct{ UID, GID int32 }

// Create makes a volume of a team and answers when it can be used. A client that leaves
// does not stop it.
func (k *Keeper) Create(ctx context.Context, req CreateRequest) (store.Volume, error) {
	if made, err := k.earlier(ctx, req); !errdefs.Is(err, errdefs.NotFound) {
		return made, err
	}
	n, make, err := k.prepare(ctx, req)
	if err != nil {
		return store.Volume{}, err
	}
	ctx, cancel := detached(ctx, workTimeout)
	defer cancel()
	audit.Resource(ctx, n.ID.String())
	limit, err := k.cfg.Store.BeginVolume(ctx, n)
	if errors.Is(err, store.ErrKeyTaken) { // the same request, at the same time
		return k.earlier(ctx, req)
	}
	if err != nil {
		return store.Volume{}, err
	}
	size, err := make(ctx, limit)
	if err != nil {
		k.abandon(ctx, n.ID)
		return store.Volume{}, failure(err, "the volume could not be made")
	}
	made, err := k.cfg.Store.FinishVolume(ctx, n.ID, size)
	if err == nil {
		k.cfg.Log.Info("made a volume", "volume", n.ID, "team", n.TeamID, "node", n.Node, "source", n.SourceID)
	}
	return made, err
}

// earlier answers what a request with this key has made before (A16). NotFound means that
// there was none.
func (k *Keeper) earlier(ctx context.Context, req CreateRequest) (store.Volume, error) {
	if req.Key == "" {
		return store.Volume{}, errdefs.New(errdefs.NotFound, "no key")
	}
	v, err := k.cfg.Store.VolumeByKey(ctx, req.TeamID, req.Key)
	switch {
	case err != nil:
		return store.Volume{}, err
	case !bytes.Equal(v.RequestHash, req.hash()):
		return store.Volume{}, errdefs.New(errdefs.Unprocessable, "this Idempotency-Key was used for another request")
	case v.State == "creating":
		return store.Volume{}, errdefs.New(errdefs.Conflict, "volume %s, which this Idempotency-Key makes, is not there yet", v.ID)
	case v.State != "ready":
		return store.Volume{}, errdefs.New(errdefs.Conflict, "volume %s, which this Idempotency-Key has made, was deleted", v.ID)
	}
	return v, nil
}

// hash identifies what was asked for. Of a bucket's credential it has nothing.
func (r *CreateRequest) hash() []byte {
	b, err := json.Marshal(struct {
		Snapshot, Source    uuid.UUID
		Backend, AccessMode string
		Bucket              *Bucket
		Owner               *Owner
	}{r.Snapshot, r.Source, r.Backend, r.AccessMode, r.Bucket, r.Owner})
	if err != nil {
		panic("a volume's request must marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// making has a node make what was stored, which may grow to so many bytes, and answers what
// it holds. The node opens it then, as large as it may be.
type making func(ctx context.Context, limit int64) (bytes int64, err error)

// prepare decides where a volume is made, and of what.
func (k *Keeper) prepare(ctx context.Context, req CreateRequest) (store.NewVolume, making, error) {
	n := store.NewVolume{
		ID: uuid.New(), TeamID: req.TeamID, UserID: req.UserID, Backend: req.Backend, AccessMode: req.AccessMode, Lease: makingLease,
	}
	if req.Key != "" {
		n.IdempotencyKey, n.RequestHash = req.Key, req.hash()
	}
	if req.Source != uuid.Nil || req.Snapshot != uuid.Nil {
		return k.prepareCopy(ctx, req, n)
	}
	if n.AccessMode == "" {
		n.AccessMode = store.ReadWriteOnce
	}
	if req.Owner != nil {
		n.UID, n.GID = req.Owner.UID, req.Owner.GID
	}
	var err error
	if n.Node, n.Store, err = k.anywhere(req.Backend); err != nil {
		return n, nil, err
	}
	if req.Bucket != nil {
		if n.Bucket, err = json.Marshal(req.Bucket); err != nil {
			return n, nil, err
		}
		of := sealed.Of{Team: n.TeamID.String(), Source: n.ID.String(), Kind: secretKind, Version: secretVersion}
		if n.Secret, err = k.cfg.Key.SealSecret(of, req.Secret); err != nil {
			return n, nil, err
		}
	}
	return n, func(ctx context.Context, limit int64) (int64, error) {
		return k.create(ctx, n, limit, &nodeapi.CreateVolumeRequest{})
	}, nil
}

// create has a node make a volume, of a snapshot if the request names one.
func (k *Keeper) create(ctx context.Context, n store.NewVolume, limit int64, req *nodeapi.CreateVolumeRequest) (int64, error) {
	rpc, err := k.rpc(n.Node)
	if err != nil {
		return 0, err
	}
	if req.Volume, err = k.wire(n, limit); err != nil {
		return 0, err
	}
	made, err := rpc.CreateVolume(ctx, req)
	return made.GetState().GetBytes(), err
}

// prepareCopy is prepare for a volume that begins as another one, or a snapshot of it.
func (k *Keeper) prepareCopy(ctx context.Context, req CreateRequest, n store.NewVolume) (store.NewVolume, making, error) {
	source, snapshot := req.Source, req.Snapshot
	if snapshot != uuid.Nil {
		snap, err := k.cfg.Store.VolumeSnapshot(ctx, req.TeamID, uuid.Nil, snapshot)
		switch {
		case err != nil:
			return n, nil, err
		case snap.Expired:
			return n, nil, errExpired
		}
		source = snap.VolumeID
	}
	from, rpc, err := k.find(ctx, req.TeamID, source)
	if err != nil {
		return n, nil, err
	}
	if err := Copyable(from); err != nil {
		return n, nil, err
	}
	n.SourceID, n.Backend, n.Store, n.Node = from.ID, from.Backend, from.Store, from.Node
	n.UID, n.GID = from.UID, from.GID
	if req.Owner != nil {
		n.UID, n.GID = req.Owner.UID, req.Owner.GID
	}
	if n.AccessMode == "" {
		n.AccessMode = from.AccessMode
	}
	if snapshot != uuid.Nil {
		return n, func(ctx context.Context, limit int64) (int64, error) {
			return k.create(ctx, n, limit, &nodeapi.CreateVolumeRequest{Snapshot: snapshot.String(), SnapshotVolume: from.ID.String()})
		}, nil
	}
	return n, func(ctx context.Context, limit int64) (int64, error) {
		sourceWire, err := toWire(from)
		if err != nil {
			return 0, err
		}
		wire, err := k.wire(n, limit)
		if err != nil {
			return 0, err
		}
		made, err := rpc.ForkVolume(ctx, &nodeapi.ForkVolumeRequest{Source: sourceWire, Volume: wire})
		return made.GetState().GetBytes(), err
	}, nil
}

// Copyable reports why a volume has no snapshots and no forks.
func Copyable(v store.Volume) error {
	if v.Backend == nodeapi.BackendS3 {
		return errdefs.New(errdefs.InvalidArgument, "volume backend does not support snapshots, restores and forks")
	}
	return nil
}

// wire is what a node is told of a volume that is being made.
func (k *Keeper) wire(n store.NewVolume, limit int64) (*nodeapi.Volume, error) {
	v := store.Volume{ID: n.ID, TeamID: n.TeamID, Epoch: 1, Backend: n.Backend, UID: n.UID, GID: n.GID, LimitBytes: limit}
	if n.Bucket != nil {
		v.Bucket, v.SealedKey, v.Sealed = n.Bucket, &n.Secret.Key, n.Secret.Data
	}
	return toWire(v)
}

// abandon has one removed that may have been made. If the database does not take it, its
// lease says so later.
func (k *Keeper) abandon(ctx context.Context, id uuid.UUID) {
	ctx, cancel := detached(audit.Without(ctx), tellTimeout)
	defer cancel()
	if err := k.cfg.Store.AbandonVolume(ctx, id); err != nil {
		k.logFailure(ctx, "could not give up a volume", err)
	}
}
