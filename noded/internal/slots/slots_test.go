package slots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/events"
	"s0.run/noded/internal/lifecycle"
)

func spec(image string) sandbox.Spec {
	return sandbox.Spec{Image: image, MemoryBytes: 256 << 20, CPUMillis: 500, RuntimeClass: sandbox.GVisor}
}

// node is a lifecycle and an image store in memory; warming takes a second.
type node struct {
	changed chan struct{}
	losses  chan lifecycle.Loss

	mu      sync.Mutex
	slots   map[sandbox.ID]lifecycle.Slot
	next    int
	running int
	most    int // creations at a time
	created []time.Time
	fail    error           // of creations
	unready map[string]bool // pools whose warm processes never get healthy
	pull    error
	hanging map[string]time.Duration // pulls that fail after so long, by image
}

func newNode() *node {
	return &node{changed: make(chan struct{}, 1), losses: make(chan lifecycle.Loss, 10), slots: map[sandbox.ID]lifecycle.Slot{}, unready: map[string]bool{}}
}

func (n *node) kick() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *node) Create(ctx context.Context, key string, s sandbox.Spec, started func()) error {
	n.mu.Lock()
	n.created = append(n.created, time.Now())
	if n.fail != nil {
		defer n.mu.Unlock()
		return n.fail
	}
	n.next++
	id := sandbox.ID(fmt.Sprint(key, "-", n.next))
	slot := lifecycle.Slot{ID: id, PoolKey: key, SpecHash: s.Hash(), State: lifecycle.Warming}
	if n.unready[key] {
		slot.Reason = "status 503"
	}
	n.slots[id] = slot
	n.running++
	n.most = max(n.most, n.running)
	n.mu.Unlock()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	started()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.running--
	if n.unready[key] {
		n.mu.Unlock()
		<-time.After(5 * time.Minute)
		n.mu.Lock()
		delete(n.slots, id)
		return errUnready
	}
	slot.State = lifecycle.Free
	n.slots[id] = slot
	n.kick()
	return nil
}

func (n *node) Drain(_ context.Context, id sandbox.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.slots, id)
	n.kick()
}

func (n *node) Slots() []lifecycle.Slot {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []lifecycle.Slot
	for _, s := range n.slots {
		all = append(all, s)
	}
	return all
}

func (n *node) Changed() <-chan struct{} { return n.changed }

func (n *node) Losses() <-chan lifecycle.Loss { return n.losses }

var errUnready = fmt.Errorf("starting x: %w", errdefs.New(errdefs.Unavailable, "warm process web is not ready"))

// lose ends all free slots of a pool.
func (n *node) lose(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, s := range n.slots {
		if s.PoolKey == key && s.State == lifecycle.Free {
			delete(n.slots, id)
			n.losses <- lifecycle.Loss{PoolKey: key, SpecHash: s.SpecHash, Err: errdefs.New(errdefs.Unavailable, "warm process web exited")}
		}
	}
	n.kick()
}

func (n *node) Ensure(ctx context.Context, ref string) (string, error) {
	n.mu.Lock()
	err, hangs := n.pull, n.hanging[ref]
	n.mu.Unlock()
	if hangs == 0 {
		return "", err
	}
	select {
	case <-time.After(hangs):
		return "", errors.New("stalled")
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (n *node) Has(_ context.Context, ref string) bool { return ref == "here" }

func (n *node) Progress(string) string { return "" }

func (n *node) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// claim takes free slots, as tenants do.
func (n *node) claim(t *testing.T, key string, count int) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, s := range n.slots {
		if count > 0 && s.PoolKey == key && s.State == lifecycle.Free {
			s.State = lifecycle.Taken
			n.slots[id] = s
			count--
		}
	}
	if count > 0 {
		t.Fatalf("%d slots short in %s", count, key)
	}
	n.kick()
}

func (n *node) count(key string, state lifecycle.SlotState) int {
	c := 0
	for _, s := range n.Slots() {
		if s.PoolKey == key && s.State == state {
			c++
		}
	}
	return c
}

// run runs pools inside a synctest bubble, whose clock is its own.
func run(t *testing.T, warmups int, f func(n *node, p *Pools, hub *events.Hub)) {
	synctest.Test(t, func(t *testing.T) {
		n, hub := newNode(), events.NewHub()
		p := New(Config{
			Lifecycle: n, Images: n, Warmups: warmups, Hub: hub,
			Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = p.Run(ctx) })
		f(n, p, hub)
		cancel()
		wg.Wait()
	})
}

// pass lets the bubble's clock run.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func status(hub *events.Hub, key string) *nodeapi.PoolStatus {
	initial, sub := hub.Subscribe()
	defer sub.Cancel()
	for _, e := range initial {
		if s := e.GetPool(); s.GetKey() == key {
			return s
		}
	}
	return nil
}

