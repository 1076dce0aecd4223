package store

import (
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"s0.run/api/internal/audit"
	"s0.run/internal/sandbox"
)

// insertedColumns are those that the database decides.
const insertedColumns = "claim_id, expires_at, hard_expires_at, claimed_at, created_at, updated_at"

// insertClaims stores the rows s of as many claims as the arrays name, and who
// claimed. Rows that another is in the way of are left out.
const insertClaims = `
	c AS (
		SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::bigint[], $8::jsonb[],
			$9::bigint[], $10::integer[], $11::integer[], $12::text[], $13::bytea[], $14::uuid[], $15::uuid[], $16::text[], $17::text[], $18::text[], $19::uuid[])
		AS c (id, team_id, user_id, claim_id, template_id, node, generation, config,
			memory_bytes, ttl, hard_ttl, key, hash, audit_id, key_id, operation, address, request_id, snapshot_id)
	), s AS (
		INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config,
			memory_bytes, ttl_seconds, hard_ttl_seconds, expires_at, hard_expires_at, idempotency_key, request_hash, snapshot_id)
		SELECT id, team_id, user_id, claim_id, template_id, node, generation, 'running', config,
			memory_bytes, ttl, hard_ttl,
			CASE WHEN ttl > 0 THEN now() + make_interval(secs => ttl) END,
			CASE WHEN hard_ttl > 0 THEN now() + make_interval(secs => hard_ttl) END,
			nullif(key, ''), hash, snapshot_id
		FROM c
		ON CONFLICT DO NOTHING
		RETURNING id, team_id, user_id, ` + insertedColumns + `
	), audited AS (
		INSERT INTO audit_records (` + auditColumns + `)
		SELECT c.audit_id, s.team_id, s.user_id, c.key_id, c.operation, s.id, 'succeeded', '', c.address, c.request_id
		FROM s JOIN c USING (id) WHERE c.audit_id IS NOT NULL` + auditOnce + `
	)`

const insertClaimsSQL = "WITH " + insertClaims + " SELECT " + insertedColumns + " FROM s"

// insertHookedClaimSQL is insertClaimsSQL for one claim with a webhook: that and
// the first event for it are stored in the same statement.
const insertHookedClaimSQL = "WITH " + insertClaims + `, hook AS (
		INSERT INTO sandbox_webhooks (sandbox_id, team_id, claim_id, url, secret, destination, watch_dir, wake_at)
		SELECT s.id, s.team_id, s.claim_id, $20, $21, $22, $23, now() FROM s
	), ready AS (
		INSERT INTO sandbox_events (team_id, sandbox_id, event_id, type, source, payload, occurred_at, delivery)
		SELECT s.team_id, s.id, 'evt_sandbox_ready_' || s.id, 'sandbox.ready', 'manager', ` + readyEvent + `, now(), 'pending' FROM s
	)
	SELECT ` + insertedColumns + ` FROM s, (SELECT pg_notify('s0_events', ($1::text[])[1])) told`

// inserted is what the database says of a row that it has taken.
type inserted struct {
	ClaimID       uuid.UUID
	ExpiresAt     *time.Time
	HardExpiresAt *time.Time
	ClaimedAt     time.Time
	CreatedAt     time.Time
	UpdatedAt     time.Time
}

// stored is the row as it is now.
func (n *NewSandbox) stored(in inserted) Sandbox {
	return Sandbox{
		ID: n.ID, TeamID: n.TeamID, UserID: n.UserID, ClaimID: n.ClaimID, TemplateID: n.TemplateID,
		Node: n.Node, Generation: n.Generation, Status: sandbox.Running, Config: n.Config,
		MemoryBytes: n.MemoryBytes, TTLSeconds: n.TTLSeconds, HardTTLSeconds: n.HardTTLSeconds, RequestHash: n.RequestHash,
		ExpiresAt: in.ExpiresAt, HardExpiresAt: in.HardExpiresAt,
		ClaimedAt: in.ClaimedAt, CreatedAt: in.CreatedAt, UpdatedAt: in.UpdatedAt,
	}
}

// insertion is the statement that stores one claim.
func (n *NewSandbox) insertion() (sql string, args []any) {
	args = claimArgs(n)
	if w := n.Webhook; w != nil {
		return insertHookedClaimSQL, append(args, w.URL, string(w.Secret), w.Destination, w.WatchDir)
	}
	return insertClaimsSQL, args
}

// claimArgs are the arrays of insertClaims.
func claimArgs(claims ...*NewSandbox) []any {
	return []any{
		column(claims, func(n *NewSandbox) string { return string(n.ID) }),
		ids(claims, func(n *NewSandbox) uuid.UUID { return n.TeamID }),
		ids(claims, func(n *NewSandbox) uuid.UUID { return n.UserID }),
		ids(claims, func(n *NewSandbox) uuid.UUID { return n.ClaimID }),
		column(claims, func(n *NewSandbox) string { return n.TemplateID }),
		column(claims, func(n *NewSandbox) string { return n.Node }),
		column(claims, func(n *NewSandbox) int64 { return int64(n.Generation) }),
		column(claims, func(n *NewSandbox) []byte { return n.Config }),
		column(claims, func(n *NewSandbox) int64 { return n.MemoryBytes }),
		column(claims, func(n *NewSandbox) int32 { return n.TTLSeconds }),
		column(claims, func(n *NewSandbox) int32 { return n.HardTTLSeconds }),
		column(claims, func(n *NewSandbox) string { return n.IdempotencyKey }),
		column(claims, func(n *NewSandbox) []byte { return n.RequestHash }),
		idsOrNull(claims, func(n *NewSandbox) uuid.UUID { return n.call().ID }),
		idsOrNull(claims, func(n *NewSandbox) uuid.UUID { return n.call().KeyID }),
		column(claims, func(n *NewSandbox) string { return n.call().Operation }),
		column(claims, func(n *NewSandbox) string { return n.call().Address }),
		column(claims, func(n *NewSandbox) string { return n.call().RequestID }),
		idsOrNull(claims, func(n *NewSandbox) uuid.UUID { return n.SnapshotID }),
	}
}

// column is a value of each row, for unnest.
func column[Row, T any](rows []Row, of func(Row) T) []T {
	list := make([]T, len(rows))
	for i, r := range rows {
		list[i] = of(r)
	}
	return list
}

// ids is a column of what the driver encodes as it is: it would write other types of
// ids as text first, and read that again.
func ids(claims []*NewSandbox, of func(*NewSandbox) uuid.UUID) pgtype.FlatArray[pgtype.UUID] {
	return column(claims, func(n *NewSandbox) pgtype.UUID { return pgtype.UUID{Bytes: of(n), Valid: true} })
}

// idsOrNull is ids in which uuid.Nil is NULL.
func idsOrNull(claims []*NewSandbox, of func(*NewSandbox) uuid.UUID) pgtype.FlatArray[pgtype.UUID] {
	list := ids(claims, of)
	for i, id := range list {
		list[i].Valid = id.Bytes != uuid.Nil
	}
	return list
}

// nobodysCall is the record of a claim that no call has made.
var nobodysCall audit.Record

func (n *NewSandbox) call() *audit.Record {
	if n.Audit == nil {
		return &nobodysCall
	}
	return n.Audit
}
