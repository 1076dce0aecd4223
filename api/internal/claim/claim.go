// Package claim turns a free slot into a tenant's sandbox: a compare-and-swap at
// the node and a row in the store, both or neither.
//
//	           ┌─ node: Claim(slot) ─┐
//	take slot ─┤                     ├─ both: 201
//	           └─ store: INSERT row ─┘  else: undo the half that was done
//
// On the quick path the halves run at the same time. A claim with an idempotency
// key or a webhook, and one without a free slot, ask the node first: their row
// must not be seen, or told of, before the sandbox is theirs. Volumes are taken before
// either, under a lease that the row's transaction makes the sandbox's; where they were
// last is remembered, as a guess. A write whose outcome is unknown is repeated
// until it is known, which the row's claim id makes safe; what can't be undone in
// time is left to reconciliation, which compares claim ids.
//
// The package owns the background undoing of lost halves ([Claimer.Wait]). It
// trusts no view: the table proposes a slot, the node decides.
package claim

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/egress"
	"s0.run/api/internal/fair"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/quota"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/api/internal/volumes"
	"s0.run/api/internal/webhook"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	reserveTimeout = 3 * time.Second  // a burst may have to open connections; waiting longer only makes a queue
	warmTimeout    = 3 * time.Second  // a node answers in a millisecond, or is in trouble
	coldTimeout    = 90 * time.Second // an image may have to be unpacked
	insertTimeout  = 3 * time.Second  // of a row's write, repeats included, and of taking one over
	undoTimeout    = 30 * time.Second // of a lost half; then reconciliation has it
	undoPause      = 200 * time.Millisecond
	repeatPause    = 50 * time.Millisecond

	// warmAttempts bounds how many slots a claim loses to other replicas before it
	// starts cold.
	warmAttempts = 5
	warmFailures = 2 // slots that fail at their node

	throttled           = "claim_start_throttled"
	throttledRetryAfter = time.Second
)

// Config names what a claim needs.
type Config struct {
	Store   *store.Store
	Catalog *templates.Catalog
	Table   *placement.Table
	Nodes   *nodes.Set
	Network *egress.Keeper
	Volumes *volumes.Keeper
	Hooks   webhook.Policy
	Metrics *Metrics
	Log     *slog.Logger
}

// Claimer serves claims. It is safe for concurrent use.
type Claimer struct {
	cfg   Config
	gate  *quota.Gate
	queue *fair.Queue
	slots *fair.Slots
	homes homes
	undos sync.WaitGroup
}

// New makes a Claimer.
func New(cfg Config) *Claimer {
	return &Claimer{cfg: cfg, gate: quota.NewGate(cfg.Store.Room), queue: fair.NewQueue(), slots: fair.NewSlots()}
}

// LimitsChanged drops what is remembered of teams' quotas.
func (c *Claimer) LimitsChanged() { c.gate.Forget() }

// Wait waits until the background undoing of lost halves has ended.
func (c *Claimer) Wait() { c.undos.Wait() }

// Claim gives the team a sandbox that serves. Once begun it does not stop when
// ctx ends: a client that is gone must not leave half a claim (G05).
func (c *Claimer) Claim(ctx context.Context, req Request) (store.Sandbox, error) {
	began := time.Now()
	tmpl, err := c.cfg.Catalog.Find(ctx, req.TeamID, req.Template)
	if err != nil {
		return store.Sandbox{}, err
	}
	p, err := c.plan(req, tmpl)
	if err == nil && p.policy != nil {
		p.network, err = c.cfg.Network.Message(ctx, req.TeamID, p.policy)
	}
	if err != nil {
		return store.Sandbox{}, err
	}
	if p.req.Key != "" {
		if sb, err := c.earlier(ctx, p); !errdefs.Is(err, errdefs.NotFound) {
			return sb, err
		}
	}
	if err := c.begin(ctx, p); err != nil {
		return store.Sandbox{}, err
	}
	// The row carries the record of the call; nothing else that a claim does is a
	// change of its tenant's.
	p.row.Audit = audit.Of(ctx)
	sb, kind, err := c.admitted(audit.Without(ctx), p)
	if errors.Is(err, store.ErrKeyTaken) { // the same request, at the same time
		return c.earlier(ctx, p)
	}
	if p.req.Key != "" && errdefs.Is(err, errdefs.Exhausted) { // it may be what took the room
		if sb, err := c.earlier(ctx, p); !errdefs.Is(err, errdefs.NotFound) {
			return sb, err
		}
	}
	c.cfg.Metrics.total(kind, time.Since(began), err)
	if err == nil && p.row.Audit != nil {
		p.row.Audit.Carried(string(sb.ID))
	}
	return sb, err
}

