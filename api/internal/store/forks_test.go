package store_test

import (
	"context"
	"testing"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
)

// G07: a fork whose answer was lost, and which is stored while it is asked for again, is the
// same one.
func TestG07_AForkThatIsRepeatedWhileItIsStored(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	source, child := newSandbox(t, uuid.New()), newSandbox(t, uuid.New())
	source.Webhook = &store.NewWebhook{URL: "https://example.com", Destination: "example.com:443"}
	insert(t, s, source)
	n := store.NewForks{
		TeamID: source.TeamID, UserID: source.UserID, Source: source.ID, Node: source.Node,
		Children:       []store.NewFork{{ID: child.ID, ClaimID: child.ClaimID, Generation: 1}},
		IdempotencyKey: "k", RequestHash: []byte("h"),
	}
	stop := beside(t, conn, []any{child.ID, source.ID},
		`INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config, memory_bytes, ttl_seconds, hard_ttl_seconds)
			SELECT $1, team_id, user_id, gen_random_uuid(), template_id, node, generation, status, config, memory_bytes, 0, 0 FROM sandboxes WHERE id = $2`)
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
