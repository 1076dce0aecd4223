package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

func TestX36_InsertIsRepeatable(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	team := uuid.New()
	n := newSandbox(t, team)
	n.TTLSeconds, n.HardTTLSeconds = 60, 120
	first := insert(t, s, n)
	again := insert(t, s, n)
	if first.CreatedAt != again.CreatedAt || first.ClaimID != again.ClaimID {
		t.Fatalf("%+v\n%+v", first, again)
	}
	if first.ExpiresAt.Sub(first.CreatedAt) != time.Minute || first.HardExpiresAt.Sub(first.CreatedAt) != 2*time.Minute {
		t.Fatalf("expiry %v, %v after %v", first.ExpiresAt, first.HardExpiresAt, first.CreatedAt)
	}
	other := n
	other.ClaimID, other.TeamID = uuid.New(), uuid.New()
	if _, err := s.InsertSandbox(t.Context(), other); !errors.Is(err, store.ErrIDTaken) {
		t.Fatalf("another claim with the same id: %v", err)
	}
}

func TestG01_TheNodesChoiceTakesTheRowOver(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	loser := newSandbox(t, uuid.New())
	insert(t, s, loser)
	winner := loser
	winner.ClaimID, winner.TeamID = uuid.New(), uuid.New()
	if _, err := s.TakeOver(t.Context(), winner); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveClaim(t.Context(), loser.ID, loser.ClaimID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sandbox(t.Context(), loser.TeamID, loser.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("the loser's team sees it: %v", err)
	}
	if _, err := s.Sandbox(t.Context(), winner.TeamID, winner.ID); err != nil {
		t.Fatalf("the loser's undo must not touch the winner's row: %v", err)
	}
}

func TestA16_IdempotencyKeyIsPerTeam(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	team := uuid.New()
	n := newSandbox(t, team)
	n.IdempotencyKey, n.RequestHash = "k", []byte("hash")
	insert(t, s, n)
	same := newSandbox(t, team)
	same.IdempotencyKey = "k"
	if _, err := s.InsertSandbox(t.Context(), same); !errors.Is(err, store.ErrKeyTaken) {
		t.Fatalf("same key, same team: %v", err)
	}
	other := newSandbox(t, uuid.New())
	other.IdempotencyKey = "k"
	insert(t, s, other)
	got, err := s.ClaimByKey(t.Context(), team, "k")
	if err != nil || got.ID != n.ID || string(got.RequestHash) != "hash" {
		t.Fatalf("%+v: %v", got, err)
	}
}

func TestA01_EveryMethodIsTenantScoped(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	team, foreign := uuid.New(), uuid.New()
	sb := insert(t, s, newSandbox(t, team))
	_, getErr := s.Sandbox(t.Context(), foreign, sb.ID)
	_, refreshErr := s.RefreshSandbox(t.Context(), foreign, sb.ID, nil)
	_, deleteErr := s.BeginDelete(t.Context(), foreign, sb.ID, "x")
	for name, err := range map[string]error{"get": getErr, "refresh": refreshErr, "delete": deleteErr} {
		if !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.UpdateSandbox(t.Context(), foreign, sb, store.SandboxUpdate{Config: json.RawMessage(`{}`)}); !errors.Is(err, store.ErrChanged) {
		t.Errorf("update: %v", err)
	}
	if ok, err := s.FailSandbox(t.Context(), foreign, sb, 0, "x"); ok || err != nil {
		t.Errorf("fail: %v %v", ok, err)
	}
	if list, total, err := s.Sandboxes(t.Context(), foreign, store.SandboxFilter{Limit: 10}); err != nil || len(list) != 0 || total != 0 {
		t.Errorf("list: %v %d %v", list, total, err)
	}
	if got, err := s.Sandbox(t.Context(), team, sb.ID); err != nil || got.Status != sandbox.Running || got.UpdatedAt != sb.UpdatedAt {
		t.Errorf("the row must be untouched: %+v %v", got, err)
	}
}

func TestListFiltersAndPages(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	team := uuid.New()
	var ids []sandbox.ID
	for i := range 5 {
		n := newSandbox(t, team)
		if i == 4 {
			n.TemplateID = "other"
		}
		ids = append(ids, insert(t, s, n).ID)
	}
	gone := insert(t, s, newSandbox(t, team))
	if _, err := s.BeginDelete(t.Context(), team, gone.ID, "x"); err != nil {
		t.Fatal(err)
	}
	paused := true
	for _, c := range []struct {
		name  string
		f     store.SandboxFilter
		first sandbox.ID
		n     int
		total int
	}{
		{"newest first", store.SandboxFilter{Limit: 2}, gone.ID, 2, 6},
		{"second page", store.SandboxFilter{Limit: 2, Offset: 4}, ids[1], 2, 6},
		{"beyond the end", store.SandboxFilter{Limit: 2, Offset: 9}, "", 0, 6},
		{"status", store.SandboxFilter{Limit: 10, Status: sandbox.Running}, ids[4], 5, 5},
		{"template", store.SandboxFilter{Limit: 10, TemplateID: "other"}, ids[4], 1, 1},
		{"paused", store.SandboxFilter{Limit: 10, Paused: &paused}, "", 0, 0},
	} {
		list, total, err := s.Sandboxes(t.Context(), team, c.f)
		if err != nil || len(list) != c.n || total != c.total {
			t.Errorf("%s: %d of %d: %v", c.name, len(list), total, err)
			continue
		}
		if c.n > 0 && list[0].ID != c.first {
			t.Errorf("%s: first is %s, want %s", c.name, list[0].ID, c.first)
		}
	}
}

func TestUpdateReplacesGivenKeysOnly(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	team := uuid.New()
	n := newSandbox(t, team)
	n.Config = json.RawMessage(`{"env_vars":{"A":"1"},"auto_resume":false}`)
	n.TTLSeconds = 60
	read := insert(t, s, n)
	zero := int32(0)
	got, err := s.UpdateSandbox(t.Context(), team, read, store.SandboxUpdate{Config: json.RawMessage(`{"env_vars":{"B":"2"}}`), TTL: &zero})
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Config) != `{"env_vars": {"B": "2"}, "auto_resume": false}` || got.ExpiresAt != nil || got.TTLSeconds != 0 {
		t.Fatalf("%s %v", got.Config, got.ExpiresAt)
	}
	if _, err := s.UpdateSandbox(t.Context(), team, read, store.SandboxUpdate{Config: json.RawMessage(`{}`)}); !errors.Is(err, store.ErrChanged) {
		t.Fatalf("an update of a stale read: %v", err)
	}
}

// X34: a failure is of the latest generation that anybody knows, and of a row that nobody
// has changed meanwhile.
func TestX34_AFailureHasTheLatestGeneration(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	team := uuid.New()
	for node, want := range map[sandbox.Generation]sandbox.Generation{0: 2, 1: 2, 2: 2, 5: 5} {
		n := newSandbox(t, team)
		n.Generation = 2
		sb := insert(t, s, n)
		if ok, err := s.FailSandbox(t.Context(), team, sb, node, "oom"); !ok || err != nil {
			t.Fatal(ok, err)
		}
		got, err := s.Sandbox(t.Context(), team, sb.ID)
		if err != nil || got.Status != sandbox.Failed || got.Generation != want {
			t.Errorf("its node knows %d: %s of generation %d (%v), want %d", node, got.Status, got.Generation, err, want)
		}
		if ok, err := s.FailSandbox(t.Context(), team, sb, node+1, "again"); ok || err != nil {
			t.Errorf("what has failed fails again: %v %v", ok, err)
		}
	}
}

func TestDeleteLeavesATombstone(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team := uuid.New()
	sb := insert(t, s, newSandbox(t, team))
	for range 2 {
		if got, err := s.BeginDelete(t.Context(), team, sb.ID, "asked"); err != nil || got.Status != sandbox.Terminating || got.Reason != "asked" {
			t.Fatalf("%+v: %v", got, err)
		}
	}
	if ok, err := s.FailSandbox(t.Context(), team, sb, 0, "late"); ok || err != nil {
		t.Fatalf("G04: a terminating sandbox must not change: %v %v", ok, err)
	}
	if err := s.FinishDelete(t.Context(), team, sb.ID, sb.ClaimID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sandbox(t.Context(), team, sb.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("deleted: %v", err)
	}
	if got, err := s.AnySandbox(t.Context(), sb.ID); err != nil || got.DeletedAt == nil {
		t.Fatalf("tombstone %+v: %v", got, err)
	}
	if err := s.PurgeDeleted(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AnySandbox(t.Context(), sb.ID); err != nil {
		t.Fatalf("a young tombstone must stay: %v", err)
	}
	if err := s.PurgeDeleted(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AnySandbox(t.Context(), sb.ID); err != nil {
		t.Fatalf("what is not metered yet must stay: %v", err)
	}
	meterAll(t, conn)
	if err := s.PurgeDeleted(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AnySandbox(t.Context(), sb.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("purged: %v", err)
	}
}

// G02: of an end by ttl and a refresh at the same moment one wins, by the row.
func TestG02_ExpiryAgainstRefreshHasOneWinner(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team := uuid.New()
	const n = 50
	var all []store.Sandbox
	for range n {
		ns := newSandbox(t, team)
		ns.TTLSeconds, ns.HardTTLSeconds = 1800, 3600
		all = append(all, insert(t, s, ns))
	}
	for column, decide := range map[string]func(context.Context) ([]store.Sandbox, error){
		"hard_expires_at": func(ctx context.Context) ([]store.Sandbox, error) { return s.ExpireSandboxes(ctx, n) },
		"expires_at":      func(ctx context.Context) ([]store.Sandbox, error) { return s.LeaseSoftExpired(ctx, time.Minute, n) },
	} {
		if _, err := conn.Exec(t.Context(), "UPDATE sandboxes SET status = 'running', "+column+" = now() - interval '1 second'"); err != nil {
			t.Fatal(err)
		}
		won := raceExpiry(t, s, all, decide)
		for _, sb := range all {
			got, err := s.Sandbox(t.Context(), team, sb.ID)
			if err != nil {
				t.Fatal(err)
			}
			refreshed := got.HardExpiresAt.Sub(got.UpdatedAt) == time.Hour && got.ExpiresAt.Sub(got.UpdatedAt) == 30*time.Minute
			switch times := won[sb.ID]; {
			case times > 1:
				t.Errorf("%s: decided %d times", column, times)
			case times == 0 && !refreshed:
				t.Errorf("%s: neither expired nor refreshed: %+v", column, got)
			case column == "hard_expires_at" && (times == 1) != (got.Status == sandbox.Terminating):
				t.Errorf("%s: expired %d times, and is %s", column, times, got.Status)
			}
		}
	}
}

// raceExpiry refreshes every sandbox while four replicas look for expired ones, and
// answers how often each was found.
func raceExpiry(t *testing.T, s *store.Store, all []store.Sandbox, decide func(context.Context) ([]store.Sandbox, error)) map[sandbox.ID]int {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[sandbox.ID]int{}
	for _, sb := range all {
		wg.Go(func() {
			_, err := s.RefreshSandbox(t.Context(), sb.TeamID, sb.ID, nil)
			if err != nil && !errdefs.Is(err, errdefs.NotFound) {
				t.Error(err)
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			list, err := decide(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, sb := range list {
				won[sb.ID]++
			}
		})
	}
	wg.Wait()
	return won
}

// G08: a time to live begins with the database's time of the change, and ends by it:
// what the clocks of servers and nodes say is nowhere in it.
func TestG08_TTLsAreTheDatabasesTime(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := newSandbox(t, uuid.New())
	n.TTLSeconds, n.HardTTLSeconds = 60, 120
	check := func(what string, sb store.Sandbox, err error, ttl, hard time.Duration) {
		t.Helper()
		if err != nil || sb.ExpiresAt.Sub(sb.UpdatedAt) != ttl || sb.HardExpiresAt.Sub(sb.UpdatedAt) != hard {
			t.Errorf("%s: %+v, %v", what, sb, err)
		}
	}
	sb, err := s.InsertSandbox(t.Context(), n)
	check("claimed", sb, err, time.Minute, 2*time.Minute)
	sb, err = s.RefreshSandbox(t.Context(), n.TeamID, n.ID, nil)
	check("refreshed", sb, err, time.Minute, 2*time.Minute)
	sb, err = s.RefreshSandbox(t.Context(), n.TeamID, n.ID, new(int32(7)))
	check("refreshed for a time", sb, err, 7*time.Second, 2*time.Minute)
	sb, err = s.UpdateSandbox(t.Context(), n.TeamID, sb, store.SandboxUpdate{Config: []byte(`{}`), TTL: new(int32(30)), HardTTL: new(int32(40))})
	check("updated", sb, err, 30*time.Second, 40*time.Second)
	sb, err = s.UpdateSandbox(t.Context(), n.TeamID, sb, store.SandboxUpdate{Config: []byte(`{}`), TTL: new(int32(0)), HardTTL: new(int32(0))})
	if err != nil || sb.ExpiresAt != nil || sb.HardExpiresAt != nil {
		t.Errorf("switched off: %+v, %v", sb, err)
	}
	sb, err = s.RefreshSandbox(t.Context(), n.TeamID, n.ID, nil)
	if err != nil || sb.ExpiresAt != nil || sb.HardExpiresAt != nil {
		t.Errorf("refreshed what has none: %+v, %v", sb, err)
	}
	// A row from a server whose clock is far off expires by the database's all the same.
	if _, err := conn.Exec(t.Context(), "UPDATE sandboxes SET claimed_at = '2001-01-01', hard_expires_at = now() + interval '1 hour'"); err != nil {
		t.Fatal(err)
	}
	if list, err := s.ExpireSandboxes(t.Context(), 10); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestSandboxesOnPagesByNode(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	for range 3 {
		insert(t, s, newSandbox(t, uuid.New()))
	}
	n := newSandbox(t, uuid.New())
	n.Node = "n2"
	insert(t, s, n)
	var after sandbox.ID
	got := 0
	for {
		page, err := s.SandboxesOn(t.Context(), "n1", after, 0, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		got += len(page)
		after = page[len(page)-1].ID
	}
	if got != 3 {
		t.Fatalf("%d rows, want 3", got)
	}
	young, err := s.SandboxesOn(t.Context(), "n1", "", time.Hour, 10)
	if err != nil || len(young) != 3 || young[0].Settled {
		t.Fatalf("%v: %v", young, err)
	}
	old, err := s.SandboxesOn(t.Context(), "n1", "", 0, 10)
	if err != nil || !old[0].Settled {
		t.Fatalf("%v: %v", old, err)
	}
}

// A01: what is told of a sandbox while its row is taken over, or removed, goes with the row:
// it may be of the sandbox that another team has.
func TestA01_WhatALostClaimWasToldGoesWithIt(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	for name, lose := range map[string]func(lost store.NewSandbox) error{
		"taken over": func(n store.NewSandbox) error {
			n.ClaimID, n.TeamID = uuid.New(), uuid.New()
			_, err := s.TakeOver(t.Context(), n)
			return err
		},
		"removed": func(n store.NewSandbox) error { return s.RemoveClaim(t.Context(), n.ID, n.ClaimID) },
	} {
		lost := newSandbox(t, uuid.New())
		insert(t, s, lost)
		told := beside(t, conn, []any{lost.ID},
			"SELECT FROM sandboxes WHERE id = $1 FOR NO KEY UPDATE",
			`INSERT INTO sandbox_events (team_id, sandbox_id, event_id, type, source, payload, occurred_at, delivery)
				SELECT team_id, id, 'e', 'network.flow', 'netd', '{}', now(), 'none' FROM sandboxes WHERE id = $1`)
		done := meanwhile(t, conn, 1, func() error { return lose(lost) })
		commit(t, told)
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if had, err := s.HadSandbox(t.Context(), lost.TeamID, lost.ID); err != nil || had {
			t.Errorf("%s: the claim that lost is remembered: %v", name, err)
		}
	}
}

// Who takes a row over waits for who changes it, and holds nothing that he needs for it.
func TestATakeOverWaitsForTheRowFirst(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team := newTeam(t, conn)
	setQuota(t, s, team, limit(store.QuotaSandboxes, 1_000))
	lost := newSandbox(t, team)
	insert(t, s, lost)
	changed := beside(t, conn, []any{lost.ID}, "SELECT FROM sandboxes WHERE id = $1 FOR NO KEY UPDATE")
	winner := lost
	winner.ClaimID = uuid.New()
	taken := meanwhile(t, conn, 1, func() error { _, err := s.TakeOver(t.Context(), winner); return err })
	if _, err := changed.Exec(t.Context(), "SELECT FROM team_usage WHERE team_id = $1 FOR UPDATE NOWAIT", team); err != nil {
		t.Fatal(err)
	}
	commit(t, changed)
	if err := <-taken; err != nil {
		t.Error(err)
	}
}
