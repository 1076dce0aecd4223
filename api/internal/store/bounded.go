package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// callTimeout bounds a call as its caller feels it: the wait for a connection,
// the statement, its answer. The server's own timeouts, which are shorter, need a
// server that is alive (X35).
const callTimeout = 6 * time.Second

// querier is the pool, one connection of it, or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// bounded ends every call after callTimeout, whoever forgot to.
type bounded struct{ q querier }

func (b bounded) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if rows := audited(ctx, b.q, sql, args); rows != nil {
		rows.Close()
		return rows.CommandTag(), rows.Err()
	}
	return b.q.Exec(ctx, sql, args...)
}

func (b bounded) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	if rows := audited(ctx, b.q, sql, args); rows != nil {
		return boundedRows{rows, cancel}, rows.Err()
	}
	rows, err := b.q.Query(ctx, sql, args...)
	return boundedRows{rows, cancel}, err
}

func (b bounded) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	if rows := audited(ctx, b.q, sql, args); rows != nil {
		return boundedRow{firstRow{rows}, cancel}
	}
	return boundedRow{b.q.QueryRow(ctx, sql, args...), cancel}
}

// boundedRows are read before the deadline too.
type boundedRows struct {
	pgx.Rows
	cancel context.CancelFunc
}

func (r boundedRows) Close() {
	r.Rows.Close()
	r.cancel()
}

type boundedRow struct {
	pgx.Row
	cancel context.CancelFunc
}

func (r boundedRow) Scan(dest ...any) error {
	defer r.cancel()
	return r.Row.Scan(dest...)
}

// firstRow makes rows the one that QueryRow asks for.
type firstRow struct{ rows pgx.Rows }

func (r firstRow) Scan(dest ...any) error {
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	err := r.rows.Scan(dest...)
	r.rows.Close()
	if err == nil {
		err = r.rows.Err()
	}
	return err
}
