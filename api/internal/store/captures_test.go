package store_test

import (
	"encoding/json"
	"testing"
	"time"

	"s0.run/api/internal/store"
)

// Who ends a capture waits for who deletes its template, and holds nothing that he needs.
func TestACapturesEndWaitsForItsTemplateFirst(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	u, team := bootstrap(t, s)
	tmpl, err := s.BeginCapture(t.Context(), store.NewCapture{
		TeamID: team, UserID: u.ID, TemplateID: "t", SandboxID: "sb", Spec: json.RawMessage(`{"mainContainer": {"image": "i"}}`), Lease: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	deleting := beside(t, conn, []any{tmpl.ID}, "SELECT FROM templates WHERE id = $1 FOR UPDATE")
	ended := meanwhile(t, conn, 1, func() error { return s.FinishCapture(t.Context(), tmpl.ID, "image") })
	if _, err := deleting.Exec(t.Context(), "SELECT FROM template_captures WHERE template_id = $1 FOR UPDATE NOWAIT", tmpl.ID); err != nil {
		t.Fatal(err)
	}
	commit(t, deleting)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
