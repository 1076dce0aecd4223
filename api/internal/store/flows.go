package store

import (
	"context"
	"time"

	"s0.run/internal/sandbox"
)

const (
	// maxFlows is how many records of flows are kept of a sandbox, the newest: beside
	// its other events, which they never push out.
	maxFlows = 10_000
	// trimFlowsEvery is how seldom those beyond are removed, in numbers of events of all
	// sandboxes: it takes a walk over all of them, and who tells most is likeliest to
	// have its turn.
	trimFlowsEvery = 1000
)

// FlowsOf says whose a batch of records is, in the words of a node.
type FlowsOf struct {
	Node       string
	Sandbox    sandbox.ID
	Generation sandbox.Generation
}

// AddFlows stores records of flows; what is stored already stays as it is. The team is
// the row's. It fails with NotFound when the sandbox has no row, or not yet, or has
// never been that node's in that generation.
func (s *Store) AddFlows(ctx context.Context, of FlowsOf, list []NewEvent) error {
	const doing = "storing records of flows"
	ids, types, payloads, times := columns(list)
	var owners, added, last int64
	// The locks are those of whoever else numbers events of the sandbox, in their order.
	err := s.pool.QueryRow(ctx, `
		WITH s AS MATERIALIZED (
			SELECT id, team_id FROM sandboxes WHERE id = $1 AND (generation > $3 OR generation = $3 AND node = $2)
			FOR NO KEY UPDATE
		), hook AS MATERIALIZED (
			SELECT w.sandbox_id FROM s JOIN sandbox_webhooks w ON w.sandbox_id = s.id FOR UPDATE OF w
		), added AS (
			INSERT INTO sandbox_events (team_id, sandbox_id, event_id, type, source, payload, occurred_at, delivery)
			SELECT s.team_id, s.id, e.id, e.type, 'netd', e.payload, e.at, 'none'
			FROM s LEFT JOIN hook ON true, unnest($4::text[], $5::text[], $6::text[], $7::timestamptz[])
				WITH ORDINALITY AS e (id, type, payload, at, n)
			ORDER BY e.n
			ON CONFLICT (sandbox_id, event_id) DO NOTHING
			RETURNING seq
		)
		SELECT (SELECT count(*) FROM s), count(*), coalesce(max(seq), 0) FROM added`,
		of.Sandbox, of.Node, of.Generation, ids, types, payloads, times).Scan(&owners, &added, &last)
	if err == nil && owners == 0 {
		return notFound("sandbox")
	}
	if err == nil && last/trimFlowsEvery != (last-added)/trimFlowsEvery {
		err = s.trimFlows(ctx, of.Sandbox)
	}
	return classify(err, doing)
}

func (s *Store) trimFlows(ctx context.Context, id sandbox.ID) error {
	_, err := s.pool.Exec(ctx, `DELETE FROM sandbox_events WHERE sandbox_id = $1 AND source = 'netd' AND seq <=
		(SELECT seq FROM sandbox_events WHERE sandbox_id = $1 AND source = 'netd' ORDER BY seq DESC OFFSET $2 LIMIT 1)`, id, maxFlows)
	return err
}

// columns are a batch's, for unnest.
func columns(list []NewEvent) (ids, types, payloads []string, times []time.Time) {
	for _, e := range list {
		ids, types, payloads, times = append(ids, e.EventID), append(types, e.Type), append(payloads, e.Payload), append(times, e.OccurredAt)
	}
	return ids, types, payloads, times
}