func mustSet(t *testing.T, p *Pools, pools ...Pool) {
	t.Helper()
	if refused := p.Set(pools); refused != nil {
		t.Fatal(refused)
	}
}

func TestFillAndRefill(t *testing.T) {
	t.Parallel()
	run(t, 2, func(n *node, p *Pools, hub *events.Hub) {
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 5, Max: 5})
		pass(4 * time.Second) // 5 slots, 2 at a time, a second each
		if got := n.count("a", lifecycle.Free); got != 5 {
			t.Fatalf("%d free slots, want 5", got)
		}
		n.claim(t, "a", 3)
		pass(3 * time.Second)
		if free, taken := n.count("a", lifecycle.Free), n.count("a", lifecycle.Taken); free != 5 || taken != 3 {
			t.Errorf("after 3 claims: %d free, %d taken", free, taken)
		}
		if n.most != 2 {
			t.Errorf("%d warm-ups at a time, want 2", n.most)
		}
		if s := status(hub, "a"); s.Idle != 5 || s.Claimed != 3 || s.Warming != 0 || s.LastError != "" {
			t.Errorf("status %v", s)
		}
		pass(time.Minute)
		if len(n.created) != 8 {
			t.Errorf("%d creations for 8 slots", len(n.created))
		}
	})
}

// A refill waits for a burst of claims to end, but not for ever.
func TestRefillWaitsForQuiet(t *testing.T) {
	t.Parallel()
	run(t, 1, func(n *node, p *Pools, _ *events.Hub) {
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 50, Max: 50})
		pass(2 * time.Minute)
		n.set(func() { n.created = nil })
		begin := time.Now()
		for range 45 { // a claim every 6 ms: never quiet
			n.claim(t, "a", 1)
			pass(6 * time.Millisecond)
		}
		if len(n.created) == 0 {
			t.Fatal("no refill during a long burst")
		}
		if first := n.created[0].Sub(begin); first < settle || first > lateLook+settle {
			t.Errorf("first refill after %v, want between %v and %v", first, settle, lateLook)
		}
	})
}

func TestDemandGrowsAndEbbs(t *testing.T) {
	t.Parallel()
	run(t, 4, func(n *node, p *Pools, _ *events.Hub) {
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 2, Max: 6})
		pass(10 * time.Second)
		for range 10 {
			n.claim(t, "a", 1)
			pass(2 * time.Second)
		}
		if got := n.count("a", lifecycle.Free); got != 6 {
			t.Errorf("%d free after 10 claims, want the maximum of 6", got)
		}
		pass(2 * demandWindow)
		if got := n.count("a", lifecycle.Free); got != 2 {
			t.Errorf("%d free when nobody claims, want the minimum of 2", got)
		}
	})
}

func TestDrain(t *testing.T) {
	t.Parallel()
	run(t, 4, func(n *node, p *Pools, hub *events.Hub) {
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 3, Max: 3}, Pool{Key: "b", Spec: spec("b"), Min: 1, Max: 1})
		pass(10 * time.Second)
		n.claim(t, "a", 1)
		pass(10 * time.Second)
		mustSet(t, p, Pool{Key: "a", Spec: spec("a2"), Min: 2, Max: 2}) // another spec; b is gone
		pass(10 * time.Second)
		var hashes []string
		for _, s := range n.Slots() {
			if s.State == lifecycle.Free {
				hashes = append(hashes, s.PoolKey+" "+s.SpecHash)
			}
		}
		want := "a " + spec("a2").Hash()
		if !slices.Equal(hashes, []string{want, want}) {
			t.Errorf("free slots %v, want two of %s", hashes, want)
		}
		if n.count("a", lifecycle.Taken) != 1 {
			t.Error("a claimed sandbox was drained")
		}
		if s := status(hub, "b"); s != nil {
			t.Errorf("a pool that is gone has status %v", s)
		}
		mustSet(t, p)
		pass(10 * time.Second)
		if s := status(hub, "a"); s == nil || s.Idle != 0 || s.Claimed != 1 {
			t.Errorf("status of an unwanted pool with a sandbox: %v", s)
		}
	})
}

