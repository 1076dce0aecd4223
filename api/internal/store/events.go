package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// Event is something that happened to a sandbox or in it. See
// migrations/0004_events.sql.
type Event struct {
	Seq        int64
	TeamID     uuid.UUID
	SandboxID  sandbox.ID
	EventID    string
	Type       string
	Source     string
	Payload    string // JSON
	OccurredAt time.Time
	IngestedAt time.Time
	Delivery   Delivery
	Attempts   int
	Outcome    string // of the last attempt
}

// Delivery is what became of an event that a webhook shall be told of.
type Delivery string

// The states of a delivery.
const (
	NoDelivery Delivery = "none" // its sandbox has no webhook
	Pending    Delivery = "pending"
	Delivered  Delivery = "delivered"
	Parked     Delivery = "parked" // given up
)

// Sources of events.
const (
	SourceManager = "manager" // the control plane
	SourceProcd   = "procd"   // the sandbox itself
	SourceNetd    = "netd"    // the network daemon, of what the sandbox sends
)

const eventColumns = `seq, team_id, sandbox_id, event_id, type, source, payload, occurred_at, ingested_at,
	delivery, attempts, outcome`

// readyEvent is the payload of sandbox.ready, of the row s.
const readyEvent = `json_build_object('sandbox_id', s.id, 'http_port', 49983)::text`

// EventFilter narrows a list; zero values do not, but for After.
type EventFilter struct {
	After   int64 // events behind this one; -1 is the beginning
	Start   *time.Time
	End     *time.Time
	Types   []string // nil: any
	EventID string
	Limit   int
}

