package store

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Rates of traffic that a team's sandboxes together and each of them are limited to.
const (
	QuotaEgress         = "egress"
	QuotaIngress        = "ingress"
	QuotaSandboxEgress  = "sandbox_egress"
	QuotaSandboxIngress = "sandbox_ingress"
)

// TeamQuota is a limit of a team, or with no team every other one's.
type TeamQuota struct {
	TeamID *uuid.UUID
	Quota
}

// TrafficQuotas lists the limits of traffic of all teams that have some of their own,
// and the defaults.
func (s *Store) TrafficQuotas(ctx context.Context) ([]TeamQuota, error) {
	rows, _ := s.pool.Query(ctx, `
		SELECT NULL::uuid, dimension, limit_value, interval_ms, burst_value FROM quota_defaults WHERE dimension = ANY ($1)
		UNION ALL SELECT team_id, dimension, limit_value, interval_ms, burst_value FROM team_quotas WHERE dimension = ANY ($1)`,
		[]string{QuotaEgress, QuotaIngress, QuotaSandboxEgress, QuotaSandboxIngress})
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (q TeamQuota, err error) {
		q.Own = true
		return q, row.Scan(&q.TeamID, &q.Dimension, &q.Limit, &q.IntervalMS, &q.Burst)
	})
	return list, classify(err, "reading the limits of traffic")
}
