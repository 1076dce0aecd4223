package api_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"s0.run/api"
	"s0.run/internal/errdefs"
	"s0.run/internal/s0test"
)

// A24: what an operator decides about nodes leaves a record, with the change or, where it
// was refused, after it. A token's is its public part.
func TestA24_NodesAreAudited(t *testing.T) {
	t.Parallel()
	dsn := s0test.Postgres(t)
	n, err := api.OpenNodes(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	conn := connect(t, dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "INSERT INTO nodes (name, membership, endpoint, key_sha256, certified_until) VALUES ('n1', gen_random_uuid(), 'h:1', '1', now())"); err != nil {
		t.Fatal(err)
	}
	token, _, err := n.NewToken(t.Context(), "n2", 1, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	public := strings.Split(token, "_")[1]
	if _, _, err := n.NewToken(t.Context(), "n2", 0, time.Minute); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a token for nobody: %v", err)
	}
	for _, change := range []func() error{
		func() error { return n.Drain(t.Context(), "n1", true) },
		func() error { return n.Drain(t.Context(), "n1", false) },
		func() error { return n.Remove(t.Context(), "n1") },
	} {
		if err := change(); err != nil {
			t.Error(err)
		}
	}
	if err := n.Remove(t.Context(), "n1"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a second removal: %v", err)
	}
	rows, _ := conn.Query(t.Context(), "SELECT concat_ws(' ', operation, resource, outcome, nullif(code, '')), address FROM audit_records ORDER BY id")
	var got []string
	var what, who string
	host, _ := os.Hostname()
	if _, err := pgx.ForEachRow(rows, []any{&what, &who}, func() error {
		if !strings.HasPrefix(who, host+" (uid ") {
			t.Errorf("%s is of %q", what, who)
		}
		got = append(got, what)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"nodes.token " + public + " succeeded", "nodes.token n2 refused bad_request", "nodes.drain n1 succeeded", "nodes.undrain n1 succeeded", "nodes.remove n1 succeeded", "nodes.remove n1 refused not_found",
	}
	if !slices.Equal(got, want) {
		t.Errorf("records are %q, not %q", got, want)
	}
	for _, record := range got {
		if strings.Contains(record, token) {
			t.Error("a record has a token")
		}
	}
}
