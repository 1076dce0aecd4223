package store_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// user makes one, straight in the database.
func user(t *testing.T, conn *pgx.Conn, email string) uuid.UUID {
	t.Helper()
	var id uuid.UUID
	if err := conn.QueryRow(t.Context(), "INSERT INTO users (email, name, password_hash) VALUES ($1, 'u', 'x') RETURNING id", email).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// atOnce calls f n times, some at the same time, and counts what succeeds;
// everything else must be a conflict.
func atOnce(t *testing.T, n int, f func(i int) error) int {
	t.Helper()
	var ok atomic.Int32
	var g errgroup.Group
	g.SetLimit(8) // more would only wait for a lock, and on a slow machine too long
	for i := range n {
		g.Go(func() error {
			switch err := f(i); {
			case err == nil:
				ok.Add(1)
			case !errdefs.Is(err, errdefs.Conflict):
				t.Errorf("%d: %v", i, err)
			}
			return nil
		})
	}
	g.Wait()
	return int(ok.Load())
}

// A15: nobody has more teams, and no team more members, than there can be, however
// many are made at once.
func TestA15_TeamsAndMembersAreCounted(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	_, full := bootstrap(t, s)
	owner := user(t, conn, "owner@example.com")
	made := atOnce(t, 30, func(i int) error {
		_, err := s.CreateTeam(t.Context(), store.Team{Name: "t", Slug: fmt.Sprint("t", i), OwnerID: owner, HomeRegionID: "local"})
		return err
	})
	if teams, err := s.Teams(t.Context(), owner); err != nil || made != 20 || len(teams) != 20 {
		t.Errorf("%d teams were made, %d are there: %v", made, len(teams), err)
	}

	run(t, conn, "INSERT INTO users (email, name, password_hash) SELECT 'm' || n || '@example.com', 'm', 'x' FROM generate_series(1, 520) n")
	run(t, conn, `INSERT INTO team_members (team_id, user_id, role)
		SELECT $1, id, 'viewer' FROM users WHERE email LIKE 'm%' ORDER BY email LIMIT 490`, full)
	var free []string
	rows, _ := conn.Query(t.Context(), "SELECT email FROM users WHERE email LIKE 'm%' AND id NOT IN (SELECT user_id FROM team_members)")
	free, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(free) != 30 {
		t.Fatalf("%d: %v", len(free), err)
	}
	added := atOnce(t, len(free), func(i int) error {
		_, err := s.AddMember(t.Context(), full, free[i], "viewer")
		return err
	})
	if list, err := s.Members(t.Context(), full, ""); err != nil || added != 9 || len(list) != 500 { // and the owner
		t.Errorf("%d members were added, %d are listed: %v", added, len(list), err)
	}

	// A user who is in too many teams is added to no other.
	run(t, conn, "INSERT INTO teams (name, slug, owner_id, home_region_id) SELECT 'x', 'x' || n, $1, 'local' FROM generate_series(1, 110) n", owner)
	guest := user(t, conn, "guest@example.com")
	rows, _ = conn.Query(t.Context(), "SELECT id FROM teams WHERE slug LIKE 'x%'")
	teams, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		t.Fatal(err)
	}
	added = atOnce(t, len(teams), func(i int) error {
		_, err := s.AddMember(t.Context(), teams[i], "guest@example.com", "viewer")
		return err
	})
	if grants, err := s.Grants(t.Context(), guest); err != nil || added != 100 || len(grants) != 100 {
		t.Errorf("%d memberships were made, %d are there: %v", added, len(grants), err)
	}
}

