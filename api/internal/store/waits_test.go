package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"s0.run/api/internal/fakenode"
)

// beside begins a transaction of somebody else and carries statements out in it, each with
// the arguments. It is rolled back with the test unless it has ended.
func beside(t *testing.T, conn *pgx.Conn, args []any, statements ...string) pgx.Tx {
	t.Helper()
	other, err := pgx.ConnectConfig(t.Context(), conn.Config().Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close(context.Background()) })
	tx, err := other.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range statements {
		if _, err := tx.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	return tx
}

// meanwhile begins f, which has to wait for somebody's lock, and answers when n do. On a
// machine that is so slow that no lock comes in time f is done again.
func meanwhile(t *testing.T, conn *pgx.Conn, n int, f func() error) (done <-chan error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		err := f()
		for isLate(err) {
			err = f()
		}
		ended <- err
	}()
	fakenode.Eventually(t, fmt.Sprint(n, " wait for a lock"), func() bool {
		var waiting int
		err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting)
		return err == nil && waiting >= n
	})
	return ended
}

// isLate reports whether a statement has waited for a lock as long as it may.
func isLate(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "55P03"
}

func commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func rollback(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}