// admitted claims when the team's quota leaves room. A cold start is none of those
// who take turns: it takes long, and its node bounds it.
func (c *Claimer) admitted(ctx context.Context, p *plan) (sb store.Sandbox, kind string, err error) {
	leave, err := c.gate.Enter(ctx, p.req.TeamID, p.row.MemoryBytes)
	if err != nil {
		return store.Sandbox{}, kindWarm, err
	}
	defer func() { leave(err == nil) }()
	if p.snapshot != nil {
		sb, err = c.cold(context.WithoutCancel(ctx), p)
		return sb, kindCold, err
	}
	if sb, err = c.warmInTurn(ctx, p); !errors.Is(err, errNoSlot) {
		return sb, kindWarm, err
	}
	sb, err = c.cold(context.WithoutCancel(ctx), p)
	return sb, kindCold, err
}

func (c *Claimer) warmInTurn(ctx context.Context, p *plan) (store.Sandbox, error) {
	leave, err := c.queue.Enter(ctx, p.req.TeamID)
	if err != nil {
		return store.Sandbox{}, err
	}
	defer leave()
	return c.warm(context.WithoutCancel(ctx), p)
}

// earlier answers what a claim with this key has made before (A16). NotFound
// means that there was none. A claim is answered with a sandbox that serves: one
// that does not any more is a conflict, and a new key is what its owner needs.
func (c *Claimer) earlier(ctx context.Context, p *plan) (store.Sandbox, error) {
	sb, err := c.cfg.Store.ClaimByKey(ctx, p.req.TeamID, p.req.Key)
	switch {
	case err != nil:
		return store.Sandbox{}, err
	case !p.sameRequest(sb.RequestHash):
		return store.Sandbox{}, errdefs.New(errdefs.Unprocessable, "this Idempotency-Key was used for another request")
	case sb.Status == sandbox.Running && sb.DeletedAt == nil:
		return sb, nil
	case sb.Status == sandbox.Paused:
		return store.Sandbox{}, errdefs.New(errdefs.Conflict, "sandbox %s, which this Idempotency-Key has made, is paused", sb.ID)
	}
	return store.Sandbox{}, errdefs.New(errdefs.Conflict, "sandbox %s, which this Idempotency-Key has made, has ended", sb.ID)
}

var (
	errNoSlot     = errors.New("no free slot")
	errSlotLost   = errors.New("the slot was lost to another claim")
	errSlotFailed = errdefs.New(errdefs.Unavailable, "the sandbox could not be started").WithRetryAfter(throttledRetryAfter)
)

// warm takes free slots until a node agrees to one. A slot that failed may have
// been broken by itself; after a few, the node is.
func (c *Claimer) warm(ctx context.Context, p *plan) (store.Sandbox, error) {
	failures := 0
	for range warmAttempts {
		sb, err := c.attempt(ctx, p)
		if errors.Is(err, errSlotFailed) {
			failures++
		}
		if !errors.Is(err, errSlotLost) && (!errors.Is(err, errSlotFailed) || failures == warmFailures) {
			return sb, err
		}
	}
	return store.Sandbox{}, errNoSlot
}

