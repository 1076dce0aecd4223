package store

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// NewWebhook is where a claim wants to be told of events.
type NewWebhook struct {
	URL         string
	Secret      Secret
	Destination string // host:port of the URL
	WatchDir    string
}

// Secret is a tenant's word that is used and never shown: whatever prints it says
// so. Converting it is the one way to its text.
type Secret string

const redacted = "REDACTED"

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return redacted }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// WebhookLease is the right to deliver one sandbox's events, for a while.
type WebhookLease struct {
	SandboxID   sandbox.ID
	TeamID      uuid.UUID
	Token       uuid.UUID
	URL         string
	Secret      Secret
	Destination string
}

// LeaseWebhook takes the webhook that has waited longest for its delivery, of any
// team but the given ones and to any destination but the given ones. Others take
// others meanwhile. It reports false when there is none.
func (s *Store) LeaseWebhook(ctx context.Context, life time.Duration, notTeams []uuid.UUID, notDestinations []string) (WebhookLease, bool, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE sandbox_webhooks SET leased_until = now() + $1::interval, lease = gen_random_uuid(), wake_at = NULL
		WHERE sandbox_id = (
			SELECT sandbox_id FROM sandbox_webhooks
			WHERE coalesce(leased_until, wake_at) <= now() AND team_id <> ALL ($2) AND destination <> ALL ($3)
			ORDER BY coalesce(leased_until, wake_at) LIMIT 1
			FOR UPDATE SKIP LOCKED)
		RETURNING sandbox_id, team_id, lease, url, secret, destination`, life, notTeams, notDestinations)
	l, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[WebhookLease])
	if errors.Is(err, pgx.ErrNoRows) {
		return WebhookLease{}, false, nil
	}
	return l, err == nil, classify(err, "leasing a webhook")
}

// NextWebhook is in how long the next webhook wants to be leased; false if none
// does as far as is known now.
func (s *Store) NextWebhook(ctx context.Context) (time.Duration, bool, error) {
	var in *time.Duration
	err := s.pool.QueryRow(ctx, `
		SELECT min(coalesce(leased_until, wake_at)) - now() FROM sandbox_webhooks
		WHERE coalesce(leased_until, wake_at) IS NOT NULL`).Scan(&in)
	if err != nil || in == nil {
		return 0, false, classify(err, "looking for the next webhook")
	}
	return *in, true, nil
}

// PendingEvents lists the first events that a sandbox's webhook is to be told of.
// Whoever holds its lease reads them after taking it: what is stored later wakes
// the webhook again.
func (s *Store) PendingEvents(ctx context.Context, id sandbox.ID, limit int) ([]Event, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+eventColumns+` FROM sandbox_events
		WHERE sandbox_id = $1 AND delivery = 'pending' ORDER BY seq LIMIT $2`, id, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	return list, classify(err, "reading a webhook's events")
}

// RecordAttempt records what came of telling a webhook an event. The state stays
// Pending when it shall be tried again.
func (s *Store) RecordAttempt(ctx context.Context, seq int64, state Delivery, outcome string) error {
	_, err := s.pool.Exec(ctx, `UPDATE sandbox_events SET attempts = attempts + 1, delivery = $2, outcome = $3
		WHERE seq = $1 AND delivery = 'pending'`, seq, state, outcome)
	return classify(err, "recording a delivery")
}

// ReleaseWebhook ends a lease. The webhook wants to be leased again after a
// while if again is set, else when there are new events. A lease that another
// has taken over is left alone.
func (s *Store) ReleaseWebhook(ctx context.Context, l WebhookLease, again *time.Duration) error {
	_, err := s.pool.Exec(ctx, `UPDATE sandbox_webhooks SET leased_until = NULL, lease = NULL,
		wake_at = CASE WHEN $3::interval IS NULL THEN wake_at ELSE now() + $3::interval END
		WHERE sandbox_id = $1 AND lease = $2`, l.SandboxID, l.Token, again)
	return classify(err, "releasing a webhook")
}
