package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"s0.run/api/internal/audit"
)

// A change and its record are one transaction (A24). A single statement under a
// context with a record goes to the server together with the statement that
// stores it, in one message: PostgreSQL makes one transaction of what comes
// before the next Sync. A transaction ends with it. Either way it takes effect
// only where something was written before: a transaction that has only read has
// no id.

const auditColumns = `id, team_id, user_id, key_id, operation, resource, outcome, code, address, request_id`

// auditOnce makes the record say what is known last.
const auditOnce = ` ON CONFLICT (id) DO UPDATE SET
	user_id = excluded.user_id, resource = excluded.resource, outcome = excluded.outcome, code = excluded.code`

const (
	putAuditSQL = `INSERT INTO audit_records (` + auditColumns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)` + auditOnce
	putAuditOfChangeSQL = `INSERT INTO audit_records (` + auditColumns + `)
		SELECT $1::uuid, $2::uuid, $3::uuid, $4::uuid, $5::text, $6::text, $7::text, $8::text, $9::text, $10::text
		WHERE pg_current_xact_id_if_assigned() IS NOT NULL` + auditOnce
)

// pendingAudit is the record that the context's next change carries, or nil.
func pendingAudit(ctx context.Context) (*audit.Record, audit.State) {
	r := audit.Of(ctx)
	if r == nil {
		return nil, audit.State{}
	}
	state, stored := r.Pending()
	if stored {
		return nil, audit.State{}
	}
	return r, state
}

func auditArgs(r *audit.Record, s audit.State) []any {
	return []any{
		r.ID, orNull(r.TeamID), orNull(s.UserID), orNull(r.KeyID), r.Operation, s.Resource, string(s.Outcome), s.Code, r.Address, r.RequestID,
	}
}

func orNull(id uuid.UUID) *uuid.UUID {
	if id == uuid.Nil {
		return nil
	}
	return &id
}

// auditChange stores the context's record at the end of a transaction.
func auditChange(ctx context.Context, tx pgx.Tx) (stored func(), err error) {
	r, state := pendingAudit(ctx)
	if r == nil {
		return func() {}, nil
	}
	tag, err := tx.Exec(ctx, putAuditOfChangeSQL, auditArgs(r, state)...)
	return func() { noteStored(r, state, tag) }, err
}

// queueAudit is auditChange in a batch.
func queueAudit(ctx context.Context, b *pgx.Batch) (stored func()) {
	r, state := pendingAudit(ctx)
	if r == nil {
		return func() {}
	}
	var tag pgconn.CommandTag
	b.Queue(putAuditOfChangeSQL, auditArgs(r, state)...).Exec(func(t pgconn.CommandTag) error {
		tag = t
		return nil
	})
	return func() { noteStored(r, state, tag) }
}

func noteStored(r *audit.Record, s audit.State, tag pgconn.CommandTag) {
	if tag.RowsAffected() > 0 {
		r.Stored(s)
	}
}

// batcher sends several statements in one message.
type batcher interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// audited sends a statement with the record of the call that it is part of. It
// gives nil when there is none to send.
func audited(ctx context.Context, q querier, sql string, args []any) *auditedRows {
	r, state := pendingAudit(ctx)
	b, ok := q.(batcher)
	if r == nil || !ok {
		return nil
	}
	batch := &pgx.Batch{}
	batch.Queue(sql, args...)
	batch.Queue(putAuditOfChangeSQL, auditArgs(r, state)...)
	a := &auditedRows{record: r, state: state, results: b.SendBatch(ctx, batch)}
	a.Rows, a.err = a.results.Query()
	return a
}

// auditedRows are the rows of a statement that is in force only when its record
// is stored: they have an error when it is not.
type auditedRows struct {
	pgx.Rows
	record  *audit.Record
	state   audit.State
	results pgx.BatchResults
	ended   bool
	err     error
}

// Next implements pgx.Rows.
func (a *auditedRows) Next() bool {
	if a.Rows.Next() {
		return true
	}
	a.end()
	return false
}

// Close implements pgx.Rows.
func (a *auditedRows) Close() {
	a.Rows.Close()
	a.end()
}

// Err implements pgx.Rows.
func (a *auditedRows) Err() error {
	if err := a.Rows.Err(); err != nil {
		return err
	}
	return a.err
}

// end reads what became of the record.
func (a *auditedRows) end() {
	if a.ended {
		return
	}
	a.ended = true
	tag, err := a.results.Exec()
	if closed := a.results.Close(); err == nil {
		err = closed
	}
	if a.err == nil {
		a.err = err
	}
	if a.err == nil && a.Rows.Err() == nil {
		noteStored(a.record, a.state, tag)
	}
}

// PutAudit stores a record by itself: of a call that changed nothing here.
func (s *Store) PutAudit(ctx context.Context, r *audit.Record) error {
	state, stored := r.Pending()
	if stored {
		return nil
	}
	tag, err := s.pool.Exec(audit.Without(ctx), putAuditSQL, auditArgs(r, state)...)
	if err == nil {
		noteStored(r, state, tag)
	}
	return classify(err, "storing an audit record")
}

// AuditRecord is a record as it is kept.
type AuditRecord struct {
	ID        uuid.UUID
	At        time.Time
	TeamID    *uuid.UUID
	UserID    *uuid.UUID
	KeyID     *uuid.UUID
	Operation string
	Resource  string
	Outcome   string
	Code      string
	Address   string
	RequestID string
}

// AuditFilter narrows a list; zero values do not.
type AuditFilter struct {
	Before    uuid.UUID // records older than this one
	Start     *time.Time
	End       *time.Time
	UserID    uuid.UUID
	Operation string
	Resource  string
	Outcome   string
	Limit     int
}

const listAuditSQL = `SELECT id, at, team_id, user_id, key_id, operation, resource, outcome, code, address, request_id
	FROM audit_records
	WHERE ($1::uuid IS NULL OR id < $1) AND ($2::timestamptz IS NULL OR at >= $2) AND ($3::timestamptz IS NULL OR at < $3)
	AND ($4::uuid IS NULL OR user_id = $4) AND ($5 = '' OR operation = $5) AND ($6 = '' OR resource = $6) AND ($7 = '' OR outcome = $7)`

func (f AuditFilter) args() []any {
	return []any{orNull(f.Before), f.Start, f.End, orNull(f.UserID), f.Operation, f.Resource, f.Outcome, f.Limit}
}

// Audit lists a team's records, newest first.
func (s *Store) Audit(ctx context.Context, team uuid.UUID, f AuditFilter) ([]AuditRecord, error) {
	return s.listAudit(ctx, listAuditSQL+" AND team_id = $9 ORDER BY id DESC LIMIT $8", append(f.args(), team))
}

// AuditOfAll lists the records of all teams and of none, for the system's admins
// alone.
func (s *Store) AuditOfAll(ctx context.Context, f AuditFilter) ([]AuditRecord, error) {
	return s.listAudit(ctx, listAuditSQL+" ORDER BY id DESC LIMIT $8", f.args())
}

func (s *Store) listAudit(ctx context.Context, sql string, args []any) ([]AuditRecord, error) {
	rows, _ := s.pool.Query(ctx, sql, args...)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[AuditRecord])
	return list, classify(err, "listing audit records")
}

// PurgeAudit forgets records older than age.
func (s *Store) PurgeAudit(ctx context.Context, age time.Duration) error {
	return s.purge(ctx, "purging audit records", `DELETE FROM audit_records WHERE id IN
		(SELECT id FROM audit_records WHERE at < now() - $1::interval LIMIT $2)`, age)
}
