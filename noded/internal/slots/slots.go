// Package slots keeps the node's pools full.
//
// It looks whenever something may have changed (new pools, a claim, an exit, a
// warm-up's end), compares what the pools should have with what package
// lifecycle says there is, and warms or drains the difference: a plan from a
// picture, with no memory of steps. The slots of a replaced spec end as those of
// the new one become free. One goroutine ([Pools.Run]) owns the pools'
// state. Warm-ups are few at a time and wait for a moment without claims; one that
// only waits for its warm processes is not counted. A pool whose warm-ups fail, or
// whose free slots end by themselves, is tried ever more seldom. The package never touches a
// sandbox that is not free.
package slots

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/events"
	"s0.run/noded/internal/images"
	"s0.run/noded/internal/lifecycle"
)

const (
	// settle is how long it must have been quiet before a look, lateLook how long
	// a look may be put off: a burst of claims is served before its refill.
	settle, lateLook = 10 * time.Millisecond, 250 * time.Millisecond
	// A pool that fails is retried from the first pause to the longest.
	firstRetry, lastRetry = 500 * time.Millisecond, time.Minute
	// calm is how long a pool must not have lost a free slot until a warm-up that
	// succeeds proves that all is well again.
	calm = 5 * time.Minute
	// pullTimeout bounds one attempt to get an image.
	pullTimeout = 15 * time.Minute
	// progressInterval is how often it is told how far a pull is.
	progressInterval = time.Second
	// rollback is how long the free slots of a replaced spec may wait for it to come
	// back, and a restart of the node for its pools.
	rollback = 10 * time.Minute
	// pulls is how many pools fetch their images at a time; half as many of one team.
	pulls = 4
	// maxPools and maxSlots bound what a node is asked to keep.
	maxPools, maxSlots = 1000, 10000
)

// Lifecycle makes and ends slots; package lifecycle has the contract.
type Lifecycle interface {
	Create(ctx context.Context, poolKey string, spec sandbox.Spec, started func()) error
	Drain(ctx context.Context, id sandbox.ID)
	Slots() []lifecycle.Slot
	Changed() <-chan struct{}
	Losses() <-chan lifecycle.Loss
}

// Images gets a pool's image before the pool's first slot.
type Images interface {
	lifecycle.Images
	// Has tells whether Ensure would return without a pull.
	Has(ctx context.Context, ref string) bool
	// Progress says to a person how far a pull under way is; empty: there is none.
	Progress(ref string) string
}

// Config wires Pools. Every field is required.
type Config struct {
	Lifecycle Lifecycle
	Images    Images
	Warmups   int // at a time
	Hub       *events.Hub
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

// Pools is safe for concurrent use.
type Pools struct {
	cfg     Config
	results chan func()   // of work in the background, to be run by Run
	kick    chan struct{} // holds a value when want has changed
	slots   *prometheus.GaugeVec
	warmups *prometheus.CounterVec

	mu   sync.Mutex
	want []Pool

	// The rest belongs to Run.
	pools   map[string]*pool // nil until they were first set
	told    map[string]*nodeapi.PoolStatus
	warming int            // starts under way
	pulling int            // images being fetched
	pullsOf map[string]int // of them, by team
}

// pool is a wanted pool.
type pool struct {
	Pool
	hash      string
	since     time.Time // it is wanted
	ready     bool      // it had its least at the last look
	turned    time.Time // when that changed
	hasImage  bool
	lacks     bool // it was looked for and is not on the node
	getting   bool // it is being looked for, or fetched
	inFlight  int  // creations under way
	failures  int  // in a row
	retryAt   time.Time
	lastLoss  time.Time // when a free slot ended by itself
	lastError error
	taken     int // at the last look, or unknown
	demand    []time.Time
}

// New makes pools that want nothing.
func New(cfg Config) *Pools {
	p := &Pools{
		cfg: cfg, results: make(chan func()), kick: make(chan struct{}, 1),
		slots: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "s0_node_pool_slots", Help: "Slots by pool and state (idle, warming, claimed).",
		}, []string{"pool", "state"}),
		warmups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "s0_node_warmups_total", Help: "Warm-ups by result (ok, failed).",
		}, []string{"result"}),
		told: map[string]*nodeapi.PoolStatus{}, pullsOf: map[string]int{},
	}
	cfg.Metrics.MustRegister(p.slots, p.warmups)
	return p
}