func TestG14_FailuresBackOff(t *testing.T) {
	t.Parallel()
	run(t, 1, func(n *node, p *Pools, hub *events.Hub) {
		n.set(func() { n.fail = errors.New("no such thing") })
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 1, Max: 1})
		pass(10 * time.Minute)
		if got := len(n.created); got < 8 || got > 25 {
			t.Errorf("%d attempts in 10 minutes", got)
		}
		if s := status(hub, "a"); s == nil || s.LastError != "no such thing" {
			t.Errorf("status %v", s)
		}
		n.set(func() { n.fail = nil })
		pass(2*lastRetry + 5*time.Second)
		if s := status(hub, "a"); s.Idle != 1 || s.LastError != "" {
			t.Errorf("status after recovery %v", s)
		}
	})
}

// What a registry answers is not always text; the wire takes nothing else.
func TestG14_LastErrorIsText(t *testing.T) {
	t.Parallel()
	run(t, 1, func(n *node, p *Pools, hub *events.Hub) {
		for _, said := range []string{"503 \xff\xfe gone", strings.Repeat("ü", 1000), strings.Repeat("x", 1023) + "ü"} {
			n.set(func() { n.fail = errors.New(said) })
			mustSet(t, p, Pool{Key: "a", Spec: spec(said), Min: 1, Max: 1})
			pass(time.Second)
			s := status(hub, "a")
			if s.GetLastError() == "" || len(s.GetLastError()) > 1030 || !utf8.ValidString(s.GetLastError()) {
				t.Errorf("last error %q", s.GetLastError())
			}
			mustSet(t, p)
			pass(time.Second)
		}
	})
}

// D12: pools whose images hang take every place for a pull. Who has his image, and
// who has failed less, does not wait behind them.
func TestD12_HangingPullsHoldUpNobody(t *testing.T) {
	t.Parallel()
	run(t, 1, func(n *node, p *Pools, hub *events.Hub) {
		n.set(func() { n.hanging = map[string]time.Duration{} })
		var all []Pool
		for i := range 10 * pulls {
			image := fmt.Sprint("black-hole-", i)
			n.set(func() { n.hanging[image] = 30 * time.Second })
			all = append(all, Pool{Key: image, Spec: spec(image), Min: 1, Max: 1})
		}
		mustSet(t, p, all...)
		pass(time.Second)
		mustSet(t, p, append(all, Pool{Key: "here", Spec: spec("here"), Min: 1, Max: 1})...)
		pass(3 * time.Second)
		if s := status(hub, "here"); s.GetIdle() != 1 {
			t.Errorf("with its image on the node: %v", s)
		}
		pass(10 * time.Minute) // all of them have failed
		mustSet(t, p, append(all, Pool{Key: "zz", Spec: spec("pullable"), Min: 1, Max: 1})...)
		pass(35 * time.Second) // a place is free when the first that has one stalls
		if s := status(hub, "zz"); s.GetIdle() != 1 {
			t.Errorf("with an image that can be pulled: %v", s)
		}
	})
}

// A pool whose image is missing warms nothing and does not hold up the others.
func TestMissingImageHoldsUpNobody(t *testing.T) {
	t.Parallel()
	run(t, 1, func(n *node, p *Pools, hub *events.Hub) {
		n.set(func() { n.pull = errors.New("registry is away") })
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 1, Max: 1}, Pool{Key: "b", Spec: spec("here"), Min: 1, Max: 1})
		pass(3 * time.Second)
		if n.count("a", lifecycle.Free) != 0 {
			t.Error("a slot was warmed without its image")
		}
		if n.count("b", lifecycle.Free) != 1 {
			t.Error("the neighbour, whose image is there, has no slot")
		}
		if s := status(hub, "a"); s.LastError != "image a: registry is away" {
			t.Errorf("status %v", s)
		}
		n.set(func() { n.pull = nil })
		pass(15 * time.Second) // however long the pause was to be
		if s := status(hub, "a"); s.Idle != 1 {
			t.Errorf("status when the registry is back %v", s)
		}
	})
}

