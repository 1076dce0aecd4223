package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/store"
)

// begunFork is one of a sandbox that is stored, with one child.
func begunFork(t *testing.T, s *store.Store) store.NewForks {
	t.Helper()
	source, child := newSandbox(t, uuid.New()), newSandbox(t, uuid.New())
	source.Webhook = &store.NewWebhook{URL: "https://example.com", Destination: "example.com:443"}
	insert(t, s, source)
	n := store.NewForks{
		TeamID: source.TeamID, UserID: source.UserID, Source: source.ID, Node: source.Node,
		Children:       []store.NewFork{{ID: child.ID, ClaimID: child.ClaimID, Generation: 1}},
		IdempotencyKey: "k", RequestHash: []byte("h"),
	}
	if err := s.BeginForks(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	return n
}

// childInTheWay is a row with the child's id that is not committed: whoever stores a fork waits.
func childInTheWay(t *testing.T, conn *pgx.Conn, n store.NewForks) pgx.Tx {
	t.Helper()
	return beside(t, conn, []any{n.Children[0].ID, n.Source},
		`INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config, memory_bytes, ttl_seconds, hard_ttl_seconds)
			SELECT $1, team_id, user_id, gen_random_uuid(), template_id, node, generation, status, config, memory_bytes, 0, 0 FROM sandboxes WHERE id = $2`)
}

// G07: a fork whose answer was lost, and which is stored while it is asked for again, is the
// same one.
func TestG07_AForkThatIsRepeatedWhileItIsStored(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := begunFork(t, s)
	child := n.Children[0]
	stop := childInTheWay(t, conn, n)
	fork := func(ctx context.Context, made *[]store.Sandbox) func() error {
		return func() (err error) { *made, err = s.InsertForks(ctx, n); return err }
	}
	var made, again []store.Sandbox
	stored := meanwhile(t, conn, 1, fork(t.Context(), &made))
	repeated := meanwhile(t, conn, 2, fork(t.Context(), &again))
	rollback(t, stop)
	for what, done := range map[string]<-chan error{"the first": stored, "the second": repeated} {
		if err := <-done; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(made) != 1 || len(again) != 1 || made[0].ClaimID != child.ClaimID || again[0].ClaimID != child.ClaimID {
		t.Errorf("%+v, again %+v", made, again)
	}
}

// A fork is given up or stored, never both, and who gives it up waits for who stores it.
func TestG07_AForkThatIsGivenUpWhileItIsStored(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	n := begunFork(t, s)
	child := n.Children[0].ID
	if lost, err := s.GiveUpFork(t.Context(), child, false); lost || err != nil {
		t.Fatalf("given up early: %v, %v", lost, err)
	}
	stop := childInTheWay(t, conn, n)
	stored := meanwhile(t, conn, 1, func() error { _, err := s.InsertForks(t.Context(), n); return err })
	var lost bool
	given := meanwhile(t, conn, 2, func() (err error) { lost, err = s.GiveUpFork(t.Context(), child, true); return err })
	rollback(t, stop)
	if err := <-stored; err != nil {
		t.Error(err)
	}
	if err := <-given; lost || err != nil {
		t.Errorf("what is stored is given up: %v, %v", lost, err)
	}
}

func TestAForkThatWasGivenUp(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	n := begunFork(t, s)
	child := n.Children[0].ID
	if err := s.GiveUpForks(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if made, err := s.InsertForks(t.Context(), n); !errors.Is(err, store.ErrGivenUp) {
		t.Errorf("%+v: %v", made, err)
	}
	known := func(want bool) {
		t.Helper()
		if lost, err := s.GiveUpFork(t.Context(), child, false); lost != want || err != nil {
			t.Errorf("%v, %v", lost, err)
		}
	}
	known(true)
	if err := s.PurgeForks(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	known(true)
	if err := s.PurgeForks(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	known(false)
	if err := s.GiveUpForks(t.Context(), n); err != nil { // what was stored is not remembered, either
		t.Fatal(err)
	}
	known(true)
	if err := s.ForgetForks(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	known(false)
}