// A Refusal says why the node does not keep a pool.
type Refusal struct {
	Key, Reason string
}

// Set declares all pools that the node shall keep; those not named drain. One
// that can't be kept is refused by itself, for it is somebody's and the others
// are others'; what the node had under its key stays.
func (p *Pools) Set(pools []Pool) []Refusal {
	var refused []Refusal
	want, seen := make([]Pool, 0, min(len(pools), maxPools)), map[string]bool{}
	p.mu.Lock()
	had := map[string]Pool{}
	for _, old := range p.want {
		had[old.Key] = old
	}
	for _, w := range pools {
		reason := refuse(w)
		switch {
		case seen[w.Key]:
			reason = "it is named twice"
		case reason == "" && len(want) == maxPools:
			reason = fmt.Sprintf("the node keeps no more than %d pools", maxPools)
		}
		if reason != "" {
			refused = append(refused, Refusal{Key: w.Key, Reason: reason})
			old, ok := had[w.Key]
			if !ok || seen[w.Key] || len(want) == maxPools {
				continue
			}
			w = old
		}
		seen[w.Key] = true
		want = append(want, w)
	}
	p.want = want
	p.mu.Unlock()
	select {
	case p.kick <- struct{}{}:
	default:
	}
	return refused
}

// Wanted lists the images of the pools; ok is false until pools were first set.
func (p *Pools) Wanted() (refs []string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.want {
		refs = append(refs, w.Spec.Image)
	}
	return refs, p.want != nil
}

// refuse says why a pool can't be kept, if it can't.
func refuse(w Pool) string {
	switch {
	case w.Key == "":
		return "key is required"
	case w.Min < 0 || w.Max < w.Min || w.Max > maxSlots:
		return fmt.Sprintf("%d to %d slots: want 0 ≤ min ≤ max ≤ %d", w.Min, w.Max, maxSlots)
	}
	if err := w.Spec.Validate(); err != nil {
		return err.Error()
	}
	return ""
}

// Run keeps the pools until ctx ends, and returns when its warm-ups have ended.
// Until pools are first set it leaves everything as it is: after a restart the
// free slots are somebody's who just has not said so yet.
func (p *Pools) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var changedAt time.Time // when the first change was told that no look has seen
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			changedAt = time.Time{}
			if p.pools != nil {
				timer.Reset(p.look(ctx, &work, time.Now()))
			}
			continue
		case <-p.cfg.Lifecycle.Changed():
		case loss := <-p.cfg.Lifecycle.Losses():
			p.lost(loss, time.Now())
		case apply := <-p.results:
			apply()
		case <-p.kick:
			p.adopt()
		}
		if changedAt.IsZero() {
			changedAt = time.Now()
		}
		timer.Reset(min(settle, time.Until(changedAt.Add(lateLook))))
	}
}

// adopt makes the wanted pools the pools. What is known of one stays; a new version
// of one meets the demand that the old one had.
func (p *Pools) adopt() {
	p.mu.Lock()
	want := p.want
	p.mu.Unlock()
	next := make(map[string]*pool, len(want))
	for _, w := range want {
		old, hash := p.pools[w.Key], w.Spec.Hash()
		if old == nil || old.hash != hash {
			old = &pool{hash: hash, taken: unknown, since: time.Now(), turned: time.Now(), demand: p.demandOf(nodeapi.PoolFamily(w.Key))}
		}
		old.Pool = w
		next[w.Key] = old
	}
	p.pools = next
}

// demandOf is what was asked lately of the pools of a family.
func (p *Pools) demandOf(family string) (demand []time.Time) {
	if family == "" {
		return nil
	}
	for key, old := range p.pools {
		if nodeapi.PoolFamily(key) == family {
			demand = append(demand, old.demand...)
		}
	}
	slices.SortFunc(demand, time.Time.Compare)
	return demand
}

// look does what is to be done now and returns when to look again at the latest.
func (p *Pools) look(ctx context.Context, work *sync.WaitGroup, now time.Time) time.Duration {
	byKey, stale := count(p.pools, p.cfg.Lifecycle.Slots())
	for key, w := range p.pools {
		c := byKey[key]
		if c == nil {
			c = &counts{}
		}
		w.claimed(c.taken, now)
		w.turn(len(c.idle), now)
	}
	p.tell(byKey)
	for _, id := range append(drains(p.pools, byKey, stale, now), surplus(p.pools, byKey, now)...) {
		p.cfg.Lifecycle.Drain(ctx, id)
	}
	next := demandWindow
	if p.pulling > 0 {
		next = progressInterval
	}
	for _, n := range needs(p.pools, byKey, now) {
		if wait := n.pool.retryAt.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		p.supply(ctx, work, n.pool)
	}
	return next
}

