// Package events brings what happens in sandboxes into the store, and wakes those
// who wait for it.
//
// What happens *to* a sandbox the store writes by itself, with the change of its
// row. What happens *in* it, its node tells: for each node the [Feed] takes
// batches, stores them and acknowledges. What could not be stored is handed out
// again, to this replica or another, and an event's id makes storing it twice
// harmless. A batch is a node's word about whose sandbox it is, which the row must
// confirm, and a sandbox's word about everything else: it is checked again here,
// where it becomes a row.
//
// What a sandbox sends, its node's network daemon records; the Feed takes those records
// one batch after another and stores them as events of the sandbox, too.
//
// The Feed owns two goroutines for each node and the listener for the database's
// hints while [Feed.Run] runs. It keeps nothing but who waits.
package events

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/nodes"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

const (
	takeWait    = 10 * time.Second         // a node answers at once when there is something
	takeTimeout = takeWait + 5*time.Second // of one call
	ackTimeout  = 5 * time.Second          // of one call
	firstPause  = 100 * time.Millisecond   // after a node that did not answer
	longest     = 5 * time.Second          // of such pauses
	storePause  = 500 * time.Millisecond   // after a database that did not
	listenPause = time.Second              // before hints are listened for again
	maxBatch    = 64                       // events of one batch; a node sends less
	timeSlack   = 2 * time.Hour            // between an event's time and ours
)

// Config names what a Feed works with. Every field is required.
type Config struct {
	Store   *store.Store
	Nodes   *nodes.Set
	Changed func() // called when webhooks may have something to deliver; must not block
	Log     *slog.Logger
}

// Feed is safe for concurrent use.
type Feed struct {
	cfg   Config
	found chan string // nodes to follow

	mu      sync.Mutex
	waiters map[sandbox.ID]map[chan struct{}]bool
}

// New makes a Feed.
func New(cfg Config) *Feed {
	return &Feed{cfg: cfg, found: make(chan string, 64), waiters: map[sandbox.ID]map[chan struct{}]bool{}}
}

// Follow makes the Feed take a node's events from now on. It never blocks: a node
// that finds no place is named again when it is connected again.
func (f *Feed) Follow(node string) {
	select {
	case f.found <- node:
	default:
	}
}

