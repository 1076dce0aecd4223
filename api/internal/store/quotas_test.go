package store_test

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// newTeam makes a team straight in the database.
func newTeam(t testing.TB, conn *pgx.Conn) uuid.UUID {
	t.Helper()
	user, team := uuid.New(), uuid.New()
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{"INSERT INTO users (id, email, name, password_hash) VALUES ($1, $2, 'U', 'x')", []any{user, user.String() + "@example.com"}},
		{"INSERT INTO teams (id, name, slug, owner_id, home_region_id) VALUES ($1, 'T', $2, $3, 'local')", []any{team, team.String(), user}},
	} {
		if _, err := conn.Exec(t.Context(), q.sql, q.args...); err != nil {
			t.Fatal(err)
		}
	}
	return team
}

func limit(dimension string, value int64) store.Quota {
	return store.Quota{Dimension: dimension, Limit: &value}
}

func setQuota(t *testing.T, s *store.Store, team uuid.UUID, q store.Quota) {
	t.Helper()
	if err := s.SetQuota(t.Context(), team, q); err != nil {
		t.Fatal(err)
	}
}

// counted is what the database has counted for a team; nil when it does not.
func counted(t *testing.T, conn *pgx.Conn, team uuid.UUID) *[2]int64 {
	t.Helper()
	var c [2]int64
	err := conn.QueryRow(t.Context(), "SELECT sandboxes, memory_bytes FROM team_usage WHERE team_id = $1", team).Scan(&c[0], &c[1])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

func checkCounted(t *testing.T, s *store.Store, conn *pgx.Conn, team uuid.UUID) {
	t.Helper()
	got := counted(t, conn, team)
	u, err := s.Usage(t.Context(), team)
	if err != nil || got == nil || got[0] != u.Sandboxes || got[1] != u.MemoryBytes {
		t.Errorf("counted %v, there are %+v: %v", got, u, err)
	}
	if wrong, err := s.Recount(t.Context()); wrong != 0 || err != nil {
		t.Errorf("recounting repaired %d: %v", wrong, err)
	}
}

func TestA15_ExactlyTheQuotaOverTwoReplicas(t *testing.T) {
	t.Parallel()
	dsn := s0test.Postgres(t)
	var replicas [2]*store.Store
	for i := range replicas {
		var err error
		if replicas[i], err = store.Open(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(replicas[i].Close)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	team := newTeam(t, conn)
	setQuota(t, replicas[0], team, limit(store.QuotaSandboxes, 10))
	var made, refused atomic.Int32
	var wg sync.WaitGroup
	for i := range 100 {
		n := newSandbox(t, team)
		wg.Go(func() {
			r, err := replicas[i%2].Reserve(t.Context()) // as claims do: many rows to a commit
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Release()
			_, err = r.InsertSandbox(t.Context(), n)
			switch e := errdefs.From(err); {
			case err == nil:
				made.Add(1)
			case e.Kind == errdefs.Exhausted && e.Code == "quota_exceeded" && e.RetryAfter > 0 && e.Details["dimension"] == store.QuotaSandboxes && e.Details["limit_value"] == int64(10):
				refused.Add(1)
			default:
				t.Errorf("%v, %+v", err, e)
			}
		})
	}
	wg.Wait()
	if made.Load() != 10 || refused.Load() != 90 {
		t.Errorf("%d made, %d refused", made.Load(), refused.Load())
	}
	checkCounted(t, replicas[0], conn, team)
}

// What is counted follows every way in which a sandbox begins, changes and ends.
func TestA15_WhatIsCountedDoesNotDrift(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team := newTeam(t, conn)
	early := insert(t, s, newSandbox(t, team))
	if counted(t, conn, team) != nil {
		t.Error("a team without a limit is counted")
	}
	setQuota(t, s, team, limit(store.QuotaMemory, 10<<10))
	checkCounted(t, s, conn, team)
	lost, failed, kept := newSandbox(t, team), insert(t, s, newSandbox(t, team)), insert(t, s, newSandbox(t, team))
	insert(t, s, lost)
	insert(t, s, lost) // repeated: one row
	checkCounted(t, s, conn, team)
	winner := lost
	winner.ClaimID, winner.TeamID = uuid.New(), uuid.New()
	if _, err := s.TakeOver(t.Context(), winner); err != nil {
		t.Fatal(err)
	}
	if _, err := s.FailSandbox(t.Context(), team, failed, 0, "oom"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginDelete(t.Context(), team, early.ID, "x"); err != nil {
		t.Fatal(err)
	}
	checkCounted(t, s, conn, team)
	if got := counted(t, conn, team); got[0] != 1 || got[1] != 1<<30 {
		t.Errorf("%v, want one sandbox of 1 GiB", got)
	}
	if err := s.FinishDelete(t.Context(), team, early.ID, early.ClaimID); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveClaim(t.Context(), kept.ID, kept.ClaimID); err != nil {
		t.Fatal(err)
	}
	checkCounted(t, s, conn, team)
	if _, err := conn.Exec(t.Context(), "UPDATE team_usage SET sandboxes = 7"); err != nil {
		t.Fatal(err)
	}
	if wrong, err := s.Recount(t.Context()); wrong != 1 || err != nil {
		t.Errorf("repaired %d: %v", wrong, err)
	}
	checkCounted(t, s, conn, team)
	if err := s.UnsetQuota(t.Context(), team, store.QuotaMemory); err != nil {
		t.Fatal(err)
	}
	if counted(t, conn, team) != nil {
		t.Error("a team without a limit is counted")
	}
	if err := s.UnsetQuota(t.Context(), team, store.QuotaMemory); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("twice: %v", err)
	}
	if err := s.SetQuota(t.Context(), uuid.New(), limit(store.QuotaMemory, 1)); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("no such team: %v", err)
	}
}

// Limits come and go while sandboxes begin and end: none is missed.
func TestA15_LimitsThatComeWhileSandboxesBeginAndEnd(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team := newTeam(t, conn)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 40 {
				sb, err := s.InsertSandbox(t.Context(), newSandbox(t, team))
				if err == nil && i%2 == 0 {
					_, err = s.BeginDelete(t.Context(), team, sb.ID, "x")
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 20 {
		if i%2 == 0 {
			setQuota(t, s, team, limit(store.QuotaSandboxes, 1000))
		} else if err := s.UnsetQuota(t.Context(), team, store.QuotaSandboxes); err != nil {
			t.Error(err)
		}
	}
	setQuota(t, s, team, limit(store.QuotaSandboxes, 1000))
	wg.Wait()
	checkCounted(t, s, conn, team)
	if got := counted(t, conn, team); got[0] != 160 {
		t.Errorf("%v, want 160", got)
	}
}

// A team is deleted while limits come or go: neither waits for the other in a circle,
// wherever the deletion has got to.
func TestLimitsThatChangeWhileATeamGoes(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	goes := func(team uuid.UUID, begun string, change func() error) {
		t.Helper()
		deletion := beside(t, conn, []any{team}, begun)
		changed := meanwhile(t, conn, 1, change)
		if _, err := deletion.Exec(t.Context(), "DELETE FROM teams WHERE id = $1", team); err != nil {
			t.Fatal(err)
		}
		commit(t, deletion)
		if err := <-changed; err != nil && !errdefs.Is(err, errdefs.NotFound) { // it went with the team
			t.Error(err)
		}
	}
	free, limited := newTeam(t, conn), newTeam(t, conn)
	setQuota(t, s, limited, limit(store.QuotaSandboxes, 10))
	goes(limited, "UPDATE teams SET name = 'it goes' WHERE id = $1", func() error {
		return s.UnsetQuota(t.Context(), limited, store.QuotaSandboxes)
	})
	goes(free, "SELECT FROM teams WHERE id = $1 FOR UPDATE", func() error {
		return s.SetQuotaDefaults(t.Context(), []store.Quota{limit(store.QuotaMemory, 1000)})
	})
}

func TestQuotasOfMemoryAndCPU(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	for dimension, value := range map[string]int64{store.QuotaMemory: 3 << 10, store.QuotaCPU: 750} { // both are 3 GiB
		team := newTeam(t, conn)
		setQuota(t, s, team, limit(dimension, value))
		first, big := newSandbox(t, team), newSandbox(t, team)
		big.MemoryBytes = 3 << 30
		sb := insert(t, s, first)
		room, err := s.Room(t.Context(), team)
		if err != nil || len(room) != 1 || room[0].Left != 2<<30 || room[0].Dimension != dimension || room[0].Limit != value {
			t.Errorf("%s: %+v, %v", dimension, room, err)
		}
		if _, err := s.InsertSandbox(t.Context(), big); !errdefs.Is(err, errdefs.Exhausted) || errdefs.From(err).Details["dimension"] != dimension {
			t.Errorf("%s: 1 + 3 GiB of 3: %v", dimension, err)
		}
		grow := func(to int64) error {
			row, err := s.Sandbox(t.Context(), team, sb.ID)
			if err == nil {
				_, err = s.UpdateSandbox(t.Context(), team, row, store.SandboxUpdate{Config: []byte(`{}`), MemoryBytes: &to})
			}
			return err
		}
		if err := grow(4 << 30); !errdefs.Is(err, errdefs.Exhausted) {
			t.Errorf("%s: grown to 4 GiB of 3: %v", dimension, err)
		}
		if err := grow(3 << 30); err != nil {
			t.Errorf("%s: grown to 3 GiB of 3: %v", dimension, err)
		}
		if room, err := s.Room(t.Context(), team); err != nil || room[0].Left != 0 {
			t.Errorf("%s: %+v, %v", dimension, room, err)
		}
		setQuota(t, s, team, limit(dimension, 1)) // below what is used: nothing ends, nothing grows
		if err := grow(2 << 30); err != nil {
			t.Errorf("%s: shrinking: %v", dimension, err)
		}
		if _, err := s.BeginDelete(t.Context(), team, sb.ID, "x"); err != nil {
			t.Errorf("%s: ending: %v", dimension, err)
		}
		checkCounted(t, s, conn, team)
	}
}

func TestDefaultQuotas(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	old, free := newTeam(t, conn), newTeam(t, conn)
	insert(t, s, newSandbox(t, old))
	var wg sync.WaitGroup
	for range 4 { // replicas that start at once
		wg.Go(func() {
			if err := s.SetQuotaDefaults(t.Context(), []store.Quota{limit(store.QuotaSandboxes, 1), limit("egress", 1000)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	setQuota(t, s, free, store.Quota{Dimension: store.QuotaSandboxes}) // none, in spite of the default
	fresh := newTeam(t, conn)
	insert(t, s, newSandbox(t, fresh))
	for name, team := range map[string]uuid.UUID{"old": old, "fresh": fresh} {
		if _, err := s.InsertSandbox(t.Context(), newSandbox(t, team)); !errdefs.Is(err, errdefs.Exhausted) {
			t.Errorf("the %s team's second: %v", name, err)
		}
		if room, err := s.Room(t.Context(), team); err != nil || len(room) != 1 || room[0].Left != 0 {
			t.Errorf("the %s team: %+v, %v", name, room, err)
		}
		checkCounted(t, s, conn, team)
	}
	insert(t, s, newSandbox(t, free))
	insert(t, s, newSandbox(t, free))
	if list, err := s.Quotas(t.Context(), free); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := s.SetQuotaDefaults(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	insert(t, s, newSandbox(t, old))
	if counted(t, conn, old) != nil {
		t.Error("still counted")
	}
}

// A default of traffic holds for every team, whatever else is limited, that has none of its own.
func TestADefaultOfTrafficHolds(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team, own := newTeam(t, conn), newTeam(t, conn)
	setQuota(t, s, own, store.Quota{Dimension: store.QuotaEgress})
	if err := s.SetQuotaDefaults(t.Context(), []store.Quota{limit(store.QuotaEgress, 10)}); err != nil {
		t.Fatal(err)
	}
	sent := func(egress int64) []store.TeamTraffic {
		t.Helper()
		for _, team := range []uuid.UUID{team, own} {
			if _, err := conn.Exec(t.Context(), `INSERT INTO metering_counts (sandbox_id, hour, team_id, ingress_bytes, egress_bytes, rootfs_byte_ms)
				VALUES (gen_random_uuid(), date_trunc('hour', now() + interval '1 hour', 'UTC'), $1, 100, $2, 0)`, team, egress); err != nil {
				t.Fatal(err)
			}
		}
		used, err := s.UsedTraffic(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return used
	}
	if used := sent(9); len(used) != 0 {
		t.Errorf("below it: %v", used)
	}
	if used := sent(1); !slices.Equal(used, []store.TeamTraffic{{Team: team, Dimension: store.QuotaEgress}}) {
		t.Errorf("at it: %v", used)
	}
}

// A batch of claims of which one goes too far harms none of the others.
func TestA15_OneRefusalInABatch(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	full, other := newTeam(t, conn), newTeam(t, conn)
	setQuota(t, s, full, limit(store.QuotaSandboxes, 0))
	var wg sync.WaitGroup
	var stored sync.Map
	for i := range 48 {
		n := newSandbox(t, []uuid.UUID{full, other}[i%2])
		wg.Go(func() {
			r, err := s.Reserve(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Release()
			sb, err := r.InsertSandbox(t.Context(), n)
			if (err == nil) != (n.TeamID == other) {
				t.Errorf("%v", err)
			}
			stored.Store(sb.ID, err)
		})
	}
	wg.Wait()
	list, total, err := s.Sandboxes(t.Context(), other, store.SandboxFilter{Limit: 100})
	if err != nil || total != 24 || len(list) != 24 || list[0].Status != sandbox.Running {
		t.Errorf("%d, %v", total, err)
	}
}

// Claims of two limited teams that take over from each other don't wait for each other.
func TestTakeOversOfTwoTeamsPassEachOther(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	teams := [2]uuid.UUID{newTeam(t, conn), newTeam(t, conn)}
	for _, team := range teams {
		setQuota(t, s, team, limit(store.QuotaSandboxes, 1_000))
	}
	for range 20 {
		lost := [2]store.NewSandbox{newSandbox(t, teams[0]), newSandbox(t, teams[1])}
		var errs [2]error
		var wg sync.WaitGroup
		for i, n := range lost {
			insert(t, s, n)
			n.ClaimID, n.TeamID = uuid.New(), teams[1-i]
			wg.Go(func() { _, errs[i] = s.TakeOver(t.Context(), n) })
		}
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
	}
	for _, team := range teams {
		if c := counted(t, conn, team); c == nil || c[0] != 20 {
			t.Errorf("%v sandboxes are counted, want 20", c)
		}
	}
}
