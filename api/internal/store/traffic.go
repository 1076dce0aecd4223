package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// TeamTraffic is one direction of a team's traffic, [QuotaEgress] or [QuotaIngress].
type TeamTraffic struct {
	Team      uuid.UUID
	Dimension string
}

// usedTrafficSQL counts by the hour, as it is kept: what began before the interval did
// counts until its hour is out of it, so that a limit is never held for too little. A
// limit without an interval is of the calendar's month.
const usedTrafficSQL = `
	WITH limits AS (
		SELECT team_id, dimension, limit_value, interval_ms FROM team_quotas
		UNION ALL SELECT t.id, d.dimension, d.limit_value, d.interval_ms FROM quota_defaults d, teams t
			WHERE NOT EXISTS (SELECT FROM team_quotas q WHERE q.team_id = t.id AND q.dimension = d.dimension)
	), long AS (
		SELECT *, CASE WHEN interval_ms IS NULL THEN date_trunc('month', now(), 'UTC')
			ELSE date_trunc('hour', now() - interval_ms * interval '1 millisecond', 'UTC') END AS since
		FROM limits WHERE dimension IN ($1, $2) AND limit_value IS NOT NULL AND (interval_ms IS NULL OR interval_ms > $5)
	)
	SELECT team_id, dimension FROM long l WHERE limit_value <=
		(SELECT coalesce(sum(value), 0) FROM metering_windows w WHERE w.team_id = l.team_id
			AND w.window_type = CASE l.dimension WHEN $1 THEN $3 ELSE $4 END AND w.window_start >= l.since)
		+ (SELECT coalesce(sum(CASE l.dimension WHEN $1 THEN egress_bytes ELSE ingress_bytes END), 0) FROM metering_counts c
			WHERE c.team_id = l.team_id AND c.hour >= l.since)
	ORDER BY team_id, dimension`

// UsedTraffic lists the teams that have sent or received as much as they may, of those
// whose limit is for longer than an interval.
func (s *Store) UsedTraffic(ctx context.Context, longer time.Duration) ([]TeamTraffic, error) {
	rows, _ := s.pool.Query(ctx, usedTrafficSQL, QuotaEgress, QuotaIngress, WindowEgress, WindowIngress, longer.Milliseconds())
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[TeamTraffic])
	return list, classify(err, "adding up what teams have sent and received")
}