// supply starts what the pool needs next, if there is room for it.
func (p *Pools) supply(ctx context.Context, work *sync.WaitGroup, w *pool) {
	switch {
	case w.hasImage && p.warming < p.cfg.Warmups:
		p.warm(ctx, work, w)
	case !w.hasImage && !w.getting && !w.lacks:
		p.findImage(ctx, work, w)
	case !w.hasImage && !w.getting && p.pulling < pulls && (w.Team == "" || p.pullsOf[w.Team] < pulls/2):
		p.getImage(ctx, work, w)
	}
}

// findImage looks whether the image is there: then the pool need not wait for
// those that fetch theirs.
func (p *Pools) findImage(ctx context.Context, work *sync.WaitGroup, w *pool) {
	w.getting = true
	has := false
	p.do(ctx, work, func() error { has = p.cfg.Images.Has(ctx, w.Spec.Image); return nil }, func(error) {
		w.getting, w.hasImage, w.lacks = false, has, !has
	})
}

func (p *Pools) getImage(ctx context.Context, work *sync.WaitGroup, w *pool) {
	team := w.Team
	p.pulling++
	p.pullsOf[team]++
	w.getting = true
	p.do(ctx, work, func() error { return p.pull(images.ForTeam(ctx, team), w.Spec.Image) }, func(err error) {
		p.pulling--
		if p.pullsOf[team]--; p.pullsOf[team] == 0 {
			delete(p.pullsOf, team)
		}
		w.getting = false
		if w.hasImage = err == nil; err != nil {
			w.note(err, time.Now()) // only a slot proves that all is well again
		}
	})
}

// warm warms a slot. Its place among the warm-ups is free again when it has started:
// while it waits for its warm processes, other pools must not.
func (p *Pools) warm(ctx context.Context, work *sync.WaitGroup, w *pool) {
	p.warming++
	w.inFlight++
	leave := sync.OnceFunc(func() { p.warming-- })
	started := func() { p.tellRun(ctx, leave) }
	p.do(ctx, work, func() error { return p.cfg.Lifecycle.Create(ctx, w.Key, w.Spec, started) }, func(err error) {
		leave()
		w.inFlight--
		p.warmups.WithLabelValues(result(err)).Inc()
		w.note(err, time.Now())
	})
}

// lost notes that a free slot has ended by itself.
func (p *Pools) lost(loss lifecycle.Loss, now time.Time) {
	w := p.pools[loss.PoolKey]
	if w == nil || w.hash != loss.SpecHash {
		return
	}
	w.lastLoss = now
	if now.After(w.retryAt) { // many that end at once are one failure
		w.note(loss.Err, now)
	}
}

// do works in the background; done runs in Run, unless that has ended.
func (p *Pools) do(ctx context.Context, work *sync.WaitGroup, f func() error, done func(error)) {
	work.Go(func() {
		err := f()
		if err != nil && ctx.Err() == nil {
			p.cfg.Log.Warn("pool is short of slots", "error", err)
		}
		p.tellRun(ctx, func() { done(err) })
	})
}

// tellRun has Run call f, unless it has ended.
func (p *Pools) tellRun(ctx context.Context, f func()) {
	select {
	case p.results <- f:
	case <-ctx.Done():
	}
}

func (p *Pools) pull(ctx context.Context, image string) error {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	if _, err := p.cfg.Images.Ensure(ctx, image); err != nil {
		return fmt.Errorf("image %s: %w", image, err)
	}
	return nil
}

// note remembers how an attempt for the pool went. After a failure the image is
// asked for again: it may be what is missing.
func (w *pool) note(err error, now time.Time) {
	if err == nil {
		w.lastError = nil
		if now.Sub(w.lastLoss) >= calm {
			w.failures, w.retryAt = 0, time.Time{}
		}
		return
	}
	pause := min(firstRetry<<min(w.failures, 16), lastRetry)
	w.failures++
	w.retryAt = now.Add(pause/2 + rand.N(pause)) // not all pools at once after an outage
	w.lastError = err
	w.hasImage, w.lacks = false, false
}

func result(err error) string {
	if err != nil {
		return "failed"
	}
	return "ok"
}
