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
// The counts are kept, not counted. A page is found from the end of the list that
// is nearer.
func (s *Store) Sandboxes(ctx context.Context, team uuid.UUID, f SandboxFilter) ([]Sandbox, int, error) {
	const doing = "listing sandboxes"
	ranges, total, err := s.ranges(ctx, team, f)
	limit := min(f.Limit, total-f.Offset)
	if err != nil || limit <= 0 {
		return nil, max(total, 0), classify(err, doing)
	}
	skip, newest := f.Offset, true
	if after := total - f.Offset - limit; after < f.Offset {
		skip, newest = after, false
	}
	sql, args := pageSQL(team, f.TemplateID, ranges, page{newest, skip, limit})
	rows, _ := s.pool.Query(ctx, sql, args...)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	return list, total, classify(err, doing)
}

// stateRange is how many rows there are in a state.
type stateRange struct {
	State sandbox.State
	Rows  int
}

// ranges counts, by state, what a filter lets through.
func (s *Store) ranges(ctx context.Context, team uuid.UUID, f SandboxFilter) (list []stateRange, total int, err error) {
	rows, _ := s.pool.Query(ctx, `SELECT status, sum(n)::bigint FROM sandbox_counts
		WHERE team_id = $1 AND ($2 = '' OR template_id = $2) AND status = ANY ($3) GROUP BY status HAVING sum(n) > 0 ORDER BY status`,
		team, f.TemplateID, f.states())
	list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[stateRange])
	for _, r := range list {
		total += r.Rows
	}
	return list, total, err
}

// page is rows counted from the newest or from the oldest.
type page struct {
	newest      bool
	skip, limit int
}

// pageSQL reads a page of a team's rows in the given states, and of a template unless
// that is empty, newest first in any case. Each state is an ordered range of the index
// sandboxes_page, and the ranges are merged; only what is on the page is read from the
// table. The limit of each range is no news: without it the planner does not see that
// they are in order, and sorts them all.
//
// Merging costs more than passing by. Of the rows before the page, a state has at
// least as many as the others together leave over: so many of its first ones are
// before the page, and are passed by in its range. A row that is passed by costs so
// little that asking it for its template would be a third of it: where none is asked
// for, the statement does not say so.
func pageSQL(team uuid.UUID, template string, states []stateRange, p page) (string, []any) {
	order := "created_at DESC, id"
	if !p.newest {
		order = "created_at, id DESC"
	}
	args, of := []any{team, p.limit, 0}, ""
	if template != "" {
		args, of = append(args, template), "AND template_id = $4"
	}
	total, passed := 0, 0
	for _, s := range states {
		total += s.Rows
	}
	ranges := make([]string, len(states))
	for i, s := range states {
		pass := max(0, p.skip-(total-s.Rows))
		passed += pass
		args = append(args, p.skip+p.limit-pass, pass)
		ranges[i] = fmt.Sprintf(`(SELECT id, created_at FROM sandboxes
			WHERE team_id = $1 AND status = '%s' AND deleted_at IS NULL %s
			ORDER BY %s LIMIT $%d::bigint OFFSET $%d::bigint)`, s.State, of, order, len(args)-1, len(args))
	}
	args[2] = p.skip - passed
	return "SELECT " + listColumns + ` FROM sandboxes WHERE id IN (
		SELECT id FROM (` + strings.Join(ranges, " UNION ALL ") + `) page ORDER BY ` + order + ` LIMIT $2 OFFSET $3)
		ORDER BY created_at DESC, id`, args
}