// Run follows until ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { f.listen(ctx) })
	followed := map[string]bool{}
	for {
		select {
		case node := <-f.found:
			if !followed[node] {
				followed[node] = true
				work.Go(func() { f.follow(ctx, node) })
				work.Go(func() { f.followFlows(ctx, node) })
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *Feed) follow(ctx context.Context, node string) {
	pause := firstPause
	for ctx.Err() == nil {
		err := f.takeOnce(ctx, node)
		if err == nil {
			pause = firstPause
			continue
		}
		f.cfg.Log.Debug("could not take a node's events", "node", node, "err", err, "retry_in", pause)
		sleep(ctx, pause)
		pause = min(2*pause, longest)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// takeOnce takes what a node has, stores it, and says what is stored.
func (f *Feed) takeOnce(ctx context.Context, node string) error {
	rpc, err := f.cfg.Nodes.RPC(node)
	if err != nil {
		return err
	}
	batches, err := take(ctx, rpc)
	if err != nil || len(batches) == 0 {
		return err
	}
	ack := &nodeapi.AckEventsRequest{}
	away := false
	for _, b := range batches {
		stored, unavailable := f.storeBatch(ctx, node, b)
		if stored {
			ack.Stored = append(ack.Stored, b.GetLease())
		} else {
			ack.Again = append(ack.Again, b.GetLease())
		}
		away = away || unavailable
	}
	ackCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
	defer cancel()
	_, err = rpc.AckEvents(ackCtx, ack)
	if away {
		sleep(ctx, storePause)
	}
	return err
}

func take(ctx context.Context, rpc nodeapiconnect.NodeClient) ([]*nodeapi.SandboxEvents, error) {
	ctx, cancel := context.WithTimeout(ctx, takeTimeout)
	defer cancel()
	resp, err := rpc.TakeEvents(ctx, &nodeapi.TakeEventsRequest{WaitMillis: uint32(takeWait.Milliseconds())})
	return resp.GetBatches(), err
}

// storeBatch reports whether a batch is done with: it is stored, or it is nothing
// that can ever be. One whose claim has no row yet comes again; its node forgets
// it when the sandbox never gets one.
func (f *Feed) storeBatch(ctx context.Context, node string, b *nodeapi.SandboxEvents) (done, away bool) {
	log := f.cfg.Log.With("sandbox", b.GetSandbox(), "gen", b.GetGeneration(), "node", node)
	id, err := sandbox.ParseID(b.GetSandbox())
	claim, claimErr := uuid.Parse(b.GetClaimId())
	if err != nil || claimErr != nil {
		log.Warn("dropped events of a sandbox whose name makes no sense")
		return true, false
	}
	list := check(b.GetEvents(), time.Now())
	if dropped := len(b.GetEvents()) - len(list); dropped > 0 {
		log.Warn("dropped events that make no sense", "count", dropped)
	}
	if len(list) == 0 {
		return true, false
	}
	err = f.cfg.Store.AddEvents(ctx, id, claim, list)
	switch {
	case err == nil:
		return true, false
	case errdefs.Is(err, errdefs.NotFound):
		return false, false
	case errdefs.Is(err, errdefs.Unavailable) || ctx.Err() != nil:
		return false, true
	}
	log.Error("dropped events that could not be stored", "count", len(list), "err", err)
	return true, false
}

var (
	idPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

	// reservedIDs are of events that no sandbox tells: one that did could keep its
	// own end from being told.
	reservedIDs = "evt_sandbox_"
)

// check keeps what may become a row.
func check(events []*nodeapi.SandboxEvent, now time.Time) []store.NewEvent {
	var list []store.NewEvent
	for _, e := range events[:min(len(events), maxBatch)] {
		k, known := kinds[e.GetType()]
		payload := bytes.ToValidUTF8(e.GetPayload(), []byte("\uFFFD"))
		if !known || k.source != store.SourceProcd || !idPattern.MatchString(e.GetId()) || strings.HasPrefix(e.GetId(), reservedIDs) ||
			len(payload) > 2*procapi.MaxEventBytes || !json.Valid(payload) {
			continue
		}
		at := time.Unix(0, e.GetUnixNano())
		if d := now.Sub(at); d > timeSlack || d < -timeSlack {
			at = now
		}
		list = append(list, store.NewEvent{EventID: e.GetId(), Type: e.GetType(), Payload: string(payload), OccurredAt: at})
	}
	return list
}

// listen passes on the database's hints until ctx ends.
func (f *Feed) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.cfg.Store.ListenEvents(ctx, f.hint)
		if ctx.Err() != nil {
			return
		}
		f.cfg.Log.Warn("lost the database's hints about events", "err", err)
		sleep(ctx, listenPause)
	}
}

// hint wakes who waits for a sandbox's events; "" stands for any sandbox.
func (f *Feed) hint(id sandbox.ID) {
	f.cfg.Changed()
	f.mu.Lock()
	defer f.mu.Unlock()
	if id != "" {
		wake(f.waiters[id])
		return
	}
	for _, w := range f.waiters {
		wake(w)
	}
}

func wake(waiters map[chan struct{}]bool) {
	for c := range waiters {
		select {
		case c <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// Watch gives a channel that receives a value when a sandbox may have new events.
// It is a hint: of some events there is none, and a watcher looks now and then.
func (f *Feed) Watch(id sandbox.ID) (changed <-chan struct{}, cancel func()) {
	c := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiters[id] == nil {
		f.waiters[id] = map[chan struct{}]bool{}
	}
	f.waiters[id][c] = true
	return c, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if delete(f.waiters[id], c); len(f.waiters[id]) == 0 {
			delete(f.waiters, id)
		}
	}
}
