package store

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"s0.run/internal/errdefs"
)

// Limits that the database enforces; see migrations/0007_quotas.sql.
const (
	QuotaSandboxes = "active_sandboxes"
	QuotaCPU       = "cpu_millicpu"
	QuotaMemory    = "memory_mib"
)

const (
	stateQuotaExceeded    = "S0Q01"
	stateForeignViolation = "23503"

	// quotaRetryAfter is when a team may have ended something.
	quotaRetryAfter = 5 * time.Second

	bytesPerMiB = 1 << 20
	bytesPerCPU = 4 << 30 // a CPU comes with so much memory
)

// Quota is a limit of one dimension, of a team or for every team without one.
type Quota struct {
	Dimension  string
	Limit      *int64 // nil: none
	IntervalMS *int64 // of a rate
	Burst      *int64 // of a rate
	Own        bool   // the team's own, not the default
}

const (
	ownQuotas = `SELECT q.dimension, q.limit_value, q.interval_ms, q.burst_value, true FROM team_quotas q WHERE q.team_id = $1`
	allQuotas = ownQuotas + `
		UNION ALL SELECT d.dimension, d.limit_value, d.interval_ms, d.burst_value, false FROM quota_defaults d
		WHERE NOT EXISTS (SELECT FROM team_quotas q WHERE q.team_id = $1 AND q.dimension = d.dimension)`
)

// Quotas reads the limits that hold for a team.
func (s *Store) Quotas(ctx context.Context, team uuid.UUID) ([]Quota, error) {
	rows, _ := s.pool.Query(ctx, allQuotas, team)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Quota])
	return list, classify(err, "reading a team's quotas")
}

// Usage is what a team uses at the moment.
type Usage struct {
	Sandboxes    int64
	MemoryBytes  int64
	IngressBytes int64 // since the month began
	EgressBytes  int64 // since the month began
	Snapshots    int64 // bytes, of sandboxes and of volumes
	Volumes      int64 // bytes
}

// CPUMillis is the CPU that comes with the memory, rounded up.
func (u Usage) CPUMillis() int64 { return (u.MemoryBytes*1000 + bytesPerCPU - 1) / bytesPerCPU }

// MemoryMiB is the memory in MiB, rounded up.
func (u Usage) MemoryMiB() int64 { return (u.MemoryBytes + bytesPerMiB - 1) / bytesPerMiB }

// SnapshotUnits is what snapshots take in units of their quota, rounded up.
func (u Usage) SnapshotUnits() int64 { return (u.Snapshots + snapshotUnit - 1) / snapshotUnit }

// VolumeUnits is what volumes hold in units of their quota, rounded up.
func (u Usage) VolumeUnits() int64 { return (u.Volumes + snapshotUnit - 1) / snapshotUnit }

// Usage adds up what a team uses, from the sandboxes themselves.
func (s *Store) Usage(ctx context.Context, team uuid.UUID) (Usage, error) {
	var u Usage
	err := s.pool.QueryRow(ctx, `
		WITH month AS (SELECT date_trunc('month', now(), 'UTC') AS began), traffic AS (
			SELECT window_type AS type, value FROM metering_windows, month
			WHERE team_id = $1 AND window_type IN ($2, $3) AND window_start >= began
			UNION ALL SELECT $2, ingress_bytes FROM metering_counts, month WHERE team_id = $1 AND hour >= began
			UNION ALL SELECT $3, egress_bytes FROM metering_counts, month WHERE team_id = $1 AND hour >= began)
		SELECT count(*), coalesce(sum(memory_bytes), 0)::bigint,
			(SELECT coalesce(sum(value), 0)::bigint FROM traffic WHERE type = $2),
			(SELECT coalesce(sum(value), 0)::bigint FROM traffic WHERE type = $3),
			s0_snapshot_bytes($1)::bigint,
			(SELECT coalesce(sum(bytes), 0)::bigint FROM volumes WHERE team_id = $1 AND state <> 'deleting')
		FROM sandboxes WHERE team_id = $1 AND deleted_at IS NULL AND s0_uses(status)`,
		team, WindowIngress, WindowEgress).Scan(&u.Sandboxes, &u.MemoryBytes, &u.IngressBytes, &u.EgressBytes, &u.Snapshots, &u.Volumes)
	return u, classify(err, "adding up what a team uses")
}