// attempt claims one slot. The database connection is in hand before a slot is
// taken: while the database is away, claims must not use up the pool.
func (c *Claimer) attempt(ctx context.Context, p *plan) (store.Sandbox, error) {
	conn, err := c.reserve(ctx)
	if err != nil {
		return store.Sandbox{}, err
	}
	defer conn.Release()
	if len(p.req.Mounts) > 0 {
		return c.mounted(ctx, p, conn)
	}
	slot, ok := c.take(p)
	if !ok {
		return store.Sandbox{}, errNoSlot
	}
	return c.meet(ctx, c.half(p, slot.Node, slot.ID, slot.Generation), conn)
}

// meet has the node and the row meet. A row that somebody may look for, or that tells
// somebody, comes when the node has agreed.
func (c *Claimer) meet(ctx context.Context, h *half, conn *store.Reservation) (store.Sandbox, error) {
	if h.p.req.Key == "" && h.p.row.Webhook == nil {
		return c.both(ctx, h, conn)
	}
	if err := c.claimSlot(ctx, h); err != nil {
		return store.Sandbox{}, c.slotFailed(ctx, h, err)
	}
	sb, err := c.insert(ctx, h, conn)
	return c.settle(ctx, h, sb, err)
}

// take takes a free slot, of a pool's last ones no more than the team's share.
func (c *Claimer) take(p *plan) (placement.Slot, bool) {
	key := p.tmpl.PoolKey
	if !c.slots.May(key, p.req.TeamID, c.cfg.Table.Idle(key), int(p.tmpl.MinIdle)) {
		return placement.Slot{}, false
	}
	if len(p.req.Mounts) > 0 {
		return c.takeNear(p)
	}
	return c.cfg.Table.Take(key)
}

// both runs the halves at the same time.
func (c *Claimer) both(ctx context.Context, h *half, conn *store.Reservation) (store.Sandbox, error) {
	claimed := make(chan error, 1)
	go func() { claimed <- c.claimSlot(ctx, h) }()
	sb, rowErr := c.insert(ctx, h, conn)
	slotErr := <-claimed
	if slotErr != nil {
		if rowErr == nil || unknown(rowErr) {
			c.undoRow(ctx, h)
		}
		return store.Sandbox{}, c.slotFailed(ctx, h, slotErr)
	}
	return c.settle(ctx, h, sb, rowErr)
}

// settle ends a claim that the node has agreed to. A row of another claim with
// the same id is of one that the node has refused; any other failure gives the
// sandbox back.
func (c *Claimer) settle(ctx context.Context, h *half, sb store.Sandbox, err error) (store.Sandbox, error) {
	if errors.Is(err, store.ErrIDTaken) {
		sb, err = c.takeOver(ctx, h)
	}
	switch {
	case err == nil:
	case unknown(err) && h.row.IdempotencyKey != "":
		c.undo(ctx, h, "slot", c.deleteUnlessStored) // whoever repeats the key may find the row
	case unknown(err):
		c.undo(ctx, h, "row", c.removeRow)
		fallthrough
	default:
		c.undo(ctx, h, "slot", c.deleteAtNode)
	}
	return sb, err
}

func (c *Claimer) takeOver(ctx context.Context, h *half) (store.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, insertTimeout)
	defer cancel()
	sb, err := c.cfg.Store.TakeOver(ctx, h.row)
	if store.Unknown(err) {
		err = errUnknown{err}
	}
	return sb, err
}

func (c *Claimer) reserve(ctx context.Context) (*store.Reservation, error) {
	defer c.cfg.Metrics.phase("reserve", time.Now())
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	return c.cfg.Store.Reserve(ctx)
}

