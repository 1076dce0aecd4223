package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/store"
)

func reserveAndInsert(t *testing.T, s *store.Store, n store.NewSandbox) (store.Sandbox, error) {
	t.Helper()
	seat, err := s.Reserve(t.Context())
	if err != nil {
		return store.Sandbox{}, err
	}
	defer seat.Release()
	return seat.InsertSandbox(t.Context(), n)
}

// Claims that are committed together are told of their own fate: a row in the way,
// a key that is taken, a refusal. Nobody pays for another's.
func TestClaimsCommittedTogether(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	good, bad := uuid.New(), uuid.New()
	run(t, conn, fmt.Sprintf(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.team_id = '%s' THEN RAISE 'refused'; END IF; RETURN NEW; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON sandboxes FOR EACH ROW EXECUTE FUNCTION refuse()`, bad))
	taken := insert(t, s, newSandbox(t, good))
	var made, ids, keys, refusals atomic.Int32
	var wg sync.WaitGroup
	for n := range 200 {
		row := newSandbox(t, good)
		switch n % 10 {
		case 0:
			row.ID = taken.ID
		case 1:
			row.IdempotencyKey, row.RequestHash = "one", []byte("h")
		case 2:
			row.TeamID = bad
		}
		wg.Go(func() {
			sb, err := reserveAndInsert(t, s, row)
			switch {
			case err == nil:
				made.Add(1)
				if sb.ID != row.ID || sb.ClaimID != row.ClaimID || sb.TeamID != row.TeamID || sb.CreatedAt.IsZero() {
					t.Errorf("%+v of %+v", sb, row)
				}
			case errors.Is(err, store.ErrIDTaken):
				ids.Add(1)
			case errors.Is(err, store.ErrKeyTaken):
				keys.Add(1)
			case row.TeamID == bad && !store.Unknown(err):
				refusals.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var rows int32
	if err := conn.QueryRow(t.Context(), "SELECT count(*) - 1 FROM sandboxes").Scan(&rows); err != nil {
		t.Fatal(err)
	}
	if made.Load() != 141 || rows != 141 || ids.Load() != 20 || keys.Load() != 19 || refusals.Load() != 20 {
		t.Errorf("%d claims made, %d rows; %d ids and %d keys were taken, %d were refused", made.Load(), rows, ids.Load(), keys.Load(), refusals.Load())
	}
}

// A claim that is given up while it waits for its turn is not written later, when
// whoever gave it up has looked for its row.
func TestAClaimThatGaveUpIsNotWritten(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE sandboxes IN SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	const claims = 20
	var rows []store.NewSandbox
	var written [claims]bool
	var wg sync.WaitGroup
	ctx, giveUp := context.WithCancel(t.Context())
	for n := range claims {
		row := newSandbox(t, uuid.New())
		rows = append(rows, row)
		wg.Go(func() {
			seat, err := s.Reserve(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer seat.Release()
			_, err = seat.InsertSandbox(ctx, row)
			written[n] = err == nil || store.Unknown(err)
		})
	}
	giveUp()
	wg.Wait()
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.Close() // waits for what is on its way
	stored, _ := conn.Query(t.Context(), "SELECT id FROM sandboxes")
	ids, err := pgx.CollectRows(stored, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		for n, row := range rows {
			if string(row.ID) == id && !written[n] {
				t.Errorf("%s is stored, and its claim was told that it is not", id)
			}
		}
	}
}
