package store_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

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

// meanwhile begins f, which has to wait for somebody's lock, and answers when n do.
func meanwhile(t *testing.T, conn *pgx.Conn, n int, f func() error) (done <-chan error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	fakenode.Eventually(t, fmt.Sprint(n, " wait for a lock"), func() bool {
		var waiting int
		err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting)
		return err == nil && waiting >= n
	})
	return ended
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