// A pool whose warm processes never get healthy holds up nobody else's, and says why.
func TestWaitingForWarmProcessesHoldsUpNobody(t *testing.T) {
	t.Parallel()
	run(t, 1, func(n *node, p *Pools, hub *events.Hub) {
		n.set(func() { n.unready["a"] = true })
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 3, Max: 3}, Pool{Key: "b", Spec: spec("b"), Min: 2, Max: 2})
		pass(10 * time.Second)
		if got := n.count("b", lifecycle.Free); got != 2 {
			t.Errorf("the other pool has %d free slots, want 2", got)
		}
		if s := status(hub, "a"); s.Warming != 3 || s.LastError != "" || s.Message != "status 503" {
			t.Errorf("status while it waits: %v", s)
		}
		pass(5 * time.Minute)
		if s := status(hub, "a"); s.LastError != errUnready.Error() || s.Message != "warm process web is not ready" {
			t.Errorf("status after it waited in vain: %v", s)
		}
		// A repaired template's slots are not waited for.
		mustSet(t, p, Pool{Key: "a", Spec: spec("a2"), Min: 1, Max: 1})
		n.set(func() { n.unready["a"] = false })
		pass(20 * time.Second)
		if got := n.count("a", lifecycle.Warming); got != 0 {
			t.Errorf("%d slots of the old spec still warm", got)
		}
		if s := status(hub, "a"); s.Idle != 1 || s.LastError != "" || s.Message != "" {
			t.Errorf("status of the repaired one: %v", s)
		}
		pass(10 * time.Minute) // what waits ends by itself
	})
}

// Slots that end soon after they were free are made again, ever more seldom.
func TestG14_LossesBackOff(t *testing.T) {
	t.Parallel()
	run(t, 4, func(n *node, p *Pools, hub *events.Hub) {
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 3, Max: 3})
		pass(3 * time.Second)
		if got := n.count("a", lifecycle.Free); got != 3 {
			t.Fatalf("%d free slots", got)
		}
		n.lose("a") // three at once are one failure
		pass(2500 * time.Millisecond)
		if got := n.count("a", lifecycle.Free); got != 3 {
			t.Errorf("%d free slots soon after a first loss", got)
		}
		n.set(func() { n.created = nil })
		for range 600 {
			n.lose("a")
			pass(time.Second)
		}
		if got := len(n.created); got < 20 || got > 80 {
			t.Errorf("%d starts in 10 minutes of slots that end at once", got)
		}
		for n.count("a", lifecycle.Free) != 3 { // when it is tried again is left to chance
			pass(time.Second)
		}
		n.lose("a")
		pass(time.Second)
		if s := status(hub, "a"); s.Idle != 0 || s.LastError != "warm process web exited" || s.Message != s.LastError {
			t.Errorf("status: %v", s)
		}
		pass(10 * time.Minute)
		n.claim(t, "a", 1)
		pass(3 * time.Second)
		if got := n.count("a", lifecycle.Free); got != 3 {
			t.Errorf("%d free slots after a calm time and a claim", got)
		}
	})
}

func TestRestartIsNoDemand(t *testing.T) {
	t.Parallel()
	run(t, 4, func(n *node, p *Pools, _ *events.Hub) {
		n.set(func() {
			for i := range 20 {
				id := sandbox.ID(fmt.Sprint("old-", i))
				n.slots[id] = lifecycle.Slot{ID: id, PoolKey: "a", SpecHash: spec("a").Hash(), State: lifecycle.Taken}
			}
		})
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 1, Max: 10})
		pass(20 * time.Second)
		if got := n.count("a", lifecycle.Free); got != 1 {
			t.Errorf("%d free slots, want 1", got)
		}
	})
}

func TestNothingDrainsBeforePoolsAreSet(t *testing.T) {
	t.Parallel()
	run(t, 4, func(n *node, p *Pools, _ *events.Hub) {
		n.set(func() {
			n.slots["old"] = lifecycle.Slot{ID: "old", PoolKey: "a", SpecHash: spec("a").Hash(), State: lifecycle.Free}
		})
		n.kick()
		pass(time.Hour)
		if n.count("a", lifecycle.Free) != 1 {
			t.Fatal("a slot was drained before anybody said which pools there are")
		}
		mustSet(t, p)
		pass(time.Second)
		if n.count("a", lifecycle.Free) != 0 {
			t.Error("a slot of no pool is kept")
		}
	})
}

