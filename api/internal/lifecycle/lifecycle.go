// Package lifecycle ends and changes sandboxes, and keeps rows and nodes in
// agreement.
//
// A decision is a row first, then the node's: what a node could not be told is
// told again by the next pass. The other way round, a node's events make rows
// say what happened. Nothing is destroyed because a list lacks it: a row fails
// only when its node, asked by name, does not know the sandbox, and a sandbox
// without a row is ended only after a tombstone, when it is of a fork that was given up,
// or after a long grace and few at a time (G09).
//
// The package owns the goroutines of [Keeper.Run] and, in memory, which
// sandboxes have no row and since when.
package lifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"s0.run/api/internal/egress"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	callTimeout = 5 * time.Second // of one call to a node
	atOnce      = 8               // calls to nodes from the background

	expiryEvery = time.Second
	expiryBatch = 100

	purgeEvery         = time.Hour
	tombstoneRetention = 24 * time.Hour // longer than any retry of a claim by its key
	eventRetention     = 90 * 24 * time.Hour
	auditRetention     = 400 * 24 * time.Hour
)

// Config names what the Keeper works with. The zero durations mean the defaults.
type Config struct {
	Store   *store.Store
	Table   *placement.Table
	Nodes   *nodes.Set
	Network *egress.Keeper
	Volumes *volumes.Keeper
	Log     *slog.Logger

	PassEvery time.Duration // between two comparisons with a node; defaults to 15 s
	Settled   time.Duration // age at which a row's node must know about it, and a fork's child have its row; defaults to 30 s
	Grace     time.Duration // for a sandbox without a row; defaults to 10 min
	Lease     time.Duration // of a resume whose server may die; defaults to 30 s
	LostAfter time.Duration // silence after which what a node had in the object store, too, is resumed elsewhere; defaults to 30 s
}

// Keeper is safe for concurrent use.
type Keeper struct {
	cfg  Config
	wake chan struct{} // there is something in ended

	wakeStored chan struct{} // and in stored
	wakeDrain  chan struct{} // other nodes are drained

	resumes singleflight.Group // by team and id

	mu      sync.Mutex
	ended   map[sandbox.ID]string // sandboxes that their node says have ended
	orphans map[sandbox.ID]*orphan
	stored  map[sandbox.ID]string // sandboxes of which their node says something new of the object store
}

// New makes a Keeper.
func New(cfg Config) *Keeper {
	def := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	def(&cfg.PassEvery, 15*time.Second)
	def(&cfg.Settled, 30*time.Second)
	def(&cfg.Grace, 10*time.Minute)
	def(&cfg.Lease, 30*time.Second)
	def(&cfg.LostAfter, 30*time.Second)
	return &Keeper{
		cfg: cfg, wake: make(chan struct{}, 1), ended: map[sandbox.ID]string{}, orphans: map[sandbox.ID]*orphan{},
		wakeStored: make(chan struct{}, 1), wakeDrain: make(chan struct{}, 1), stored: map[sandbox.ID]string{},
	}
}

// Run expires, reconciles and purges until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { every(ctx, expiryEvery, nil, k.expire) })
	wg.Go(func() { every(ctx, expiryEvery, nil, k.pauseExpired) })
	wg.Go(func() { every(ctx, k.cfg.PassEvery, nil, k.pass) })
	wg.Go(func() { every(ctx, drainEvery, k.wakeDrain, k.drain) })
	wg.Go(func() { every(ctx, k.cfg.PassEvery, k.wake, k.settleEnded) })
	wg.Go(func() { every(ctx, removalEvery, nil, k.removeSnapshots) })
	wg.Go(func() { every(ctx, k.cfg.PassEvery, k.wakeStored, k.settleStored) })
	wg.Go(func() { every(ctx, unwantedEvery, nil, k.removeUnwanted) })
	wg.Go(func() { every(ctx, purgeEvery, nil, k.purge) })
	wg.Wait()
	return nil
}

