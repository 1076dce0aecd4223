package s0test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// skewedClock shadows the functions by which statements read the time.
const skewedClock = `
	CREATE TABLE test_clock (skew interval NOT NULL);
	INSERT INTO test_clock VALUES ('0');
	CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT pg_catalog.now() + skew FROM public.test_clock';
	CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT pg_catalog.clock_timestamp() + skew FROM public.test_clock';
	DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$`

// SkewedPostgres is Postgres with a database whose clock is not the machine's: set says
// how far ahead of it (or, below 0, behind) it is from now on.
func SkewedPostgres(t testing.TB) (dsn string, set func(ahead time.Duration)) {
	t.Helper()
	dsn = Postgres(t)
	exec := func(sql string, args ...any) {
		t.Helper()
		conn, err := pgx.Connect(context.Background(), dsn)
		if err == nil {
			defer conn.Close(context.Background())
			_, err = conn.Exec(context.Background(), sql, args...)
		}
		if err != nil {
			t.Fatalf("setting the database's clock: %v", err)
		}
	}
	exec(skewedClock)
	return dsn, func(ahead time.Duration) {
		t.Helper()
		exec("UPDATE test_clock SET skew = $1", ahead)
	}
}