// Room is what is left to a team of a limit.
type Room struct {
	Dimension string
	Limit     int64
	Left      int64 // sandboxes, or bytes of memory; may be negative
}

// Room reads what is left to a team, of each limit of its sandboxes; nothing for a
// team without such limits. It is a hint: a claim's row is refused in its own
// transaction.
func (s *Store) Room(ctx context.Context, team uuid.UUID) ([]Room, error) {
	rows, _ := s.pool.Query(ctx, `SELECT l.dimension, l.limit_value, u.sandboxes, u.memory_bytes
		FROM team_usage u, s0_limits(u.team_id) l WHERE u.team_id = $1 AND l.dimension IN ($2, $3, $4)`,
		team, QuotaSandboxes, QuotaCPU, QuotaMemory)
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Room, error) {
		var r Room
		var sandboxes, bytes int64
		err := row.Scan(&r.Dimension, &r.Limit, &sandboxes, &bytes)
		switch r.Dimension {
		case QuotaSandboxes:
			r.Left = r.Limit - sandboxes
		case QuotaMemory:
			r.Left = r.Limit*bytesPerMiB - bytes
		case QuotaCPU:
			r.Left = r.Limit*bytesPerCPU/1000 - bytes
		}
		return r, err
	})
	return list, classify(err, "reading what is left to a team")
}

