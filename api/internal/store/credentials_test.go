package store_test

import (
	"testing"

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
	updated := beside(t, conn, []any{team},
		"UPDATE credential_sources SET version = 2 WHERE team_id = $1",
		"UPDATE credential_uses SET pending = true WHERE team_id = $1")
	noted := meanwhile(t, conn, 1, func() error { return s.CredentialsTold(t.Context(), team, sb.ID, told) })
	commit(t, updated)
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