// Two who remove each other, hand the team on, or demote: there is always an owner,
// who is a member and an admin.
func TestATeamAlwaysHasAnAdmin(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	a, team := bootstrap(t, s)
	b := user(t, conn, "b@example.com")
	if _, err := s.AddMember(t.Context(), team, "B@example.com", "admin"); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		var wg sync.WaitGroup
		for _, f := range []func(context.Context) error{
			func(ctx context.Context) error { _, err := s.TransferTeam(ctx, team, a.ID, b); return err },
			func(ctx context.Context) error { return s.RemoveMember(ctx, team, b) },
			func(ctx context.Context) error { return s.SetMemberRole(ctx, team, b, "viewer") },
			func(ctx context.Context) error { return s.SetMemberRole(ctx, team, a.ID, "viewer") },
			func(ctx context.Context) error { return s.RemoveMember(ctx, team, a.ID) },
		} {
			wg.Go(func() {
				if err := f(t.Context()); err != nil && !errdefs.Is(err, errdefs.Conflict) && !errdefs.Is(err, errdefs.NotFound) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var sound bool
		err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM teams t JOIN team_members m ON m.team_id = t.id AND m.user_id = t.owner_id
			WHERE t.id = $1 AND m.role = 'admin')`, team).Scan(&sound)
		if err != nil || !sound {
			t.Fatalf("the owner is no admin of the team: %v", err)
		}
		run(t, conn, "INSERT INTO team_members (team_id, user_id, role) VALUES ($1, $2, 'admin'), ($1, $3, 'admin') ON CONFLICT (team_id, user_id) DO UPDATE SET role = 'admin'", team, a.ID, b)
		run(t, conn, "UPDATE teams SET owner_id = $2 WHERE id = $1", team, a.ID)
	}
}

// Two admins of the system who shut each other out: one of them stays.
func TestTheSystemKeepsAnAdmin(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	a, _ := bootstrap(t, s)
	b := user(t, conn, "b@example.com")
	yes := true
	if _, err := s.SetUserRights(t.Context(), b, nil, &yes); err != nil {
		t.Fatal(err)
	}
	ids := []uuid.UUID{a.ID, b}
	if ok := atOnce(t, 2, func(i int) error {
		_, err := s.SetUserRights(t.Context(), ids[i], &yes, nil)
		return err
	}); ok != 1 {
		t.Errorf("%d of two were disabled", ok)
	}
}

// What a member had in a team goes with the membership, and nothing else does.
func TestRemovingAMemberTakesWhatItGave(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	_, team := bootstrap(t, s)
	m := user(t, conn, "m@example.com")
	if _, err := s.AddMember(t.Context(), team, "m@example.com", "admin"); err != nil {
		t.Fatal(err)
	}
	own, err := s.CreateTeam(t.Context(), store.Team{Name: "own", Slug: "own", OwnerID: m, HomeRegionID: "local"})
	if err != nil {
		t.Fatal(err)
	}
	for n, in := range []uuid.UUID{team, own.ID} {
		if _, err := s.AddSSHKey(t.Context(), in, m, store.SSHKey{Name: "k", PublicKey: "k", KeyType: "k", Fingerprint: "f"}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CreateAPIKey(t.Context(), in, store.APIKey{CreatedBy: m, Name: "k", Scope: "team", Roles: []string{"admin"}, Prefix: fmt.Sprint(n), Hash: []byte("h")}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RemoveMember(t.Context(), team, m); err != nil {
		t.Fatal(err)
	}
	for _, in := range []uuid.UUID{team, own.ID} {
		ssh, err := s.SSHKeys(t.Context(), in, m)
		if err != nil || len(ssh) == 1 != (in == own.ID) {
			t.Errorf("%d SSH keys: %v", len(ssh), err)
		}
		api, err := s.APIKeys(t.Context(), in)
		if err != nil || api[0].Active != (in == own.ID) {
			t.Errorf("%+v: %v", api, err)
		}
	}
	if _, err := s.AddSSHKey(t.Context(), team, m, store.SSHKey{Name: "k", Fingerprint: "g"}); !errdefs.Is(err, errdefs.PermissionDenied) {
		t.Errorf("a key of one who is no member: %v", err)
	}
}

// A06: who is being removed from a team leaves no API key that was asked for before.
func TestA06_NoKeyOfAMemberWhoIsBeingRemoved(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	_, team := bootstrap(t, s)
	m := user(t, conn, "m@example.com")
	if _, err := s.AddMember(t.Context(), team, "m@example.com", "admin"); err != nil {
		t.Fatal(err)
	}
	removed := beside(t, conn, []any{team, m},
		"SELECT FROM teams WHERE id = $1 AND $2::uuid IS NOT NULL FOR NO KEY UPDATE",
		"DELETE FROM team_members WHERE team_id = $1 AND user_id = $2")
	made := meanwhile(t, conn, 1, func() error {
		_, err := s.CreateAPIKey(t.Context(), team, store.APIKey{CreatedBy: m, Name: "k", Scope: "team", Roles: []string{"admin"}, Prefix: "p", Hash: []byte("h")}, 0)
		return err
	})
	commit(t, removed)
	if err := <-made; !errdefs.Is(err, errdefs.PermissionDenied) {
		t.Errorf("a key was made: %v", err)
	}
}