// SetQuota sets a team's own limit.
func (s *Store) SetQuota(ctx context.Context, team uuid.UUID, q Quota) error {
	err := s.inTx(ctx, "setting a quota", func(ctx context.Context, tx pgx.Tx) error {
		if err := holdTeams(ctx, tx, q.Dimension); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			INSERT INTO team_quotas (team_id, dimension, limit_value, interval_ms, burst_value) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (team_id, dimension) DO UPDATE SET limit_value = excluded.limit_value,
				interval_ms = excluded.interval_ms, burst_value = excluded.burst_value, updated_at = now()`,
			team, q.Dimension, q.Limit, q.IntervalMS, q.Burst)
		if err != nil {
			return err
		}
		return limitTeams(ctx, tx, q.Dimension)
	})
	if is(err, stateForeignViolation) {
		return notFound("team")
	}
	return err
}

// UnsetQuota makes the default hold for a team again; NotFound when it does already.
func (s *Store) UnsetQuota(ctx context.Context, team uuid.UUID, dimension string) error {
	return s.inTx(ctx, "removing a quota", func(ctx context.Context, tx pgx.Tx) error {
		if err := holdTeams(ctx, tx, dimension); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, "DELETE FROM team_quotas WHERE team_id = $1 AND dimension = $2", team, dimension)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return notFound("quota")
		}
		return limitTeams(ctx, tx, dimension)
	})
}

// SetQuotaDefaults makes these the limits of every team that has none of its own.
func (s *Store) SetQuotaDefaults(ctx context.Context, defaults []Quota) error {
	return s.inTx(ctx, "setting the default quotas", func(ctx context.Context, tx pgx.Tx) error {
		// Replicas that start at once wait for each other; all but one find nothing to do.
		if _, err := tx.Exec(ctx, "LOCK TABLE quota_defaults IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, "SELECT dimension, limit_value, interval_ms, burst_value, false FROM quota_defaults")
		old, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Quota])
		if err != nil || sameQuotas(old, defaults) {
			return err
		}
		if err := holdTeams(ctx, tx, QuotaSandboxes); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM quota_defaults"); err != nil {
			return err
		}
		for _, q := range defaults {
			if _, err := tx.Exec(ctx, "INSERT INTO quota_defaults (dimension, limit_value, interval_ms, burst_value) VALUES ($1, $2, $3, $4)",
				q.Dimension, q.Limit, q.IntervalMS, q.Burst); err != nil {
				return err
			}
		}
		return limitTeams(ctx, tx, QuotaSandboxes)
	})
}

func sameQuotas(a, b []Quota) bool {
	if len(a) != len(b) {
		return false
	}
	for _, q := range a {
		if !slices.ContainsFunc(b, func(o Quota) bool {
			return o.Dimension == q.Dimension && equal(o.Limit, q.Limit) && equal(o.IntervalMS, q.IntervalMS) && equal(o.Burst, q.Burst)
		}) {
			return false
		}
	}
	return true
}

func equal(a, b *int64) bool { return a == b || a != nil && b != nil && *a == *b }

// isCounted reports whether team_usage says what a team uses of a limit.
func isCounted(dimension string) bool {
	return slices.Contains([]string{QuotaSandboxes, QuotaCPU, QuotaMemory}, dimension)
}

// holdTeams comes before whatever else tx does that ends with limitTeams. It waits until
// nobody has as much as a row of these tables, and keeps all others from them: who holds a
// row that limitTeams needs, as one does who deletes a team, would wait for the table then.
func holdTeams(ctx context.Context, tx pgx.Tx, dimension string) error {
	if !isCounted(dimension) {
		return nil
	}
	_, err := tx.Exec(ctx, "LOCK TABLE teams, sandboxes IN EXCLUSIVE MODE")
	return err
}

// limitTeams begins or ends the counting of teams after a change of limits.
func limitTeams(ctx context.Context, tx pgx.Tx, dimension string) error {
	if !isCounted(dimension) {
		return nil
	}
	_, err := tx.Exec(ctx, "SELECT s0_limit_teams()")
	return err
}

// Recount holds what limited teams are counted to use against their sandboxes,
// and repairs what differs. It answers how many differed: there should be none.
func (s *Store) Recount(ctx context.Context) (int, error) {
	rows, _ := s.pool.Query(ctx, "SELECT team_id FROM team_usage ORDER BY team_id")
	teams, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	wrong := 0
	for _, team := range teams {
		if err != nil {
			break
		}
		var repaired bool
		repaired, err = s.recount(ctx, team)
		if repaired {
			wrong++
		}
	}
	return wrong, classify(err, "recounting what teams use")
}

// recount holds the team's row, so that whoever changes a sandbox of it waits to be
// counted, and then looks at what is there.
func (s *Store) recount(ctx context.Context, team uuid.UUID) (repaired bool, err error) {
	err = s.inTx(ctx, "recounting what a team uses", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT FROM team_usage WHERE team_id = $1 FOR UPDATE", team); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			UPDATE team_usage u SET sandboxes = t.n, memory_bytes = t.bytes FROM (
				SELECT count(*) AS n, coalesce(sum(memory_bytes), 0)::bigint AS bytes FROM sandboxes
				WHERE team_id = $1 AND deleted_at IS NULL AND s0_uses(status)) t
			WHERE u.team_id = $1 AND (u.sandboxes, u.memory_bytes) <> (t.n, t.bytes)`, team)
		repaired = tag.RowsAffected() > 0
		return err
	})
	return repaired, err
}

// quotaExceeded says of a refusal by the database what a tenant may know of it.
func quotaExceeded(err error) *errdefs.Error {
	var detail struct {
		Dimension string `json:"dimension"`
		Limit     int64  `json:"limit"`
	}
	pg, _ := errors.AsType[*pgconn.PgError](err)
	if bad := json.Unmarshal([]byte(pg.Detail), &detail); bad != nil {
		return errdefs.New(errdefs.Exhausted, "the team's quota is used up").WithRetryAfter(quotaRetryAfter).WithCause(err)
	}
	return QuotaExceeded(detail.Dimension, detail.Limit).WithCause(err)
}

// QuotaExceeded is the answer to what goes beyond a limit.
func QuotaExceeded(dimension string, limit int64) *errdefs.Error {
	return errdefs.New(errdefs.Exhausted, "the team's quota of %s, %d, is used up", dimension, limit).
		WithRetryAfter(quotaRetryAfter).WithDetails(map[string]any{"dimension": dimension, "limit_value": limit})
}
