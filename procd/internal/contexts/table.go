package contexts

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/reap"
)

const (
	// cleanupInterval is the contract's: how often idle and ttl limits are looked at.
	cleanupInterval = 30 * time.Second

	// Of ended contexts the newest are kept, within both bounds.
	maxFinished      = 256
	maxFinishedBytes = 16 << 20

	// killTime is how long a deletion waits for processes to be gone. They are
	// killed in any case.
	killTime = 2 * time.Second
)

// Config of a table. All fields but Observe and Follow are required.
type Config struct {
	Reaper    *reap.Reaper
	Workspace string           // where processes start unless told otherwise
	Env       []string         // "name=value": what every process sees, under all else
	Now       func() time.Time // decides about idle and ttl limits

	// Observe, if it is set, is told of every start and end of a process, with an
	// event's type and payload. It must not block.
	Observe func(eventType string, payload any)

	// Follow, if it is set, is told of every process before it can be asked for.
	// run is called on a goroutine of the table's; it returns after the log's end.
	Follow func(contextID string, pid int, log *proc.Log) (run func())
}

// Table holds the contexts. Its methods are safe for concurrent use.
type Table struct {
	cfg  Config
	base map[string]string // from cfg.Env
	kick chan struct{}     // a context with a limit was made

	work sync.WaitGroup // goroutines beyond a call
	ends atomic.Uint64  // processes that have ended

	mu      sync.Mutex
	entries map[string]*entry
	made    uint64            // contexts so far
	live    int               // started or starting, and not known to have ended
	env     map[string]string // base with the sandbox's own over it
}

// New returns an empty table.
func New(cfg Config) *Table {
	base := parseEnv(cfg.Env)
	return &Table{cfg: cfg, base: base, env: base, kick: make(chan struct{}, 1), entries: map[string]*entry{}}
}

// Run deletes contexts whose time is up until ctx ends, and then all of them.
func (t *Table) Run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-t.kick: // until then there is nothing to look at
		case <-ctx.Done():
		}
		t.watch(ctx)
	}
	for _, c := range t.List().Contexts {
		_ = t.Delete(c.ID)
	}
	t.work.Wait()
}

// watch sweeps while any context has a limit.
func (t *Table) watch(ctx context.Context) {
	ticker := time.NewTicker(cleanupInterval)
	defer ticker.Stop()
	for ctx.Err() == nil && t.sweep() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// sweep deletes what is overdue and tells whether more may become so.
func (t *Table) sweep() (more bool) {
	now := t.cfg.Now()
	for _, e := range t.list() {
		switch {
		case e.overdue(now):
			_ = t.Delete(e.id)
		case e.limited():
			more = true
		}
	}
	return more
}

// SetEnv replaces the sandbox's own environment, for processes that start from
// now on.
func (t *Table) SetEnv(env map[string]string) error {
	if err := checkEnv(env); err != nil {
		return err
	}
	merged := maps.Clone(t.base)
	maps.Copy(merged, env)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.env = merged // replaced, never changed: readers hold the old one
	return nil
}

func (t *Table) environment() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.env
}

// list returns the entries, oldest first.
func (t *Table) list() []*entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.entries), func(a, b *entry) int {
		return cmp.Compare(a.number, b.number)
	})
}

func (t *Table) get(id string) (*entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[id]; e != nil {
		return e, nil
	}
	return nil, notFound(id)
}

// use returns the context's process, which must not have ended.
func (t *Table) use(id string) (*Live, error) {
	e, err := t.get(id)
	if err != nil {
		return nil, err
	}
	live := e.use(t.cfg.Now())
	if live.ended() {
		return nil, finished(id)
	}
	return live, nil
}

// Create starts a context. With wait_until_done it answers when the command has
// ended, or the REPL has dealt with its input.
func (t *Table) Create(ctx context.Context, req procapi.CreateContext) (procapi.Context, error) {
	if e := t.takeFresh(req); e != nil {
		return e.describe(), nil
	}
	e, live, err := t.start(req, false)
	if err != nil {
		return procapi.Context{}, err
	}
	res, err := t.begin(ctx, e, live)
	if err != nil {
		return procapi.Context{}, failed(e.id, "create_failed", err)
	}
	c := e.describe()
	if res != nil {
		c.OutputRaw, c.Stdout, c.Stderr, c.Truncated = &res.OutputRaw, res.Stdout, res.Stderr, res.Truncated
	}
	return c, nil
}

// start starts a context; warm tells that no tenant has asked for it.
func (t *Table) start(req procapi.CreateContext, warm bool) (*entry, *Live, error) {
	p, err := newPlan(req, t.cfg.Workspace)
	if err != nil {
		return nil, nil, err
	}
	if err := t.reserve(); err != nil {
		return nil, nil, err
	}
	live, err := p.start(t.cfg.Reaper, t.environment())
	if err != nil {
		t.release()
		return nil, nil, err
	}
	now := t.cfg.Now()
	e := &entry{plan: p, created: now, used: now, live: live, warm: warm, fresh: warm && p.req.Type == typeREPL}
	t.add(e, live)
	return e, live, nil
}

