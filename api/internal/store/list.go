package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// SandboxFilter narrows a list; zero values do not.
type SandboxFilter struct {
	Status     sandbox.State
	TemplateID string
	Paused     *bool
	Limit      int
	Offset     int
}

// storedStates are the states that a row can have.
var storedStates = []sandbox.State{sandbox.Starting, sandbox.Running, sandbox.Paused, sandbox.Terminating, sandbox.Failed}

// states are the states of what the filter lets through.
func (f SandboxFilter) states() []sandbox.State {
	return slices.DeleteFunc(slices.Clone(storedStates), func(s sandbox.State) bool {
		return f.Status != "" && s != f.Status || f.Paused != nil && (s == sandbox.Paused) != *f.Paused
	})
}

// Sandboxes lists a team's sandboxes, newest first and without their configs, and
// counts all that match.
//
// The count is kept, not counted. A page is found from the end of the list that
// is nearer.
func (s *Store) Sandboxes(ctx context.Context, team uuid.UUID, f SandboxFilter) ([]Sandbox, int, error) {
	const doing = "listing sandboxes"
	states := f.states()
	var total int
	err := s.pool.QueryRow(ctx, `SELECT coalesce(sum(n), 0)::bigint FROM sandbox_counts
		WHERE team_id = $1 AND ($2 = '' OR template_id = $2) AND status = ANY ($3)`, team, f.TemplateID, states).Scan(&total)
	limit := min(f.Limit, total-f.Offset)
	if err != nil || limit <= 0 {
		return nil, max(total, 0), classify(err, doing)
	}
	skip, newest := f.Offset, true
	if after := total - f.Offset - limit; after < f.Offset {
		skip, newest = after, false
	}
	rows, _ := s.pool.Query(ctx, pageSQL(states, newest), team, f.TemplateID, limit, skip)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	return list, total, classify(err, doing)
}

// pageSQL reads a page of the rows in the given states, counted from the newest
// or from the oldest, and newest first in any case. Each state is an ordered range
// of the index sandboxes_page, and the ranges are merged; only what is on the page
// is read from the table. The limit of each range is no news: without it the
// planner does not see that they are in order, and sorts them all.
func pageSQL(states []sandbox.State, newest bool) string {
	order := "created_at DESC, id"
	if !newest {
		order = "created_at, id DESC"
	}
	ranges := make([]string, len(states))
	for i, state := range states {
		ranges[i] = fmt.Sprintf(`(SELECT id, created_at FROM sandboxes
			WHERE team_id = $1 AND status = '%s' AND deleted_at IS NULL AND ($2 = '' OR template_id = $2)
			ORDER BY %s LIMIT $3::bigint + $4::bigint)`, state, order)
	}
	return "SELECT " + listColumns + ` FROM sandboxes WHERE id IN (
		SELECT id FROM (` + strings.Join(ranges, " UNION ALL ") + `) page ORDER BY ` + order + ` LIMIT $3 OFFSET $4)
		ORDER BY created_at DESC, id`
}
