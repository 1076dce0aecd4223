// Package volumes makes, changes and ends volumes, and says who has them.
//
// A decision is a row first, then a node's: what a node could not be told is told again.
// Nothing ends because a node lacks it. Who shall write to a volume, a sandbox or, for
// file calls, a node, has an epoch of its own before anybody is asked (see
// store.TakeVolumes); what writes at an older one is refused where the files are.
//
// The package knows which nodes can have which volumes and what to tell them; it owns the
// goroutine of [Keeper.Run] and keeps nothing.
package volumes

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/sealed"
)

const (
	// workTimeout is for what a node does with a volume: it commits what was written
	// before. makingLease outlives it: what is not finished then never will be.
	workTimeout, makingLease = time.Minute, 2 * time.Minute
	// mountLease outlives the longest claim.
	mountLease = 3 * time.Minute
	// removalEvery is how often there is a look for what shall go, removalLease when a
	// node that did not do it is told again, and removalBatch how many at a time.
	removalEvery, removalLease, removalBatch = 5 * time.Second, 30 * time.Second, 50
	// tellTimeout is of one node's part in a removal, and of what is undone.
	tellTimeout = 10 * time.Second
	// lostAfter is the silence after which a node's volumes may go on at another.
	lostAfter = 30 * time.Second
	// handOvers bounds how often a volume changes its node under one call.
	handOvers = 3
)

// Nodes are asked through this.
type Nodes interface {
	RPC(node string) (nodeapiconnect.NodeClient, error)
}

// Config names what a Keeper works with.
type Config struct {
	Store *store.Store
	Table *placement.Table
	Nodes Nodes
	Key   *sealed.PublicKey // buckets' credentials are sealed to it; nil: there are no such volumes
	Log   *slog.Logger
}

// Keeper is safe for concurrent use.
type Keeper struct{ cfg Config }

// New makes a Keeper.
func New(cfg Config) *Keeper { return &Keeper{cfg} }

var (
	errUnavailable = errdefs.New(errdefs.Unavailable, "volumes are unavailable in this deployment")
	errNoBuckets   = errdefs.New(errdefs.Unavailable, "s3 volumes are unavailable in this deployment")
	errElsewhere   = errdefs.New(errdefs.Unavailable, "the volume's node can't be reached at the moment").WithRetryAfter(time.Second)
	errMoving      = errdefs.New(errdefs.Unavailable, "the volume is moving between nodes").WithRetryAfter(time.Second)
)

// fits reports whether a node can have a volume.
func fits(n placement.Node, v store.Volume) bool {
	if v.Backend == nodeapi.BackendS3 {
		return n.Buckets
	}
	return n.Volumes != "" && n.Volumes == v.Store
}

// at lists the nodes that can be asked and can have a volume.
func (k *Keeper) at(v store.Volume) (names []string) {
	for _, n := range k.cfg.Table.Synced() {
		if fits(n, v) {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names
}

// anywhere chooses a node for a new volume of a backend, and says which store it is in.
func (k *Keeper) anywhere(backend string) (node, storeName string, err error) {
	if backend == nodeapi.BackendS3 && k.cfg.Key == nil {
		return "", "", errNoBuckets
	}
	for _, n := range k.cfg.Table.Synced() {
		switch {
		case backend == nodeapi.BackendS3 && n.Buckets:
			return n.Name, "", nil
		case backend == nodeapi.BackendS0FS && n.Volumes != "":
			return n.Name, n.Volumes, nil
		}
	}
	if backend == nodeapi.BackendS3 {
		return "", "", errNoBuckets
	}
	return "", "", errUnavailable
}

// settle answers a volume whose node can be asked. One whose node is lost, and which no
// sandbox may be writing to, goes on at another that can have it.
func (k *Keeper) settle(ctx context.Context, v store.Volume) (store.Volume, error) {
	if k.cfg.Table.IsSynced(v.Node) {
		return v, nil
	}
	others := k.at(v)
	if len(others) == 0 || k.cfg.Table.Silence(v.Node) < lostAfter {
		return v, errElsewhere
	}
	moved, err := k.cfg.Store.MoveVolume(ctx, v.TeamID, v, others[0])
	if errors.Is(err, store.ErrChanged) {
		return v, errElsewhere.WithCause(err)
	}
	if err == nil {
		k.cfg.Log.Warn("a volume goes on at another node", "volume", v.ID, "team", v.TeamID, "from", v.Node, "node", moved.Node, "epoch", moved.Epoch)
	}
	return moved, err
}

// find reads a volume of a team and the node to ask about it.
func (k *Keeper) find(ctx context.Context, team, id uuid.UUID) (store.Volume, nodeapiconnect.NodeClient, error) {
	v, err := k.cfg.Store.Volume(ctx, team, id)
	if err == nil {
		v, err = k.settle(ctx, v)
	}
	if err != nil {
		return v, nil, err
	}
	rpc, err := k.rpc(v.Node)
	return v, rpc, err
}

func (k *Keeper) rpc(node string) (nodeapiconnect.NodeClient, error) {
	rpc, err := k.cfg.Nodes.RPC(node)
	if err != nil {
		return nil, errElsewhere.WithCause(err)
	}
	return rpc, nil
}

// Reach says where a volume's files are, and what names the volume to that node.
func (k *Keeper) Reach(ctx context.Context, team, id uuid.UUID) (node string, v *nodeapi.Volume, err error) {
	row, err := k.cfg.Store.Volume(ctx, team, id)
	if err == nil {
		row, err = k.settle(ctx, row)
	}
	if err != nil {
		return "", nil, err
	}
	wire, err := toWire(row)
	return row.Node, wire, err
}

// Run removes what shall go until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(removalEvery)
	defer tick.Stop()
	for {
		var wg sync.WaitGroup
		wg.Go(func() { k.removeSnapshots(ctx) })
		wg.Go(func() { k.removeVolumes(ctx) })
		wg.Go(func() {
			if err := k.cfg.Store.RemoveStaleMounts(ctx); err != nil {
				k.logFailure(ctx, "could not forget mounts that nobody finished", err)
			}
		})
		wg.Wait()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// logFailure is silent about what fails because the server stops.
func (k *Keeper) logFailure(ctx context.Context, msg string, err error) {
	if ctx.Err() == nil {
		k.cfg.Log.Warn(msg, "err", err)
	}
}

// detached is the context of what goes on when its client has left.
func detached(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}
