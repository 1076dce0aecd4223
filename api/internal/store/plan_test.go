package store

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/s0test"
)

// A page must come from ordered ranges of its index: a plan that sorts all of a
// team's rows would be right, too, and take a hundred times as long.
func TestAPageIsMergedFromItsIndex(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	team := uuid.New()
	if _, err := s.conns.Exec(t.Context(), `INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config,
			memory_bytes, ttl_seconds, hard_ttl_seconds, created_at)
		SELECT 's' || n, $1, $1, gen_random_uuid(), 't', 'n1', 1, CASE n % 9 WHEN 0 THEN 'failed' ELSE 'running' END, '{}', 1, 0, 0, now() - n * interval '1 second'
		FROM generate_series(1, 5000) n`, team); err != nil {
		t.Fatal(err)
	}
	if _, err := s.conns.Exec(t.Context(), "VACUUM ANALYZE sandboxes"); err != nil {
		t.Fatal(err)
	}
	ranges, total, err := s.ranges(t.Context(), team, SandboxFilter{})
	if err != nil || total != 5_000 || len(ranges) != 2 {
		t.Fatalf("%v, %d in all, %v", ranges, total, err)
	}
	for _, template := range []string{"", "t"} {
		for _, newest := range []bool{true, false} {
			sql, args := pageSQL(team, template, ranges, page{newest, 1_000, 50})
			rows, _ := s.conns.Query(t.Context(), "EXPLAIN "+sql, args...)
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			plan := strings.Join(lines, "\n")
			if !strings.Contains(plan, "Merge Append") || strings.Count(plan, "using sandboxes_page") != len(ranges) || strings.Contains(plan, "Filter") != (template != "") {
				t.Errorf("template=%q newest=%v:\n%s", template, newest, plan)
			}
		}
	}
}

// What is passed by in its range is not merged.
func TestAPagePassesByWhatIsBeforeIt(t *testing.T) {
	t.Parallel()
	team := uuid.New()
	_, args := pageSQL(team, "", []stateRange{{"running", 99_900}, {"failed", 100}}, page{true, 50_000, 50})
	if want := []any{team, 50, 100, 150, 49_900, 50_050, 0}; !slices.Equal(args, want) {
		t.Errorf("%v, want %v", args, want)
	}
	_, args = pageSQL(team, "t", []stateRange{{"running", 600}, {"failed", 400}}, page{true, 300, 50})
	if want := []any{team, 50, 300, "t", 350, 0, 350, 0}; !slices.Equal(args, want) {
		t.Errorf("%v, want %v", args, want)
	}
}

// What a team has sent in a month is added up from an index, beside all else that its
// sandboxes used.
func TestTrafficIsAddedUpFromItsIndex(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, sql := range []string{
		`WITH u AS (INSERT INTO users (id, email, name, password_hash) VALUES (gen_random_uuid(), 'u@example.com', 'U', 'x') RETURNING id)
			INSERT INTO teams (id, name, slug, owner_id, home_region_id) SELECT gen_random_uuid(), 'T', 't' || n, id, 'local' FROM u, generate_series(1, 20) n`,
		`INSERT INTO team_quotas (team_id, dimension, limit_value) SELECT id, 'egress', 1000000 FROM teams`,
		`INSERT INTO metering_windows (window_type, team_id, sandbox_id, window_start, window_end, value, unit)
			SELECT w, t.id, t.slug || n % 3, h, h, 1, 'bytes' FROM teams t, (VALUES ('sandbox.egress_bytes'), ('sandbox.ingress_bytes'), ('other')) x(w),
			LATERAL (SELECT n, date_trunc('hour', now(), 'UTC') - n * interval '1 hour' AS h FROM generate_series(1, 500) n) y`,
		"VACUUM ANALYZE metering_windows",
	} {
		if _, err := s.conns.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	rows, _ := s.conns.Query(t.Context(), "EXPLAIN "+usedTrafficSQL, QuotaEgress, QuotaIngress, WindowEgress, WindowIngress, 60_000)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if plan := strings.Join(lines, "\n"); !strings.Contains(plan, "metering_windows_sum") {
		t.Error(plan)
	}
}
