package store

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Migrations are forward-only and additive: an older replica keeps working on a
// newer schema, so that replicas may be deployed in any order (X40). A database
// ahead of this binary is therefore no error. That, and the template engine it
// would bring, is why this is not a library.
//
//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrationLock is the advisory lock that lets one replica migrate at a time.
const migrationLock = 0x73_30_6d_69_67

type migration struct {
	version int
	name    string
	sql     string
}

func migrate(ctx context.Context, cfg *pgx.ConnConfig) error {
	all, err := migrations(migrationFiles)
	if err != nil {
		return err
	}
	cfg.ConnectTimeout = connectTimeout
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return classify(err, "connecting to the database")
	}
	defer hangUp(ctx, conn)
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", migrationLock); err != nil {
		return fmt.Errorf("locking the schema: %w", err) // the lock ends with the connection
	}
	if _, err := conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS schema_migrations (
		version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`); err != nil {
		return fmt.Errorf("creating schema_migrations: %w", err)
	}
	rows, _ := conn.Query(ctx, "SELECT version FROM schema_migrations")
	applied, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return fmt.Errorf("reading schema_migrations: %w", err)
	}
	for _, m := range all {
		if slices.Contains(applied, m.version) {
			continue
		}
		if err := m.apply(ctx, conn); err != nil {
			return fmt.Errorf("migration %s: %w", m.name, err)
		}
	}
	return nil
}

func (m migration) apply(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, m.sql); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", m.version, m.name)
		return err
	})
}

// migrations reads the files, in the order of their numbers. A number is given to who works
// on a migration, so one may come before an earlier one is there.
func migrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []migration
	for _, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		version, err := strconv.Atoi(number)
		if err != nil || version < 1 || len(all) > 0 && version <= all[len(all)-1].version {
			return nil, fmt.Errorf("migration %s: want a number of its own", name)
		}
		b, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		all = append(all, migration{version: version, name: path.Base(name), sql: string(b)})
	}
	return all, nil
}