// begin does what the request asks for beyond the start.
func (t *Table) begin(ctx context.Context, e *entry, live *Live) (*procapi.ExecResult, error) {
	input := ""
	if e.plan.req.REPL != nil {
		input = e.plan.req.REPL.Input
	}
	if !e.plan.req.WaitUntilDone {
		if input != "" { // a process that ends ends this, too
			t.work.Go(func() { _, _ = live.Session.Exec(context.WithoutCancel(ctx), input) })
		}
		return nil, nil
	}
	var res procapi.ExecResult
	var err error
	switch {
	case live.Session == nil:
		res, err = live.awaitEnd(ctx, 0)
	case input != "":
		res, err = live.exec(ctx, input)
	default:
		err = live.Session.WaitReady(ctx)
	}
	if live.Session != nil && live.ended() {
		err = nil // its exit code says it
	}
	return &res, err
}

// reserve counts a context that is about to start.
func (t *Table) reserve() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live >= procapi.MaxContexts {
		return errdefs.WithCode(errdefs.Exhausted, "too_many_contexts", "the sandbox runs %d contexts, the most it may", t.live).WithRetryAfter(time.Second)
	}
	t.live++
	return nil
}

func (t *Table) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live--
}

// add gives a started context its id.
func (t *Table) add(e *entry, live *Live) {
	t.mu.Lock()
	for e.id == "" || t.entries[e.id] != nil {
		e.id = newID()
	}
	t.insertLocked(e)
	t.mu.Unlock()
	t.watchEnd(e, live)
	t.watchLimits(e)
}

// insertLocked is called with mu held.
func (t *Table) insertLocked(e *entry) {
	t.entries[e.id] = e
	t.made++
	e.number = t.made
}

// watchLimits has Run look at the context's limits, if it has any.
func (t *Table) watchLimits(e *entry) {
	if e.limited() {
		select {
		case t.kick <- struct{}{}:
		default: // already kicked
		}
	}
}

func newID() string {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return "ctx-" + hex.EncodeToString(b[:])
}

// watchEnd takes the process off the count when it has ended, and makes room.
func (t *Table) watchEnd(e *entry, live *Live) {
	began := t.cfg.Now()
	if t.cfg.Follow != nil {
		t.work.Go(t.cfg.Follow(e.id, live.Process.PID(), live.Process.Log()))
	}
	t.started(e, live)
	t.work.Go(func() {
		<-live.Process.Done()
		t.ended(e, live, began)
		e.note(live, t.ends.Add(1))
		t.release()
		t.evict()
	})
}

// evict forgets the contexts that ended first, beyond the bounds. What they left
// running goes on.
func (t *Table) evict() {
	type finished struct {
		*entry
		end  uint64
		kept int
	}
	var list []finished
	for _, e := range t.list() {
		if live, end, ok := e.over(); ok {
			if end == 0 { // of this moment: the newest
				end = math.MaxUint64
			}
			list = append(list, finished{e, end, live.Process.Log().Kept()})
		}
	}
	slices.SortStableFunc(list, func(a, b finished) int { return cmp.Compare(b.end, a.end) })
	bytes := 0
	for i, f := range list {
		bytes += f.kept
		if i >= maxFinished || bytes > maxFinishedBytes {
			t.remove(f.entry)
		}
	}
}

// remove takes an entry out of the table; false if it is not in it.
func (t *Table) remove(e *entry) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries[e.id] != e {
		return false
	}
	delete(t.entries, e.id)
	return true
}

// List describes all contexts, oldest first.
func (t *Table) List() procapi.ContextList {
	list := procapi.ContextList{Contexts: []procapi.Context{}}
	for _, e := range t.list() {
		list.Contexts = append(list.Contexts, e.describe())
	}
	return list
}

// Get describes a context.
func (t *Table) Get(id string) (procapi.Context, error) {
	e, err := t.get(id)
	if err != nil {
		return procapi.Context{}, err
	}
	return e.describe(), nil
}

// Delete ends a context and everything that belongs to it.
func (t *Table) Delete(id string) error {
	e, err := t.get(id)
	if err != nil {
		return err
	}
	if !t.remove(e) {
		return notFound(id)
	}
	gone := make(chan struct{})
	t.work.Go(func() {
		defer close(gone)
		e.restart.Lock() // a restart under way must not outlive this
		defer e.restart.Unlock()
		e.current().Process.Close()
	})
	timer := time.NewTimer(killTime)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
	}
	return nil
}

// Restart ends a context's process and starts it anew under the same id.
func (t *Table) Restart(id string) (procapi.Context, error) {
	e, err := t.get(id)
	if err != nil {
		return procapi.Context{}, err
	}
	e.restart.Lock()
	defer e.restart.Unlock()
	e.restarting(true) // what is between two processes is not to be evicted
	defer e.restarting(false)
	if _, err := t.get(id); err != nil { // deleted meanwhile
		return procapi.Context{}, err
	}
	e.current().Process.Close()
	if err := t.reserve(); err != nil {
		return procapi.Context{}, err
	}
	live, err := e.plan.start(t.cfg.Reaper, t.environment())
	if err != nil {
		t.release()
		return procapi.Context{}, err
	}
	e.replace(live, t.cfg.Now())
	t.watchEnd(e, live)
	if _, err := t.get(id); err != nil { // deleted, or evicted in the last moment
		live.Process.Close()
		return procapi.Context{}, err
	}
	return e.describe(), nil
}