// Events lists what happened to a team's sandbox and in it, in order. That a
// sandbox without a webhook became ready its row tells, not an event of its own:
// its claim has nothing to write but the row.
func (s *Store) Events(ctx context.Context, team uuid.UUID, id sandbox.ID, f EventFilter) ([]Event, error) {
	rows, _ := s.pool.Query(ctx, `
		SELECT `+eventColumns+` FROM (
			SELECT 0::bigint AS seq, s.team_id, s.id AS sandbox_id, 'evt_sandbox_ready_' || s.id AS event_id,
				'sandbox.ready' AS type, 'manager' AS source, `+readyEvent+` AS payload,
				s.claimed_at AS occurred_at, s.claimed_at AS ingested_at, 'none' AS delivery, 0 AS attempts, '' AS outcome
			FROM sandboxes s
			WHERE s.team_id = $1 AND s.id = $2 AND NOT EXISTS (SELECT FROM sandbox_webhooks w WHERE w.sandbox_id = s.id)
			UNION ALL
			SELECT `+eventColumns+` FROM sandbox_events WHERE team_id = $1 AND sandbox_id = $2) e
		WHERE seq > $3 AND ($4::timestamptz IS NULL OR occurred_at >= $4) AND ($5::timestamptz IS NULL OR occurred_at < $5)
		AND ($6::text[] IS NULL OR type = ANY ($6)) AND ($7 = '' OR event_id = $7)
		ORDER BY seq LIMIT $8`, team, id, f.After, f.Start, f.End, f.Types, f.EventID, f.Limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	return list, classify(err, "listing a sandbox's events")
}

// HadSandbox reports whether a team has this sandbox, or had it as long as
// anything is remembered of it.
func (s *Store) HadSandbox(ctx context.Context, team uuid.UUID, id sandbox.ID) (bool, error) {
	var had bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM sandboxes WHERE team_id = $1 AND id = $2)
		OR EXISTS (SELECT FROM sandbox_events WHERE team_id = $1 AND sandbox_id = $2)`, team, id).Scan(&had)
	return had, classify(err, "looking for a sandbox")
}

// NewEvent is something that a sandbox told, or that was told of what it sent.
type NewEvent struct {
	EventID    string
	Type       string
	Payload    string
	OccurredAt time.Time
}

// Bounds of what is kept of a sandbox that tells without end.
const (
	maxPending  = 256    // events that wait for its webhook; more are parked at once
	maxEvents   = 10_000 // of which the newest stay
	trimEvery   = 1_000
	queueIsFull = "too many events were waiting"
)

// AddEvents stores what a sandbox of this claim told; what is stored already
// stays as it is. The team is the row's. It fails with NotFound when the claim
// has no row, or not yet, or one without a webhook.
func (s *Store) AddEvents(ctx context.Context, id sandbox.ID, claim uuid.UUID, list []NewEvent) error {
	const doing = "storing a sandbox's events"
	ids, types, payloads, times := columns(list)
	var told int64
	err := s.pool.QueryRow(ctx, `
		WITH hook AS (
			UPDATE sandbox_webhooks SET told = told + $3, wake_at = coalesce(wake_at, now())
			WHERE sandbox_id = $1 AND claim_id = $2 RETURNING team_id, told
		), waiting AS (
			SELECT count(*) AS n FROM (SELECT FROM sandbox_events
				WHERE sandbox_id = $1 AND delivery = 'pending' LIMIT $8) p
		), added AS (
			INSERT INTO sandbox_events (team_id, sandbox_id, event_id, type, source, payload, occurred_at, delivery, outcome)
			SELECT hook.team_id, $1, e.id, e.type, 'procd', e.payload, e.at,
				CASE WHEN waiting.n + e.n > $8 THEN 'parked' ELSE 'pending' END,
				CASE WHEN waiting.n + e.n > $8 THEN $9 ELSE '' END
			FROM hook, waiting, unnest($4::text[], $5::text[], $6::text[], $7::timestamptz[])
				WITH ORDINALITY AS e (id, type, payload, at, n)
			ORDER BY e.n
			ON CONFLICT (sandbox_id, event_id) DO NOTHING
			RETURNING seq
		)
		SELECT told FROM hook, (SELECT pg_notify('s0_events', $1), count(*) FROM added) told_others`,
		id, claim, len(list), ids, types, payloads, times, maxPending, queueIsFull).Scan(&told)
	if err != nil {
		return found(err, doing, "sandbox")
	}
	if told/trimEvery != (told-int64(len(list)))/trimEvery {
		_, err = s.pool.Exec(ctx, `DELETE FROM sandbox_events WHERE sandbox_id = $1 AND delivery <> 'pending' AND source <> 'netd' AND seq <=
			(SELECT seq FROM sandbox_events WHERE sandbox_id = $1 AND source <> 'netd' ORDER BY seq DESC OFFSET $2 LIMIT 1)`, id, maxEvents)
	}
	return classify(err, doing)
}

// PurgeEvents forgets events older than age.
func (s *Store) PurgeEvents(ctx context.Context, age time.Duration) error {
	return s.purge(ctx, "purging events", `DELETE FROM sandbox_events WHERE seq IN
		(SELECT seq FROM sandbox_events WHERE ingested_at < now() - $1::interval LIMIT $2)`, age)
}

// ListenEvents calls told with a sandbox's id after events of it were stored that
// somebody may wait for, and with "" once at the start. It is a hint: events of
// sandboxes without a webhook come without. It returns when the connection or
// ctx ends.
func (s *Store) ListenEvents(ctx context.Context, told func(id sandbox.ID)) error {
	return s.listen(ctx, "s0_events", func(payload string) { told(sandbox.ID(payload)) })
}

// listen calls f with a channel's notifications, and with "" once at the start.
func (s *Store) listen(ctx context.Context, channel string, f func(payload string)) error {
	conn, err := pgx.ConnectConfig(ctx, s.conns.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("listening for %s: %w", channel, err)
	}
	defer hangUp(ctx, conn)
	if _, err := (bounded{conn}).Exec(ctx, "LISTEN "+channel); err != nil {
		return fmt.Errorf("listening for %s: %w", channel, err)
	}
	f("")
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", channel, err)
		}
		f(n.Payload)
	}
}
