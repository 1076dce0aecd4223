package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"s0.run/api/internal/store"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// bench is a database and what tells of it.
type bench struct {
	t     *testing.T
	dsn   string
	store *store.Store
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dsn: s0test.Postgres(t)}
	b.store = b.open()
	return b
}

func (b *bench) open() *store.Store {
	b.t.Helper()
	s, err := store.Open(b.t.Context(), b.dsn)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(s.Close)
	return s
}

// replica runs a dispatcher until stop is called or the test ends.
func (b *bench) replica(lease time.Duration) (stop func()) {
	b.t.Helper()
	s := b.open()
	d := New(Config{Store: s, Policy: Policy{AllowPrivate: true}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), Lease: lease})
	ctx, cancel := context.WithCancel(b.t.Context())
	var running sync.WaitGroup
	running.Go(func() { d.Run(ctx) })
	running.Go(func() { s.ListenEvents(ctx, func(sandbox.ID) { d.Kick() }) })
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	b.t.Cleanup(stop)
	return stop
}

// claim stores a sandbox whose webhook is url; its first event is sandbox.ready.
func (b *bench) claim(url string) store.Sandbox {
	b.t.Helper()
	id, err := sandbox.NewID("local")
	if err != nil {
		b.t.Fatal(err)
	}
	sb, err := b.store.InsertSandbox(b.t.Context(), store.NewSandbox{
		ID: id, TeamID: uuid.New(), UserID: uuid.New(), ClaimID: uuid.New(), TemplateID: "default", Node: "n1", Generation: 1,
		Config: []byte("{}"), MemoryBytes: 1 << 30, Webhook: &store.NewWebhook{URL: url, Secret: "secret", Destination: url},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return sb
}

func (b *bench) tell(sb store.Sandbox, from, to int) {
	b.t.Helper()
	var list []store.NewEvent
	for i := from; i < to; i++ {
		list = append(list, store.NewEvent{EventID: fmt.Sprint("e", i), Type: "agent.event", Payload: fmt.Sprint(i), OccurredAt: time.Now()})
	}
	if err := b.store.AddEvents(b.t.Context(), sb.ID, sb.ClaimID, list); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) events(sb store.Sandbox) []store.Event {
	b.t.Helper()
	list, err := b.store.Events(b.t.Context(), sb.TeamID, sb.ID, store.EventFilter{After: -1, Limit: 1000})
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// settled waits until no event of a sandbox is pending.
func (b *bench) settled(sb store.Sandbox) []store.Event {
	b.t.Helper()
	var list []store.Event
	eventually(b.t, "all events are delivered or parked", func() bool {
		list = b.events(sb)
		return !slices.ContainsFunc(list, func(e store.Event) bool { return e.Delivery == store.Pending })
	})
	return list
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("never happened: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// inbox is a receiver that remembers.
type inbox struct {
	mu  sync.Mutex
	got map[string][]string // event ids by sandbox, in the order of arrival
}

func (i *inbox) take(t *testing.T, r *http.Request) string {
	raw, err := io.ReadAll(r.Body)
	var e struct {
		EventID   string `json:"event_id"`
		SandboxID string `json:"sandbox_id"`
	}
	if err != nil || json.Unmarshal(raw, &e) != nil {
		t.Errorf("body %q: %v", raw, err)
	}
	if r.Header.Get(signatureHeader) != sign("secret", raw) {
		t.Errorf("the signature of %s does not fit", e.EventID)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.got == nil {
		i.got = map[string][]string{}
	}
	i.got[e.SandboxID] = append(i.got[e.SandboxID], e.EventID)
	return e.EventID
}

func (i *inbox) of(sb store.Sandbox) []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.got[string(sb.ID)])
}

// Two replicas deliver every event once and in order, when nothing goes wrong.
func TestTwoReplicasDeliverInOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.replica(0)
	b.replica(0)
	var in inbox
	srv, _ := receiver(t, func(_ http.ResponseWriter, r *http.Request) { in.take(t, r) })
	var all []store.Sandbox
	for range 8 {
		all = append(all, b.claim(srv.URL))
	}
	for i := range 8 {
		for _, sb := range all {
			b.tell(sb, 5*i, 5*i+5)
		}
	}
	for _, sb := range all {
		want := []string{"evt_sandbox_ready_" + string(sb.ID)}
		for i := range 40 {
			want = append(want, fmt.Sprint("e", i))
		}
		for _, e := range b.settled(sb) {
			if e.Delivery != store.Delivered || e.Attempts != 1 || e.Outcome != "status 200" {
				t.Errorf("%+v", e)
			}
		}
		if got := in.of(sb); !slices.Equal(got, want) {
			t.Errorf("%s got %v", sb.ID, got)
		}
	}
}

// X39: a replica that dies after it has sent and before it has recorded, and one
// that dies before it has sent: another sends, under the same id.
func TestX39_AReplicaDies(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var in inbox
	srv, _ := receiver(t, func(_ http.ResponseWriter, r *http.Request) { in.take(t, r) })
	sb := b.claim(srv.URL)
	l, ok, err := b.store.LeaseWebhook(t.Context(), 200*time.Millisecond, []uuid.UUID{}, []string{})
	if err != nil || !ok {
		t.Fatalf("%t, %v", ok, err)
	}
	list, err := b.store.PendingEvents(t.Context(), sb.ID, 1)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if ok, outcome := newSender(Policy{AllowPrivate: true}).send(t.Context(), l, list[0]); !ok {
		t.Fatal(outcome)
	}
	b.tell(sb, 0, 1)
	b.replica(0)
	b.settled(sb)
	ready := "evt_sandbox_ready_" + string(sb.ID)
	if got := in.of(sb); !slices.Equal(got, []string{ready, ready, "e0"}) {
		t.Errorf("the receiver got %v", got)
	}
}

// A receiver that fails is tried again, with pauses, while what comes later waits
// for its turn; then the event is parked with the reason, and the next one goes.
func TestRetriesAndParking(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.replica(0)
	var in inbox
	var mu sync.Mutex
	var at []time.Time
	fails := map[string]int{"e0": 2, "e1": 100}
	srv, _ := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		id := in.take(t, r)
		mu.Lock()
		defer mu.Unlock()
		if id == "e1" {
			at = append(at, time.Now())
		}
		if fails[id]--; fails[id] >= 0 {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	sb := b.claim(srv.URL)
	b.tell(sb, 0, 3)
	list := b.settled(sb)
	if got := in.of(sb)[1:]; !slices.Equal(got, []string{"e0", "e0", "e0", "e1", "e1", "e1", "e1", "e2"}) {
		t.Errorf("the receiver got %v", got)
	}
	for i, want := range []struct {
		state    store.Delivery
		attempts int
		outcome  string
	}{{store.Delivered, 1, "status 200"}, {store.Delivered, 3, "status 200"}, {store.Parked, 4, "status 418"}, {store.Delivered, 1, "status 200"}} {
		if e := list[i]; e.Delivery != want.state || e.Attempts != want.attempts || e.Outcome != want.outcome {
			t.Errorf("%s: %s after %d attempts: %s", e.EventID, e.Delivery, e.Attempts, e.Outcome)
		}
	}
	for i, pause := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second} {
		if got := at[i+1].Sub(at[i]); got < pause {
			t.Errorf("attempt %d came %s after the one before, want %s at least", i+2, got, pause)
		}
	}
}

// A receiver that never answers holds up its own sandboxes alone, however many
// they are.
func TestASlowReceiverDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	hold := make(chan struct{})
	var mu sync.Mutex
	at, most := 0, 0
	slow, _ := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // or its end would not be seen
		mu.Lock()
		at++
		most = max(most, at)
		mu.Unlock()
		select {
		case <-hold:
		case <-r.Context().Done():
		}
		mu.Lock()
		at--
		mu.Unlock()
	})
	defer close(hold)
	for range 3 * perDestination {
		b.claim(slow.URL)
	}
	first := time.Now()
	b.replica(0)
	eventually(t, "the slow receiver is at its bound", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return at == perDestination
	})
	var in inbox
	quick, _ := receiver(t, func(_ http.ResponseWriter, r *http.Request) { in.take(t, r) })
	began := time.Now()
	sb := b.claim(quick.URL)
	b.settled(sb)
	if took := time.Since(began); took > attemptTimeout {
		t.Errorf("the quick receiver waited %s", took)
	}
	mu.Lock()
	defer mu.Unlock()
	// Once attempts time out, the receiver sees one end after the next has come.
	if most > perDestination && time.Since(first) < attemptTimeout {
		t.Errorf("%d attempts at once at one destination", most)
	}
}

// A replica that stops gives its leases back: the next one need not wait for them.
func TestAStopGivesLeasesBack(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	arrived := make(chan struct{}, 100)
	srv, _ := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // or its end would not be seen
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	stop := b.replica(0)
	b.claim(srv.URL)
	<-arrived
	stop()
	if in, ok, err := b.store.NextWebhook(t.Context()); err != nil || !ok || in > 0 {
		t.Errorf("next in %s, %t, %v", in, ok, err)
	}
}
