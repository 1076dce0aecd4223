package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Tables whose changes are told to listeners.
const (
	TableAPIKeys   = "api_keys"
	TableTemplates = "templates"
)

// Listen calls changed with a table's name after each change of it that any
// replica made, and with "" once at the start: whatever the caller remembered
// before that may be stale. It returns when the connection or ctx ends; the
// caller decides when to listen again.
func (s *Store) Listen(ctx context.Context, changed func(table string)) error {
	conn, err := pgx.ConnectConfig(ctx, s.conns.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("listening for changes: %w", err)
	}
	defer hangUp(ctx, conn)
	if _, err := (bounded{conn}).Exec(ctx, "LISTEN s0_changed"); err != nil {
		return fmt.Errorf("listening for changes: %w", err)
	}
	changed("")
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("waiting for changes: %w", err)
		}
		changed(n.Payload)
	}
}
