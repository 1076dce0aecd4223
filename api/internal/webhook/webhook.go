// Package webhook tells tenants' receivers what happens to their sandboxes.
//
// The store's events are the outbox. Any number of replicas deliver: each takes
// the lease of one sandbox's webhook at a time, tells its receiver the pending
// events in their order, records what came of each, and gives the lease back. A
// replica that dies loses its leases, and another sends again what was not
// recorded:
//
//   - Every stored event is sent at least once, or parked with a reason after
//     Attempts attempts. A receiver tells repetitions by the event's id.
//   - Events of one sandbox are sent in their order, one at a time, each when the
//     one before it was delivered or parked. Sandboxes don't wait for each other.
//   - A receiver that is slow or away uses up its own share: attempts at a time
//     are bounded for each destination, each team, and all together.
//
// Where it may connect to is [Policy]'s to say, looked at when it connects. The
// package owns the goroutines that deliver; it changes nothing of an event but
// its delivery, and no secret leaves it but as a signature.
package webhook

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"s0.run/api/internal/store"
)

// Attempts is how often an event is tried: once, and three times again.
const Attempts = 4

const (
	firstBackoff = 500 * time.Millisecond // before the second attempt; each next one waits twice as long

	// leaseTime is within how long the events of a dead replica go on. A holder
	// begins no attempt in its second half, so that none outlasts it.
	leaseTime = 30 * time.Second
	batch     = 32 // events of one lease

	perAll, perTeam, perDestination = 256, 16, 4

	// idleLook is how soon an event is seen that nobody told of; busyLook how
	// soon after all places were taken.
	idleLook, busyLook = 5 * time.Second, 100 * time.Millisecond
	recordTimeout      = 5 * time.Second
)

// Config names what a Dispatcher works with. The zero Lease means the default.
type Config struct {
	Store   *store.Store
	Policy  Policy
	Metrics prometheus.Registerer
	Log     *slog.Logger

	Lease time.Duration // tests shorten it
}

// Dispatcher delivers. It is safe for concurrent use.
type Dispatcher struct {
	cfg      Config
	sender   *sender
	kick     chan struct{}
	attempts *prometheus.CounterVec

	mu    sync.Mutex
	all   int
	teams map[uuid.UUID]int
	dests map[string]int
}

// New makes a Dispatcher and registers its metrics.
func New(cfg Config) *Dispatcher {
	if cfg.Lease == 0 {
		cfg.Lease = leaseTime
	}
	d := &Dispatcher{
		cfg: cfg, sender: newSender(cfg.Policy), kick: make(chan struct{}, 1), teams: map[uuid.UUID]int{}, dests: map[string]int{},
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "s0_api_webhook_attempts_total", Help: "Attempts to tell a webhook an event, by what came of them: delivered, failed, parked.",
		}, []string{"result"}),
	}
	cfg.Metrics.MustRegister(d.attempts)
	return d
}

// Kick says that there may be something to deliver. It never blocks.
func (d *Dispatcher) Kick() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// Run delivers until ctx ends.
func (d *Dispatcher) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	for ctx.Err() == nil {
		pause := d.takeAll(ctx, &work)
		select {
		case <-time.After(pause):
		case <-d.kick:
		case <-ctx.Done():
		}
	}
	return nil
}

// takeAll starts the delivery of every webhook that is due and has a place. It
// returns when to look again.
func (d *Dispatcher) takeAll(ctx context.Context, work *sync.WaitGroup) time.Duration {
	for {
		free, teams, dests := d.saturated()
		if !free {
			return busyLook
		}
		// Not ended by ctx: a lease whose answer nobody heard would last for its time.
		l, ok, err := d.cfg.Store.LeaseWebhook(context.WithoutCancel(ctx), d.cfg.Lease, teams, dests)
		if err != nil {
			if ctx.Err() == nil {
				d.cfg.Log.Warn("could not look for webhooks to deliver to", "err", err)
			}
			return idleLook
		}
		if !ok {
			return d.pause(ctx, len(teams)+len(dests) > 0)
		}
		d.enter(l)
		work.Go(func() {
			defer d.leave(l)
			d.deliver(ctx, l)
		})
	}
}

