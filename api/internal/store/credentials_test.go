package store_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/fakenode"
	"s0.run/internal/sealed"
)

// F12: a version that is stored while a node is being noted as having the one before
// stays to be told.
func TestF12_AVersionThatComesMeanwhileStaysPending(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	_, team := bootstrap(t, s)
	if _, err := s.CreateCredentialSource(t.Context(), team, "hub", "static_headers", func(int64) (sealed.Blob, error) {
		return sealed.Blob{Key: "k", Data: []byte("one")}, nil
	}); err != nil {
		t.Fatal(err)
	}
	n := newSandbox(t, team)
	n.Config = []byte(`{"network":{"credentialBindings":[{"sourceRef":"hub"}]}}`)
	sb := insert(t, s, n)
	told, err := s.CredentialsOf(t.Context(), team, sb.ID)
	if err != nil || len(told) != 1 || told[0].Version != 1 {
		t.Fatalf("it is told %+v, %v", told, err)
	}
	finish := halfUpdated(t, conn, team)
	noted := make(chan error, 1)
	go func() { noted <- s.CredentialsTold(t.Context(), team, sb.ID, told) }()
	fakenode.Eventually(t, "the note waits for the newer version", func() bool {
		var waiting bool
		err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')").Scan(&waiting)
		return err == nil && waiting
	})
	finish()
	if err := <-noted; err != nil {
		t.Fatal(err)
	}
	if pending, err := s.PendingCredentials(t.Context(), "", 10); err != nil || len(pending) != 1 {
		t.Errorf("pending are %v, %v", pending, err)
	}
	if told, err = s.CredentialsOf(t.Context(), team, sb.ID); err != nil || told[0].Version != 2 {
		t.Fatalf("it is told %+v, %v", told, err)
	}
	if err := s.CredentialsTold(t.Context(), team, sb.ID, told); err != nil {
		t.Fatal(err)
	}
	if pending, err := s.PendingCredentials(t.Context(), "", 10); err != nil || len(pending) != 0 {
		t.Errorf("pending are %v, %v", pending, err)
	}
}

// halfUpdated is what UpdateCredentialSource does, up to its COMMIT, for which finish is.
func halfUpdated(t *testing.T, conn *pgx.Conn, team uuid.UUID) (finish func()) {
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
	for _, statement := range []string{
		"UPDATE credential_sources SET version = 2 WHERE team_id = $1",
		"UPDATE credential_uses SET pending = true WHERE team_id = $1",
	} {
		if _, err := tx.Exec(t.Context(), statement, team); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