func TestFailingPoolsLast(t *testing.T) {
	t.Parallel()
	pools := map[string]*pool{
		"a": {Pool: Pool{Key: "a", Min: 1, Max: 1}, failures: 3}, "b": {Pool: Pool{Key: "b", Min: 2, Max: 2}}, "c": {Pool: Pool{Key: "c", Min: 1, Max: 1}, failures: 9},
	}
	var order []string
	for _, n := range needs(pools, map[string]*counts{"b": {idle: make([]sandbox.ID, 1)}}, time.Now()) {
		order = append(order, n.pool.Key)
	}
	if want := []string{"b", "a", "c"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

func TestEmptiestPoolFirst(t *testing.T) {
	t.Parallel()
	mk := func(key string, n int) *pool { return &pool{Pool: Pool{Key: key, Min: n, Max: n}} }
	pools := map[string]*pool{"big": mk("big", 10), "empty": mk("empty", 2), "full": mk("full", 1)}
	byKey := map[string]*counts{"big": {idle: make([]sandbox.ID, 8)}, "full": {idle: make([]sandbox.ID, 1)}}
	var order []string
	for _, n := range needs(pools, byKey, time.Now()) {
		order = append(order, n.pool.Key)
	}
	if want := []string{"empty", "empty", "big", "big"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// D12: one team's bad pool, or too many of them, stops nobody else's.
func TestSetRefusesPoolByPool(t *testing.T) {
	t.Parallel()
	good := Pool{Key: "a", Spec: spec("a"), Min: 1, Max: 1}
	for name, mutate := range map[string]func(*Pool){
		"no key":    func(p *Pool) { p.Key = "" },
		"max < min": func(p *Pool) { p.Min = 2 },
		"negative":  func(p *Pool) { p.Min = -1 },
		"huge":      func(p *Pool) { p.Max = maxSlots + 1 },
		"bad spec":  func(p *Pool) { p.Spec.Image = "" },
		"twice":     func(*Pool) {},
	} {
		p := New(Config{Metrics: prometheus.NewRegistry()})
		bad := good
		if name != "twice" {
			bad.Key = "bad"
		}
		mutate(&bad)
		other := Pool{Key: "z", Spec: spec("z"), Min: 1, Max: 1}
		if r := p.Set([]Pool{good, bad, other}); len(r) != 1 || r[0].Key != bad.Key || r[0].Reason == "" {
			t.Errorf("%s: refused %v", name, r)
		}
		if got := keys(p.want); got != "a z" {
			t.Errorf("%s: the node keeps %q, want a z", name, got)
		}
	}
	p := New(Config{Metrics: prometheus.NewRegistry()})
	var many []Pool
	for i := range maxPools + 3 {
		many = append(many, Pool{Key: fmt.Sprint(i), Spec: spec("a")})
	}
	if r := p.Set(many); len(r) != 3 || r[0].Key != fmt.Sprint(maxPools) || len(p.want) != maxPools {
		t.Errorf("%d pools: refused %v, kept %d", len(many), r, len(p.want))
	}
}

// A pool whose new version is refused stays what it was.
func TestRefusedPoolStaysAsItWas(t *testing.T) {
	t.Parallel()
	run(t, 1, func(n *node, p *Pools, _ *events.Hub) {
		mustSet(t, p, Pool{Key: "a", Spec: spec("a"), Min: 1, Max: 1})
		pass(5 * time.Second)
		if r := p.Set([]Pool{{Key: "a", Spec: sandbox.Spec{}, Min: 1, Max: 1}}); len(r) != 1 {
			t.Errorf("refused %v", r)
		}
		pass(5 * time.Second)
		if n.count("a", lifecycle.Free) != 1 || len(n.created) != 1 {
			t.Errorf("%d free, %d created", n.count("a", lifecycle.Free), len(n.created))
		}
	})
}

func keys(pools []Pool) string {
	var all []string
	for _, p := range pools {
		all = append(all, p.Key)
	}
	return strings.Join(all, " ")
}

// A pod's slot is Kubernetes' to end, also where its pool's key is no pool's here.
func TestPodsSlotsAreLeftAlone(t *testing.T) {
	t.Parallel()
	pools := map[string]*pool{"a": {Pool: Pool{Key: "a", Min: 1, Max: 1}}}
	byKey, stale := count(pools, []lifecycle.Slot{
		{ID: "1", PoolKey: "a", Pod: "uid-1", State: lifecycle.Free}, {ID: "2", PoolKey: "gone", Pod: "uid-2", State: lifecycle.Free},
	})
	if len(byKey) != 0 || len(stale) != 0 {
		t.Fatalf("counted %v, stale %v", byKey, stale)
	}
}