// pause is until the next webhook is due, as far as is known.
func (d *Dispatcher) pause(ctx context.Context, busy bool) time.Duration {
	next, ok, err := d.cfg.Store.NextWebhook(ctx)
	switch {
	case err != nil || !ok:
		return idleLook
	case busy: // what is due may have no place yet
		return max(busyLook, min(next, idleLook))
	}
	return max(time.Millisecond, min(next, idleLook))
}

// saturated says whether another attempt has a place at all, and who has none.
func (d *Dispatcher) saturated() (free bool, teams []uuid.UUID, dests []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	teams, dests = []uuid.UUID{}, []string{}
	for t, n := range d.teams {
		if n >= perTeam {
			teams = append(teams, t)
		}
	}
	for dest, n := range d.dests {
		if n >= perDestination {
			dests = append(dests, dest)
		}
	}
	return d.all < perAll, teams, dests
}

func (d *Dispatcher) enter(l store.WebhookLease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all++
	d.teams[l.TeamID]++
	d.dests[l.Destination]++
}

func (d *Dispatcher) leave(l store.WebhookLease) {
	d.mu.Lock()
	d.all--
	if d.teams[l.TeamID]--; d.teams[l.TeamID] == 0 {
		delete(d.teams, l.TeamID)
	}
	if d.dests[l.Destination]--; d.dests[l.Destination] == 0 {
		delete(d.dests, l.Destination)
	}
	d.mu.Unlock()
	d.Kick()
}

// deliver uses a lease and gives it back. What could not be recorded is sent
// again when the lease is over.
func (d *Dispatcher) deliver(ctx context.Context, l store.WebhookLease) {
	log := d.cfg.Log.With("sandbox", l.SandboxID, "team", l.TeamID)
	again, err := d.deliverPending(ctx, l, log)
	switch {
	case err != nil && ctx.Err() == nil:
		log.Warn("a webhook's events wait for the end of its lease", "err", err)
		return
	case err != nil: // this replica stops: others may go on at once
		again = new(time.Duration)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := d.cfg.Store.ReleaseWebhook(ctx, l, again); err != nil {
		log.Warn("could not give back a webhook's lease", "err", err)
	}
}

// deliverPending sends events until one has to be tried again, there is none, or
// the lease is used up. It returns when to go on; nil is when there are new ones.
func (d *Dispatcher) deliverPending(ctx context.Context, l store.WebhookLease, log *slog.Logger) (again *time.Duration, err error) {
	began := time.Now()
	list, err := d.cfg.Store.PendingEvents(ctx, l.SandboxID, batch)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if ctx.Err() != nil || time.Since(began) > d.cfg.Lease/2 {
			return new(time.Duration), nil
		}
		state, err := d.attempt(ctx, l, e, log)
		if err != nil {
			return nil, err
		}
		if state == store.Pending {
			pause := backoff(e.Attempts + 1)
			return &pause, nil
		}
	}
	if len(list) == batch {
		return new(time.Duration), nil // there may be more
	}
	return nil, nil
}

// attempt sends an event once and records what came of it.
func (d *Dispatcher) attempt(ctx context.Context, l store.WebhookLease, e store.Event, log *slog.Logger) (store.Delivery, error) {
	ok, outcome := d.sender.send(ctx, l, e)
	if !ok && ctx.Err() != nil {
		return store.Pending, ctx.Err() // it was us
	}
	state, result := store.Delivered, "delivered"
	if !ok {
		state, result = store.Pending, "failed"
		if e.Attempts+1 >= Attempts {
			state, result = store.Parked, "parked"
			log.Warn("gave up telling a webhook an event", "event", e.EventID, "type", e.Type, "outcome", outcome)
		}
	}
	d.attempts.WithLabelValues(result).Inc()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	return state, d.cfg.Store.RecordAttempt(ctx, e.Seq, state, outcome)
}

// backoff is the pause after so many attempts that failed.
func backoff(failed int) time.Duration { return firstBackoff << (failed - 1) }
