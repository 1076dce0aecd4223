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
	sql, args := pageSQL(ranges, newest, skip, limit)
	rows, _ := s.pool.Query(ctx, sql, append([]any{team, f.TemplateID}, args...)...)
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

// pageSQL reads a page of the rows in the given states, counted from the newest
// or from the oldest, and newest first in any case; its arguments follow the team
// and the template. Each state is an ordered range of the index sandboxes_page, and
// the ranges are merged; only what is on the page is read from the table. The limit
// of each range is no news: without it the planner does not see that they are in
// order, and sorts them all.
//
// Merging costs more than passing by. Of the rows before the page, a state has at
// least as many as the others together leave over: so many of its first ones are
// before the page, and are passed by in its range.
func pageSQL(states []stateRange, newest bool, skip, limit int) (string, []any) {
	order := "created_at DESC, id"
	if !newest {
		order = "created_at, id DESC"
	}
	total := 0
	for _, s := range states {
		total += s.Rows
	}
	ranges, bounds, passed := make([]string, len(states)), []any{}, 0
	for i, s := range states {
		pass := max(0, skip-(total-s.Rows))
		passed += pass
		bounds = append(bounds, skip+limit-pass, pass)
		ranges[i] = fmt.Sprintf(`(SELECT id, created_at FROM sandboxes
			WHERE team_id = $1 AND status = '%s' AND deleted_at IS NULL AND ($2 = '' OR template_id = $2)
			ORDER BY %s LIMIT $%d::bigint OFFSET $%d::bigint)`, s.State, order, 2*i+5, 2*i+6)
	}
	return "SELECT " + listColumns + ` FROM sandboxes WHERE id IN (
		SELECT id FROM (` + strings.Join(ranges, " UNION ALL ") + `) page ORDER BY ` + order + ` LIMIT $3 OFFSET $4)
		ORDER BY created_at DESC, id`, append([]any{limit, skip - passed}, bounds...)
}
