package store_test

import (
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
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
	if ok, err := s.FailSandbox(t.Context(), foreign, sb, "x"); ok || err != nil {
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

func TestDeleteLeavesATombstone(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	team := uuid.New()
	sb := insert(t, s, newSandbox(t, team))
	for range 2 {
		if got, err := s.BeginDelete(t.Context(), team, sb.ID, "asked"); err != nil || got.Status != sandbox.Terminating || got.Reason != "asked" {
			t.Fatalf("%+v: %v", got, err)
		}
	}
	if ok, err := s.FailSandbox(t.Context(), team, sb, "late"); ok || err != nil {
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
	if _, err := s.AnySandbox(t.Context(), sb.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("purged: %v", err)
	}
}

func TestG02_ExpiryAgainstRefreshHasOneWinner(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team := uuid.New()
	const n = 50
	var all []store.Sandbox
	for range n {
		ns := newSandbox(t, team)
		ns.TTLSeconds = 3600
		all = append(all, insert(t, s, ns))
	}
	if _, err := conn.Exec(t.Context(), "UPDATE sandboxes SET expires_at = now() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	refreshed := make([]bool, n)
	var expired sync.Map
	var expirations atomic.Int32
	var wg sync.WaitGroup
	for i, sb := range all {
		wg.Go(func() {
			_, err := s.RefreshSandbox(t.Context(), team, sb.ID, nil)
			refreshed[i] = err == nil
		})
	}
	for range 4 { // replicas
		wg.Go(func() {
			list, err := s.ExpireSandboxes(t.Context(), n)
			if err != nil {
				t.Error(err)
			}
			for _, sb := range list {
				expired.Store(sb.ID, sb.Reason)
				expirations.Add(1)
			}
		})
	}
	wg.Wait()
	seen := int32(0)
	for i, sb := range all {
		reason, gone := expired.Load(sb.ID)
		if gone {
			seen++
			if reason != "ttl expired" {
				t.Errorf("reason %q", reason)
			}
		}
		got, err := s.Sandbox(t.Context(), team, sb.ID)
		if err != nil {
			t.Fatal(err)
		}
		if gone != (got.Status == sandbox.Terminating) {
			t.Errorf("%s: expired %v, but status %s", sb.ID, gone, got.Status)
		}
		if refreshed[i] && gone && !got.ExpiresAt.Before(time.Now()) {
			t.Errorf("%s: refreshed before it expired, and yet it ends", sb.ID)
		}
	}
	if seen != expirations.Load() {
		t.Errorf("%d expirations of %d sandboxes: one expired twice", expirations.Load(), seen)
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