// insert writes the row over the reserved connection and gives that back: whoever
// waits for one connection with another in hand may wait for itself. While the
// outcome is unknown it writes again, over any connection (G07, X36).
func (c *Claimer) insert(ctx context.Context, h *half, conn *store.Reservation) (store.Sandbox, error) {
	defer c.cfg.Metrics.phase("store", time.Now())
	ctx, cancel := context.WithTimeout(ctx, insertTimeout)
	defer cancel()
	sb, err := conn.InsertSandbox(ctx, h.row)
	conn.Release()
	maybe := store.Unknown(err)
	for errdefs.Is(err, errdefs.Unavailable) {
		select {
		case <-time.After(repeatPause):
		case <-ctx.Done():
			if maybe {
				err = errUnknown{err}
			}
			return store.Sandbox{}, err
		}
		sb, err = c.cfg.Store.InsertSandbox(ctx, h.row)
		maybe = maybe || store.Unknown(err)
	}
	return sb, err
}

// errUnknown marks a row that may or may not be there.
type errUnknown struct{ error }

func (e errUnknown) Unwrap() error { return e.error }

func unknown(err error) bool {
	_, is := errors.AsType[errUnknown](err)
	return is
}

// slotFailed undoes what the node may have done and says what the claim does next.
func (c *Claimer) slotFailed(ctx context.Context, h *half, err error) error {
	if slotTaken(err) {
		return errSlotLost
	}
	c.cfg.Log.Warn("a node failed a claim", "node", h.node, "sandbox", h.row.ID, "gen", h.row.Generation, "err", err)
	c.undo(ctx, h, "slot", c.deleteAtNode)
	if refused := volumes.Refused(err); refused != nil {
		return refused
	}
	return errSlotFailed
}

// cold starts a sandbox on the first node that has room, then writes its row.
func (c *Claimer) cold(ctx context.Context, p *plan) (store.Sandbox, error) {
	conn, err := c.reserve(ctx) // to know that the database is there; a start takes too long to hold it
	if err != nil {
		return store.Sandbox{}, err
	}
	conn.Release()
	if err := c.find(ctx, p); err != nil {
		return store.Sandbox{}, err
	}
	h, err := c.startAnywhere(ctx, p)
	if err != nil {
		return store.Sandbox{}, err
	}
	sb := store.Sandbox{}
	if conn, err = c.reserve(ctx); err == nil {
		sb, err = c.insert(ctx, h, conn)
	}
	if sb, err = c.settle(ctx, h, sb, err); err != nil {
		c.undoVolumes(ctx, h)
	}
	return sb, err
}

func (c *Claimer) startAnywhere(ctx context.Context, p *plan) (*half, error) {
	if p.snapshot != nil {
		return c.startWithSnapshot(ctx, p)
	}
	refused := c.withoutVolumes(p)
	for tried := 0; ; tried++ {
		node, ok := c.cfg.Table.ColdNode(p.tmpl.Slot.RuntimeClass, refused)
		switch {
		case ok:
		case tried == 0:
			return nil, errdefs.New(errdefs.Unavailable, "no node is available").WithRetryAfter(throttledRetryAfter)
		default:
			return nil, errdefs.WithCode(errdefs.Exhausted, throttled, "too many sandboxes are starting").WithRetryAfter(throttledRetryAfter)
		}
		h, err := c.start(ctx, p, node)
		if !errdefs.Is(err, errdefs.Exhausted) {
			return h, err
		}
		refused[node] = true
	}
}

// half is one claim's meeting of a row and a slot.
type half struct {
	p    *plan
	node string
	row  store.NewSandbox

	mounts []*nodeapi.Mount // what the node is told of its volumes
}

func (c *Claimer) half(p *plan, node string, id sandbox.ID, gen sandbox.Generation) *half {
	h := &half{p: p, row: p.row}
	h.row.ClaimID = uuid.New() // each attempt is a claim of its own to the node
	h.at(node, id, gen)
	return h
}

// at says where the two meet.
func (h *half) at(node string, id sandbox.ID, gen sandbox.Generation) {
	h.node, h.row.Node, h.row.ID, h.row.Generation = node, node, id, gen
}
