// Package store keeps what s0 must not forget in PostgreSQL: identities,
// templates, sandboxes, and what happens to them.
//
// It owns the schema and every SQL statement of the API server. Each state
// change is one statement with the expected state in its WHERE; time that
// decides anything is the database's. Methods that serve a tenant take the team
// first and never see another's rows; the few that serve the control plane
// itself (reconciliation, expiry) say so. The package keeps no state of its own,
// decides no policy and never retries: a write whose outcome is unknown is
// reported as such by [Unknown], and its caller knows how to ask again.
package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	connectTimeout   = 3 * time.Second // a unix socket or the same data centre
	statementTimeout = 5 * time.Second // no statement of ours takes more than milliseconds; less than callTimeout
	lockTimeout      = 2 * time.Second // rows are locked for one statement at a time
	idleInTxTimeout  = 10 * time.Second
	migrateTimeout   = 5 * time.Minute // of one migration: it may rewrite a table

	// maxConns bounds commits in flight. Commits share an fsync, so that more of
	// them cost the disk nothing; but each connection is a process of the server,
	// and opening many at once takes longer than waiting for one.
	maxConns = 16
	// idleConns are open before a burst needs them.
	idleConns = 4
)

// Store is safe for concurrent use.
type Store struct {
	conns  *pgxpool.Pool
	pool   bounded // conns, for single statements
	claims *committer
}

// Open connects to the database and brings its schema up to date.
func Open(ctx context.Context, url string) (*Store, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("database URL: %w", err)
	}
	if err := migrate(ctx, cfg.ConnConfig.Copy()); err != nil {
		return nil, err
	}
	cfg.MaxConns, cfg.MinIdleConns = maxConns, idleConns
	cfg.ConnConfig.ConnectTimeout = connectTimeout
	setRuntimeParams(cfg.ConnConfig)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return &Store{conns: pool, pool: bounded{pool}, claims: newCommitter(pool)}, nil
}

func setRuntimeParams(cfg *pgx.ConnConfig) {
	millis := func(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }
	for name, value := range map[string]string{
		"application_name":                    "s0-api",
		"statement_timeout":                   millis(statementTimeout),
		"lock_timeout":                        millis(lockTimeout),
		"idle_in_transaction_session_timeout": millis(idleInTxTimeout),
		"timezone":                            "UTC",
		// Statements of milliseconds: neither compiling nor sharing them out pays.
		"jit":                             "off",
		"max_parallel_workers_per_gather": "0",
	} {
		cfg.RuntimeParams[name] = value
	}
}

// Close ends every connection, after what goes on over them.
func (s *Store) Close() {
	s.claims.lanes.Wait()
	s.conns.Close()
}

// hangUp ends a connection that is not of the pool, without waiting long for a
// server that does not answer.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	conn.Close(ctx)
}

// Ready reports whether the database answers.
func (s *Store) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return classify(s.conns.Ping(ctx), "asking the database")
}

// inTwoTrips is inTx of which each half is one message to the server, also its begin and its
// end: what somebody waits for is the trips. first queues what the transaction begins with,
// then, when that is read, what it ends with: what that answers can't stop it any more.
func (s *Store) inTwoTrips(ctx context.Context, doing string, first func(*pgx.Batch), then func(*pgx.Batch) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return classify(twoTrips(ctx, s.conns, first, then), doing)
}

func twoTrips(ctx context.Context, conns *pgxpool.Pool, first func(*pgx.Batch), then func(*pgx.Batch) error) error {
	conn, err := conns.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release() // which closes a connection whose transaction goes on
	err = sendHalves(ctx, conn, first, then)
	if err != nil && conn.Conn().PgConn().TxStatus() != 'I' {
		_, _ = conn.Exec(ctx, "ROLLBACK")
	}
	return err
}

func sendHalves(ctx context.Context, conn *pgxpool.Conn, first func(*pgx.Batch), then func(*pgx.Batch) error) error {
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	first(b)
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	b = &pgx.Batch{}
	if err := then(b); err != nil {
		return err
	}
	recorded := queueAudit(ctx, b)
	b.Queue("COMMIT")
	if err := conn.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	recorded()
	return nil
}

// inTx runs f in one transaction, all of it within callTimeout: f's context says
// so. What it changes is recorded in it.
func (s *Store) inTx(ctx context.Context, doing string, f func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	recorded := func() {}
	err := pgx.BeginFunc(ctx, s.conns, func(tx pgx.Tx) (err error) {
		if err := f(ctx, tx); err != nil {
			return err
		}
		recorded, err = auditChange(ctx, tx)
		return err
	})
	if err == nil {
		recorded()
	}
	return classify(err, doing)
}
