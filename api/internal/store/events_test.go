package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// hooked inserts a sandbox with a webhook.
func hooked(t *testing.T, s *store.Store, team uuid.UUID) store.NewSandbox {
	t.Helper()
	n := newSandbox(t, team)
	n.Webhook = &store.NewWebhook{URL: "https://example.com/hook", Secret: "s3cret", Destination: "example.com:443"}
	insert(t, s, n)
	return n
}

func eventsOf(t *testing.T, s *store.Store, n store.NewSandbox, f store.EventFilter) []store.Event {
	t.Helper()
	if f.Limit == 0 {
		f.Limit = 1000
	}
	list, err := s.Events(t.Context(), n.TeamID, n.ID, f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func typesOf(list []store.Event) (types []string) {
	for _, e := range list {
		types = append(types, e.Type)
	}
	return types
}

func agentEvents(ids ...string) (list []store.NewEvent) {
	for _, id := range ids {
		list = append(list, store.NewEvent{EventID: id, Type: "agent.event", Payload: `{"n": 1.0}`, OccurredAt: time.Now()})
	}
	return list
}

func add(t *testing.T, s *store.Store, n store.NewSandbox, list ...store.NewEvent) {
	t.Helper()
	if err := s.AddEvents(t.Context(), n.ID, n.ClaimID, list); err != nil {
		t.Fatal(err)
	}
}

// Every way in which a sandbox changes its state leaves the event that tells it,
// exactly once, with the ids that the contract promises.
func TestEveryChangeOfStateIsTold(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	for name, c := range map[string]struct {
		change func(n store.NewSandbox) error
		reason string
	}{
		"deleted by a user": {func(n store.NewSandbox) error {
			_, err := s.BeginDelete(t.Context(), n.TeamID, n.ID, "deleted by a user")
			return err
		}, "deleted by a user"},
		"failed": {func(n store.NewSandbox) error {
			sb, err := s.Sandbox(t.Context(), n.TeamID, n.ID)
			if err != nil {
				return err
			}
			_, err = s.FailSandbox(t.Context(), n.TeamID, sb, 0, "runsc at /secret/path on node-7 said no")
			return err
		}, "failed"},
		"expired": {func(n store.NewSandbox) error {
			if _, err := conn.Exec(t.Context(), "UPDATE sandboxes SET hard_expires_at = now() - interval '1 s' WHERE id = $1", n.ID); err != nil {
				return err
			}
			_, err := s.ExpireSandboxes(t.Context(), 100)
			return err
		}, "hard_ttl expired"},
	} {
		for _, n := range []store.NewSandbox{newSandbox(t, uuid.New()), hooked(t, s, uuid.New())} {
			insert(t, s, n)
			for range 2 { // what is told twice is stored once
				if err := c.change(n); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			if _, err := s.BeginDelete(t.Context(), n.TeamID, n.ID, "deleted by a user"); err != nil {
				t.Fatal(err)
			}
			list := eventsOf(t, s, n, store.EventFilter{After: -1})
			if got := typesOf(list); !slices.Equal(got, []string{"sandbox.ready", "sandbox.killed", "sandbox.deleted"}) {
				t.Fatalf("%s, webhook %t: %v", name, n.Webhook != nil, got)
			}
			last := list[2]
			var payload map[string]any
			if err := json.Unmarshal([]byte(last.Payload), &payload); err != nil || payload["reason"] != c.reason || payload["sandbox_id"] != string(n.ID) {
				t.Errorf("%s: payload %s", name, last.Payload)
			}
			want := store.NoDelivery
			if n.Webhook != nil {
				want = store.Pending
			}
			if last.EventID != "evt_sandbox_deleted_"+string(n.ID) || last.TeamID != n.TeamID || last.Delivery != want {
				t.Errorf("%s: %+v", name, last)
			}
		}
	}
}

func TestPauseAndResumeAreTold(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := hooked(t, s, uuid.New())
	for _, state := range []string{"paused", "starting", "running", "paused"} {
		if _, err := conn.Exec(t.Context(), "UPDATE sandboxes SET status = $2 WHERE id = $1", n.ID, state); err != nil {
			t.Fatal(err)
		}
	}
	list := eventsOf(t, s, n, store.EventFilter{After: -1})
	if got := typesOf(list); !slices.Equal(got, []string{"sandbox.ready", "sandbox.paused", "sandbox.resumed", "sandbox.paused"}) {
		t.Errorf("%v", got)
	}
	if list[1].EventID == list[3].EventID {
		t.Error("two pauses have one id")
	}
}

func TestX39_StoringTwiceIsStoringOnce(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := hooked(t, s, uuid.New())
	add(t, s, n, agentEvents("a", "b", "a")...)
	add(t, s, n, agentEvents("b", "c")...)
	list := eventsOf(t, s, n, store.EventFilter{After: -1, Types: []string{"agent.event"}})
	if len(list) != 3 || list[0].EventID != "a" || list[1].EventID != "b" || list[2].EventID != "c" || list[0].Payload != `{"n": 1.0}` {
		t.Errorf("%+v", list)
	}
}

// A01, B13: whose events they are is the row's word. A claim that has no row, or
// no webhook, tells nothing.
func TestB13_EventsBelongToTheRow(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := hooked(t, s, uuid.New())
	plain := newSandbox(t, uuid.New())
	insert(t, s, plain)
	for name, err := range map[string]error{
		"another claim":   s.AddEvents(t.Context(), n.ID, uuid.New(), agentEvents("x")),
		"without webhook": s.AddEvents(t.Context(), plain.ID, plain.ClaimID, agentEvents("x")),
	} {
		if !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	add(t, s, n, agentEvents("x")...)
	if list, err := s.Events(t.Context(), uuid.New(), n.ID, store.EventFilter{After: -1, Limit: 10}); err != nil || len(list) != 0 {
		t.Errorf("another team sees %v, %v", list, err)
	}
	if had, err := s.HadSandbox(t.Context(), uuid.New(), n.ID); had || err != nil {
		t.Errorf("another team had it: %t, %v", had, err)
	}
	if had, err := s.HadSandbox(t.Context(), n.TeamID, n.ID); !had || err != nil {
		t.Errorf("its own team had it: %t, %v", had, err)
	}
}

func TestB07_TooManyEventsAreParked(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := hooked(t, s, uuid.New())
	for i := range 30 {
		var ids []string
		for j := range 10 {
			ids = append(ids, fmt.Sprintf("e%d-%d", i, j))
		}
		add(t, s, n, agentEvents(ids...)...)
	}
	pending, parked := 0, 0
	for _, e := range eventsOf(t, s, n, store.EventFilter{After: -1}) {
		switch e.Delivery {
		case store.Pending:
			pending++
		case store.Parked:
			parked++
			if e.Outcome == "" {
				t.Error("parked without a reason")
			}
		}
	}
	if pending != 256 || parked != 301-256 {
		t.Errorf("%d pending, %d parked", pending, parked)
	}
}

func TestB08_OfManyEventsTheNewestStay(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := hooked(t, s, uuid.New())
	for i := range 11 {
		var ids []string
		for j := range 1000 {
			ids = append(ids, fmt.Sprintf("e%d-%d", i, j))
		}
		add(t, s, n, agentEvents(ids...)...)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE sandbox_events SET delivery = 'delivered'"); err != nil {
		t.Fatal(err)
	}
	var last []string
	for j := range 1000 {
		last = append(last, fmt.Sprintf("last-%d", j))
	}
	add(t, s, n, agentEvents(last...)...)
	var count int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM sandbox_events").Scan(&count); err != nil || count != 10_000 {
		t.Errorf("%d events, %v", count, err)
	}
}

// A reader that asks for what is behind the last event that it has seen misses
// none, however many write.
func TestEventsAreSeenInOrder(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := hooked(t, s, uuid.New())
	const writers, each = 8, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := s.AddEvents(t.Context(), n.ID, n.ClaimID, agentEvents(fmt.Sprintf("%d-%d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	seen, after, last := 0, int64(-1), false
	for {
		list := eventsOf(t, s, n, store.EventFilter{After: after})
		seen += len(list)
		if len(list) > 0 {
			after = list[len(list)-1].Seq
		} else if last {
			break
		}
		select {
		case <-done:
			last = true
		default:
		}
	}
	if seen != writers*each+1 {
		t.Errorf("saw %d of %d", seen, writers*each+1)
	}
}

func lease(t *testing.T, s *store.Store, life time.Duration) (store.WebhookLease, bool) {
	t.Helper()
	l, ok, err := s.LeaseWebhook(t.Context(), life, []uuid.UUID{}, []string{})
	if err != nil {
		t.Fatal(err)
	}
	return l, ok
}

func TestF10_SecretsAreNotShown(t *testing.T) {
	t.Parallel()
	l := store.WebhookLease{Secret: "canary"}
	b, err := json.Marshal(l)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "lease", l, "secret", l.Secret)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "lease", l, "secret", l.Secret)
	for _, shown := range []string{string(b), log.String(), fmt.Sprint(l), fmt.Sprintf("%v %+v %#v %s %q", l, l, l, l.Secret, l.Secret)} {
		if err != nil || strings.Contains(shown, "canary") || !strings.Contains(shown, "REDACTED") {
			t.Errorf("%s, %v", shown, err)
		}
	}
}

// One at a time delivers a sandbox's events; one that died is followed by another,
// and can't spoil what that does.
func TestX39_LeasesOfWebhooks(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := hooked(t, s, uuid.New())
	dead, ok := lease(t, s, time.Nanosecond)
	if !ok || dead.SandboxID != n.ID || dead.Secret != "s3cret" || dead.URL != n.Webhook.URL {
		t.Fatalf("%+v, %t", dead, ok)
	}
	l, ok := lease(t, s, time.Minute)
	if !ok || l.Token == dead.Token {
		t.Fatalf("after the first one's end: %+v, %t", l, ok)
	}
	if _, ok := lease(t, s, time.Minute); ok {
		t.Fatal("leased twice")
	}
	again := time.Duration(0)
	if err := s.ReleaseWebhook(t.Context(), dead, &again); err != nil {
		t.Fatal(err)
	}
	if _, ok := lease(t, s, time.Minute); ok {
		t.Fatal("the dead one's release counted")
	}
	list, err := s.PendingEvents(t.Context(), n.ID, 10)
	if err != nil || len(list) != 1 || list[0].Type != "sandbox.ready" {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := s.RecordAttempt(t.Context(), list[0].Seq, store.Delivered, "status 200"); err != nil {
		t.Fatal(err)
	}
	add(t, s, n, agentEvents("meanwhile")...) // after the list was read: it must not be forgotten
	if err := s.ReleaseWebhook(t.Context(), l, nil); err != nil {
		t.Fatal(err)
	}
	l, ok = lease(t, s, time.Minute)
	if !ok {
		t.Fatal("an event that came during the lease is forgotten")
	}
	if err := s.ReleaseWebhook(t.Context(), l, nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := lease(t, s, time.Minute); ok {
		t.Error("leased with nothing to do")
	}
	later := time.Minute
	add(t, s, n, agentEvents("one more")...)
	l, _ = lease(t, s, time.Minute)
	if err := s.ReleaseWebhook(t.Context(), l, &later); err != nil {
		t.Fatal(err)
	}
	if in, ok, err := s.NextWebhook(t.Context()); err != nil || !ok || in < 50*time.Second || in > time.Minute {
		t.Errorf("next in %s, %t, %v", in, ok, err)
	}
	add(t, s, n, agentEvents("impatient")...)
	if _, ok := lease(t, s, time.Minute); ok {
		t.Error("a new event ended the pause of a retry")
	}
}

func TestLeasesLeaveOutWhoHasEnough(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := hooked(t, s, uuid.New())
	for name, c := range map[string]struct {
		teams []uuid.UUID
		dests []string
	}{
		"team": {[]uuid.UUID{n.TeamID}, []string{}}, "destination": {[]uuid.UUID{}, []string{"example.com:443"}},
	} {
		if _, ok, err := s.LeaseWebhook(t.Context(), time.Minute, c.teams, c.dests); ok || err != nil {
			t.Errorf("%s: %t, %v", name, ok, err)
		}
	}
	if _, ok := lease(t, s, time.Minute); !ok {
		t.Error("nobody could have it")
	}
}

func TestReplicasLeaseEachWebhookOnce(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	const hooks = 40
	for range hooks {
		hooked(t, s, uuid.New())
	}
	var mu sync.Mutex
	got := map[sandbox.ID]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				l, ok, err := s.LeaseWebhook(t.Context(), time.Minute, []uuid.UUID{}, []string{})
				if err != nil {
					t.Error(err)
				}
				if !ok {
					return
				}
				mu.Lock()
				got[l.SandboxID]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for id, n := range got {
		if n != 1 {
			t.Errorf("%s was leased %d times", id, n)
		}
	}
	// One that finds all of a moment's rows locked may give up early; the rest is still there.
	for {
		l, ok := lease(t, s, time.Minute)
		if !ok {
			break
		}
		got[l.SandboxID]++
	}
	if len(got) != hooks {
		t.Errorf("%d of %d were leased", len(got), hooks)
	}
}

func TestUndoneClaimsLeaveNoEvents(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := hooked(t, s, uuid.New())
	if err := s.RemoveClaim(t.Context(), n.ID, n.ClaimID); err != nil {
		t.Fatal(err)
	}
	lost := hooked(t, s, uuid.New())
	winner := lost
	winner.ClaimID, winner.TeamID = uuid.New(), uuid.New()
	if _, err := s.TakeOver(t.Context(), winner); err != nil {
		t.Fatal(err)
	}
	var events, hooks int
	if err := conn.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM sandbox_events), (SELECT count(*) FROM sandbox_webhooks)").Scan(&events, &hooks); err != nil {
		t.Fatal(err)
	}
	if events != 1 || hooks != 1 || len(eventsOf(t, s, winner, store.EventFilter{After: -1})) != 1 {
		t.Errorf("%d events, %d webhooks", events, hooks)
	}
}

func TestEventFilters(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := hooked(t, s, uuid.New())
	old := store.NewEvent{EventID: "old", Type: "process.exited", Payload: "{}", OccurredAt: time.Now().Add(-time.Hour)}
	add(t, s, n, append(agentEvents("a", "b"), old)...)
	ago := time.Now().Add(-time.Minute)
	for name, c := range map[string]struct {
		f    store.EventFilter
		want int
	}{
		"all":   {store.EventFilter{After: -1}, 4},
		"types": {store.EventFilter{After: -1, Types: []string{"agent.event"}}, 2},
		"none":  {store.EventFilter{After: -1, Types: []string{}}, 0},
		"start": {store.EventFilter{After: -1, Start: &ago}, 3},
		"end":   {store.EventFilter{After: -1, End: &ago}, 1},
		"id":    {store.EventFilter{After: -1, EventID: "b"}, 1},
		"limit": {store.EventFilter{After: -1, Limit: 2}, 2},
	} {
		if list := eventsOf(t, s, n, c.f); len(list) != c.want {
			t.Errorf("%s: %v", name, typesOf(list))
		}
	}
	if err := s.PurgeEvents(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if list := eventsOf(t, s, n, store.EventFilter{After: -1}); len(list) != 0 {
		t.Errorf("after the purge: %v", typesOf(list))
	}
}

func TestListenersAreToldOfEvents(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	told := make(chan sandbox.ID, 100)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.ListenEvents(ctx, func(id sandbox.ID) { told <- id }) }()
	wait := func(want sandbox.ID) {
		t.Helper()
		select {
		case got := <-told:
			if got != want {
				t.Errorf("told of %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("never told of %q", want)
		}
	}
	wait("")
	n := hooked(t, s, uuid.New())
	wait(n.ID)
	add(t, s, n, agentEvents("x")...)
	wait(n.ID)
	if _, err := s.BeginDelete(t.Context(), n.TeamID, n.ID, "deleted by a user"); err != nil {
		t.Fatal(err)
	}
	wait(n.ID)
	stop()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "s0_events") {
		t.Errorf("ended with %v", err)
	}
}

// A purge keeps the tombstone of a sandbox whose webhook was not told yet.
func TestThePurgeWaitsForTheWebhook(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := hooked(t, s, uuid.New())
	meterAll(t, conn)
	if _, err := s.BeginDelete(t.Context(), n.TeamID, n.ID, "deleted by a user"); err != nil {
		t.Fatal(err)
	}
	if err := s.FinishDelete(t.Context(), n.TeamID, n.ID, n.ClaimID); err != nil {
		t.Fatal(err)
	}
	if err := s.PurgeDeleted(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	l, ok := lease(t, s, time.Minute)
	if !ok {
		t.Fatal("the webhook went with the tombstone")
	}
	if err := s.ReleaseWebhook(t.Context(), l, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.PurgeDeleted(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AnySandbox(t.Context(), n.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("the tombstone stays: %v", err)
	}
}
