package members

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/internal/sandbox"
)

func (f *fixture) conn() *pgx.Conn {
	f.Helper()
	conn, err := pgx.Connect(f.Context(), f.dsn)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// row makes a sandbox that runs on a node, and answers how to ask what it is.
func (f *fixture) row(node string) (status func() string) {
	f.Helper()
	f.exec(`INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config, memory_bytes, ttl_seconds, hard_ttl_seconds)
		VALUES ('on-' || $1::text, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 't', $1, 1, 'running', '{}', 1, 0, 0)`, node)
	conn := f.conn()
	return func() (s string) {
		f.Helper()
		if err := conn.QueryRow(f.Context(), "SELECT status FROM sandboxes WHERE node = $1", node).Scan(&s); err != nil {
			f.Fatal(err)
		}
		return s
	}
}

// A node that this server reaches by a socket is served whatever the list says of its
// name; and nothing is lost before every such node has said what it is called.
func TestANodeOfThisMachineIsNeverRemoved(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	n, _ := f.member("a")
	n.AddSlots("p", 2)
	f.member("b")
	ofA, ofB := f.row("a"), f.row("b")
	n.Stop()
	set := nodes.New(nodes.Config{Sockets: []string{n.Socket}, DialMember: f.keeper.Dial, Cluster: "c", Table: f.table,
		Log: slog.New(slog.DiscardHandler), OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	pass := func() {
		t.Helper()
		if err := f.keeper.pass(ctx, set); err != nil {
			t.Fatal(err)
		}
	}
	pass()
	f.synced(f.table, "a", "b") // as members, as long as nothing answers at the socket
	for _, name := range []string{"a", "b"} {
		if err := f.store.RemoveNode(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	pass()
	f.synced(f.table)
	if a, b := ofA(), ofB(); a != "running" || b != "running" {
		t.Errorf("before it is known who is at the socket: a's is %s, b's %s", a, b)
	}
	n.Listen(t)
	f.synced(f.table, "a")
	pass()
	if a, b := ofA(), ofB(); a != "running" || b != "failed" {
		t.Errorf("a's is %s, b's %s", a, b)
	}
	if _, err := set.RPC("a"); err != nil || f.table.Free() != 2 {
		t.Errorf("%v, %d free slots", err, f.table.Free())
	}
	if _, status := f.join(f.token("", 1), "a", newKey(t)); status != http.StatusOK { // once more
		t.Fatal(status)
	}
	if err := f.store.DrainNode(ctx, "a", true); err != nil {
		t.Fatal(err)
	}
	pass()
	f.synced(f.table, "a")
	if f.table.Free() != 2 {
		t.Errorf("%d free slots", f.table.Free())
	}
}

// H04: of two nodes that join with one new name at once, one does, and the other's token
// is as good as before.
func TestH04_TwoJoinWithOneName(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tx, err := f.conn().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), "INSERT INTO nodes (name, membership, endpoint, key_sha256, certified_until) VALUES ('n1', gen_random_uuid(), 'h:1', '1', now())"); err != nil {
		t.Fatal(err)
	}
	token := f.token("", 1)
	second := make(chan int, 1)
	go func() {
		status, key := http.StatusServiceUnavailable, newKey(t)
		for status == http.StatusServiceUnavailable { // it has waited as long as a statement may
			_, status = f.join(token, "n1", key)
		}
		second <- status
	}()
	watch := f.conn()
	fakenode.Eventually(t, "the second waits for the first", func() bool {
		var waits bool
		if err := watch.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = current_database())").Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status := <-second; status != http.StatusConflict {
		t.Errorf("the second: %d", status)
	}
	if _, status := f.join(token, "n2", newKey(t)); status != http.StatusOK {
		t.Errorf("by the token that it had: %d", status)
	}
}

// H04: a node that was not told that it is certified anew joins with the key that it has,
// and nobody does with one of before.
func TestH04_ARenewalWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first, lost, second := newKey(t), newKey(t), newKey(t)
	token := f.token("", 1)
	have, status := f.join(token, "n1", first)
	if status != http.StatusOK {
		t.Fatal(status)
	}
	for range 2 {
		if _, status, err := f.renew(have, "n1", lost); err != nil || status != http.StatusOK {
			t.Fatalf("%d, %v", status, err)
		}
		lost = newKey(t)
	}
	again, status := f.join(token, "n1", first)
	if status != http.StatusOK || identity(t, again) != identity(t, have) {
		t.Fatalf("with the key that it has: %d", status)
	}
	answer, status, err := f.renew(again, "n1", second)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%d, %v", status, err)
	}
	renewed, err := answer.Take(second, "c", "n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, status, err := f.renew(renewed, "n1", newKey(t)); err != nil || status != http.StatusOK {
		t.Fatalf("%d, %v", status, err)
	}
	if _, status := f.join(token, "n1", first); status != http.StatusConflict {
		t.Errorf("with one of before: %d", status)
	}
	if err := f.store.RemoveNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if _, status := f.join(f.token("", 1), "n1", newKey(t)); status != http.StatusOK {
		t.Fatal(status)
	}
	if _, status := f.join(f.token("", 1), "n1", second); status != http.StatusConflict {
		t.Errorf("with a key of before a removal: %d", status)
	}
}