// every calls f at the start, periodically, and when woken.
func every(ctx context.Context, period time.Duration, wake <-chan struct{}, f func(context.Context)) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		f(ctx)
		select {
		case <-tick.C:
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// Delete ends a sandbox of a team. The answer means that the decision is
// durable: a node that can't be reached is told later.
func (k *Keeper) Delete(ctx context.Context, team uuid.UUID, id sandbox.ID) error {
	sb, err := k.cfg.Store.BeginDelete(ctx, team, id, "deleted by a user")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	k.finish(ctx, sb)
	return nil
}

// finish tells the node about a row that is terminating, and then makes a
// tombstone of it. What fails is tried again by the next pass.
func (k *Keeper) finish(ctx context.Context, sb store.Sandbox) error {
	err := k.deleteAtNode(ctx, sb.Node, sb.ID, sb.Generation, sb.Reason)
	if err == nil {
		err = k.cfg.Store.FinishDelete(ctx, sb.TeamID, sb.ID, sb.ClaimID)
	}
	log := k.cfg.Log.With("sandbox", sb.ID, "gen", sb.Generation, "team", sb.TeamID, "node", sb.Node)
	if err != nil {
		log.Warn("a sandbox's end is not finished yet", "reason", sb.Reason, "err", err)
		return err
	}
	log.Info("ended a sandbox", "reason", sb.Reason)
	return nil
}

func (k *Keeper) deleteAtNode(ctx context.Context, node string, id sandbox.ID, gen sandbox.Generation, reason string) error {
	rpc, err := k.cfg.Nodes.RPC(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = rpc.Delete(ctx, &nodeapi.DeleteRequest{Id: string(id), Generation: uint64(gen), Reason: reason})
	if connect.CodeOf(err) == connect.CodeFailedPrecondition {
		return nil // a later generation is another instance: not this decision's to end
	}
	if err != nil {
		return fmt.Errorf("deleting sandbox %s at node %s: %w", id, node, err)
	}
	return nil
}

// expire ends the sandboxes whose time is up.
func (k *Keeper) expire(ctx context.Context) {
	k.endAll(ctx, "could not look for expired sandboxes", k.cfg.Store.ExpireSandboxes)
	k.endAll(ctx, "could not look for the sandboxes of deleted teams", k.cfg.Store.EndStrays)
}

// endAll ends what `decide` says shall end, which it is asked in batches.
func (k *Keeper) endAll(ctx context.Context, failed string, decide func(ctx context.Context, limit int) ([]store.Sandbox, error)) {
	for {
		list, err := decide(ctx, expiryBatch)
		if err != nil {
			k.logFailure(ctx, failed, err)
			return
		}
		k.finishAll(ctx, list)
		if len(list) < expiryBatch {
			return
		}
	}
}

// finishAll lets no node wait for another.
func (k *Keeper) finishAll(ctx context.Context, list []store.Sandbox) {
	byNode := map[string][]store.Sandbox{}
	for _, sb := range list {
		byNode[sb.Node] = append(byNode[sb.Node], sb)
	}
	var nodes sync.WaitGroup
	for _, of := range byNode {
		nodes.Go(func() { k.finishOf(ctx, of) })
	}
	nodes.Wait()
}

// finishOf ends sandboxes of one node, until it can't be reached or does not answer:
// what is left is the next pass's.
func (k *Keeper) finishOf(ctx context.Context, list []store.Sandbox) {
	var away atomic.Bool
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, sb := range list {
		g.Go(func() error {
			if away.Load() {
				return nil
			}
			switch connect.CodeOf(k.finish(ctx, sb)) {
			case connect.CodeUnavailable, connect.CodeDeadlineExceeded:
				away.Store(true)
			}
			return nil
		})
	}
	g.Wait()
}

func (k *Keeper) purge(ctx context.Context) {
	if err := k.cfg.Store.PurgeDeleted(ctx, tombstoneRetention); err != nil {
		k.logFailure(ctx, "could not purge tombstones", err)
	}
	if err := k.cfg.Store.PurgeForks(ctx, tombstoneRetention); err != nil {
		k.logFailure(ctx, "could not purge forks", err)
	}
	if err := k.cfg.Store.PurgeEvents(ctx, eventRetention); err != nil {
		k.logFailure(ctx, "could not purge events", err)
	}
	if err := k.cfg.Store.PurgeRefreshTokens(ctx); err != nil {
		k.logFailure(ctx, "could not purge refresh tokens", err)
	}
	if err := k.cfg.Store.PurgeDeletedTeams(ctx); err != nil {
		k.logFailure(ctx, "could not purge deleted teams", err)
	}
	if err := k.cfg.Store.PurgeLogins(ctx); err != nil {
		k.logFailure(ctx, "could not purge sign-ins", err)
	}
	if err := k.cfg.Store.PurgeAudit(ctx, auditRetention); err != nil {
		k.logFailure(ctx, "could not purge audit records", err)
	}
}

// logFailure is silent about what fails because the server stops.
func (k *Keeper) logFailure(ctx context.Context, msg string, err error) {
	if ctx.Err() == nil {
		k.cfg.Log.Warn(msg, "err", err)
	}
}
