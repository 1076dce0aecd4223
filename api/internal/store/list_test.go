package store_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/store"
	"s0.run/internal/sandbox"
)

// Every page of every filter is what sorting all rows gives, whichever end it was
// counted from, and the count is the number of rows.
func TestAListIsItsRowsInOrder(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team := uuid.New()
	states := []sandbox.State{sandbox.Running, sandbox.Running, sandbox.Paused, sandbox.Failed, sandbox.Terminating}
	for n := range 60 {
		run(t, conn, `INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config,
				memory_bytes, ttl_seconds, hard_ttl_seconds, created_at, deleted_at)
			VALUES ('s' || $1::int, CASE $1 % 7 WHEN 0 THEN gen_random_uuid() ELSE $2 END, $2, gen_random_uuid(), 't' || $1 % 3, 'n1', 1, $3, '{}',
				1, 0, 0, now() - ($1 % 20) * interval '1 second', CASE $1 % 11 WHEN 0 THEN now() END)`, n, team, states[n%len(states)])
	}
	yes, no := true, false
	for _, f := range []store.SandboxFilter{
		{}, {Status: sandbox.Running}, {Status: sandbox.Starting}, {TemplateID: "t1"}, {Status: sandbox.Failed, TemplateID: "t2"},
		{Paused: &yes}, {Paused: &no}, {Paused: &yes, Status: sandbox.Running}, {TemplateID: "none"},
	} {
		want := sorted(t, conn, team, f)
		for _, limit := range []int{1, 7, 200} {
			for offset := 0; offset < len(want)+2; offset++ {
				f.Limit, f.Offset = limit, offset
				list, total, err := s.Sandboxes(t.Context(), team, f)
				if err != nil || total != len(want) {
					t.Fatalf("%+v: %d of %d, %v", f, total, len(want), err)
				}
				var got []string
				for _, sb := range list {
					got = append(got, string(sb.ID))
				}
				if page := want[min(offset, len(want)):min(offset+limit, len(want))]; !slices.Equal(got, page) {
					t.Fatalf("%+v: %v, want %v", f, got, page)
				}
			}
		}
	}
}

func sorted(t *testing.T, conn *pgx.Conn, team uuid.UUID, f store.SandboxFilter) []string {
	t.Helper()
	rows, _ := conn.Query(context.Background(), `SELECT id FROM sandboxes WHERE team_id = $1 AND deleted_at IS NULL
		AND ($2 = '' OR status = $2) AND ($3 = '' OR template_id = $3) AND ($4::boolean IS NULL OR (status = 'paused') = $4)
		ORDER BY created_at DESC, id`, team, f.Status, f.TemplateID, f.Paused)
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// The counts are kept by whoever changes rows, in whatever way: they never drift.
func TestCountsDoNotDrift(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	teams := []uuid.UUID{uuid.New(), uuid.New()}
	var rows []store.Sandbox
	for n := range 120 {
		switch row := rand.IntN(max(1, len(rows))); rand.IntN(6) {
		case 0, 1, 2:
			rows = append(rows, insert(t, s, newSandbox(t, teams[n%2])))
		case 3:
			run(t, conn, "UPDATE sandboxes SET status = CASE status WHEN 'running' THEN 'paused' ELSE 'terminating' END WHERE id = (SELECT id FROM sandboxes OFFSET $1::int LIMIT 1)", row)
		case 4:
			run(t, conn, "UPDATE sandboxes SET status = 'terminating', deleted_at = now() WHERE id IN (SELECT id FROM sandboxes OFFSET $1::int LIMIT 2)", row)
		case 5:
			run(t, conn, "DELETE FROM sandboxes WHERE id IN (SELECT id FROM sandboxes OFFSET $1::int LIMIT 2)", row)
		}
	}
	var drifted int
	err := conn.QueryRow(t.Context(), `SELECT count(*) FROM
		(SELECT team_id, template_id, status, sum(n) AS n FROM sandbox_counts GROUP BY 1, 2, 3 HAVING sum(n) <> 0) kept
		FULL JOIN (SELECT team_id, template_id, status, count(*) AS n FROM sandboxes WHERE deleted_at IS NULL GROUP BY 1, 2, 3) counted
		USING (team_id, template_id, status) WHERE kept.n IS DISTINCT FROM counted.n`).Scan(&drifted)
	if err != nil || drifted != 0 {
		t.Errorf("%d counts have drifted, %v", drifted, err)
	}
}
