package store_test

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

func run(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// meterAll says that everything that has happened is metered.
func meterAll(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	run(t, conn, "UPDATE metering_progress SET events_until = 'infinity'")
}

// A backlog is purged by statements that each stay small: one for all of it would
// run into the statement timeout and never get anywhere.
func TestABacklogIsPurgedInBatches(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	const rows = 2_500
	u, _ := bootstrap(t, s)
	run(t, conn, `INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config,
			memory_bytes, ttl_seconds, hard_ttl_seconds, deleted_at)
		SELECT 's' || n, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 't', 'n1', 1, 'terminating', '{}', 1, 0, 0, now() - interval '1 hour'
		FROM generate_series(1, $1::int) n`, rows)
	run(t, conn, `INSERT INTO refresh_tokens (hash, family, user_id, expires_at)
		SELECT n::text::bytea, gen_random_uuid(), $2, now() - interval '1 hour' FROM generate_series(1, $1::int) n`, rows, u.ID)
	run(t, conn, `CREATE FUNCTION refuse_many() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF (SELECT count(*) FROM gone) > 1000 THEN RAISE 'one statement deleted too much'; END IF;
			RETURN NULL;
		END $$`)
	for _, table := range []string{"sandboxes", "refresh_tokens"} {
		run(t, conn, "CREATE TRIGGER refuse_many AFTER DELETE ON "+table+" REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION refuse_many()")
	}
	meterAll(t, conn)
	if err := s.PurgeDeleted(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := s.PurgeRefreshTokens(t.Context()); err != nil {
		t.Error(err)
	}
	var left int
	err := conn.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM sandboxes) + (SELECT count(*) FROM refresh_tokens)").Scan(&left)
	if err != nil || left != 0 {
		t.Errorf("%d rows are left, %v", left, err)
	}
}

// A15: a team can have what a list can show, and not one more, however many are
// made at once.
func TestA15_NothingIsBeyondTheEndOfAList(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	u, team := bootstrap(t, s)
	run(t, conn, `INSERT INTO api_keys (team_id, created_by, name, scope, roles, prefix, hash)
		SELECT $1, $2, 'k', 'team', '{}', 'p' || n, '' FROM generate_series(1, 498) n`, team, u.ID)
	run(t, conn, "INSERT INTO templates (template_id, team_id, spec) SELECT 't' || n, $1, '{}' FROM generate_series(1, 498) n", team)
	if err := s.PutPublicTemplate(t.Context(), "default", json.RawMessage("{}"), ""); err != nil {
		t.Fatal(err)
	}
	var keys, templates atomic.Int32
	count := func(made *atomic.Int32, err error) {
		if err == nil {
			made.Add(1)
		} else if !errdefs.Is(err, errdefs.Conflict) {
			t.Error(err)
		}
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			_, err := s.CreateAPIKey(t.Context(), team, store.APIKey{CreatedBy: u.ID, Name: "k", Scope: "team", Roles: []string{}, Prefix: fmt.Sprint("new", n), Hash: []byte("h")}, 0)
			count(&keys, err)
		})
		wg.Go(func() {
			_, err := s.CreateTemplate(t.Context(), team, u.ID, fmt.Sprint("new", n), json.RawMessage("{}"))
			count(&templates, err)
		})
	}
	wg.Wait()
	if keys.Load() != 2 || templates.Load() != 2 {
		t.Errorf("%d keys and %d templates were made where there was room for 2", keys.Load(), templates.Load())
	}
	if list, err := s.APIKeys(t.Context(), team); err != nil || len(list) != 500 {
		t.Errorf("%d keys are listed, %v", len(list), err)
	}
	list, err := s.Templates(t.Context(), team)
	if err != nil || len(list) != 501 || list[500].TemplateID != "default" {
		t.Errorf("%d templates are listed, %v", len(list), err)
	}
	if list, err := s.Templates(t.Context(), uuid.New()); err != nil || len(list) != 1 {
		t.Errorf("another team sees %d templates, %v", len(list), err)
	}
}

// Who adds something to a team that is being deleted hears that there is none.
func TestNothingIsAddedToATeamThatGoes(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	u, team := bootstrap(t, s)
	deleted := beside(t, conn, []any{team}, "DELETE FROM teams WHERE id = $1")
	made := meanwhile(t, conn, 1, func() error {
		_, err := s.CreateTemplate(t.Context(), team, u.ID, "t", json.RawMessage("{}"))
		return err
	})
	commit(t, deleted)
	if err := <-made; !errdefs.Is(err, errdefs.NotFound) {
		t.Error(err)
	}
}
