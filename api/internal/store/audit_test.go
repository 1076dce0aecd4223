package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// call gives a context of a call by somebody of a team.
func call(t *testing.T, team, user uuid.UUID) (context.Context, *audit.Record) {
	t.Helper()
	rec := &audit.Record{
		ID: uuid.Must(uuid.NewV7()), TeamID: team, Operation: "op", Address: "192.0.2.1", RequestID: "req-1",
	}
	rec.Begin(user, "named")
	return audit.With(t.Context(), rec), rec
}

func auditOf(t *testing.T, s *store.Store, team uuid.UUID) []store.AuditRecord {
	t.Helper()
	list, err := s.Audit(t.Context(), team, store.AuditFilter{Limit: 500})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// refuseAudit makes every record impossible to store.
func refuseAudit(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), "ALTER TABLE audit_records ADD CONSTRAINT no_room CHECK (false) NOT VALID"); err != nil {
		t.Fatal(err)
	}
}

// A24: each kind of write, a statement or a transaction, leaves one record, and
// takes place only with it.
func TestA24_AChangeAndItsRecordAreOneWrite(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	user, team := bootstrap(t, s)
	sb := newSandbox(t, team)
	insert(t, s, sb)
	ttl := int32(5)
	writes := map[string]func(ctx context.Context) error{
		"rows": func(ctx context.Context) error { _, err := s.RefreshSandbox(ctx, team, sb.ID, &ttl); return err },
		"no rows": func(ctx context.Context) error {
			return s.AddRefreshToken(ctx, user, []byte(uuid.NewString()), time.Hour)
		},
		"transaction": func(ctx context.Context) error {
			_, err := s.CreateAPIKey(ctx, team, store.APIKey{CreatedBy: user.ID, Name: "k", Scope: "team", Roles: []string{"viewer"}, Prefix: uuid.NewString(), Hash: []byte("x")}, 0)
			return err
		},
		"claim": func(ctx context.Context) error {
			n := newSandbox(t, team)
			n.Audit = audit.Of(ctx)
			_, err := s.InsertSandbox(audit.Without(ctx), n)
			return err
		},
		"claim with a webhook": func(ctx context.Context) error {
			n := newSandbox(t, team)
			n.Audit = audit.Of(ctx)
			n.Webhook = &store.NewWebhook{URL: "https://example.com/hook", Secret: "s3cret", Destination: "example.com:443"}
			_, err := s.InsertSandbox(audit.Without(ctx), n)
			return err
		},
	}
	for name, write := range writes {
		before := len(auditOf(t, s, team))
		ctx, rec := call(t, team, user.ID)
		if err := write(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		list := auditOf(t, s, team)
		if len(list) != before+1 || list[0].ID != rec.ID || list[0].Outcome != "succeeded" || list[0].Address != "192.0.2.1" || list[0].RequestID != "req-1" || *list[0].TeamID != team {
			t.Errorf("%s: %+v", name, list)
		}
	}
	refuseAudit(t, conn)
	was := everything(t, conn)
	for name, write := range writes {
		ctx, rec := call(t, team, user.ID)
		if err := write(ctx); err == nil {
			t.Errorf("%s went without its record", name)
		}
		if rec.IsStored() {
			t.Errorf("%s: the record says that it is stored", name)
		}
	}
	if now := everything(t, conn); now != was {
		t.Errorf("something was changed without a record:\n%s\n%s", was, now)
	}
}

// everything is what the tables that the test writes to have in them.
func everything(t *testing.T, conn *pgx.Conn) (all string) {
	t.Helper()
	err := conn.QueryRow(t.Context(), `SELECT concat(
		(SELECT json_agg(s ORDER BY id) FROM sandboxes s), (SELECT json_agg(k ORDER BY id) FROM api_keys k),
		(SELECT count(*) FROM refresh_tokens), (SELECT count(*) FROM sandbox_webhooks), (SELECT count(*) FROM sandbox_events))`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What only reads, and what finds nothing to change, is no change.
func TestReadingLeavesNoRecord(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	user, team := bootstrap(t, s)
	ctx, rec := call(t, team, user.ID)
	if _, err := s.User(ctx, user.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Sandboxes(ctx, team, store.SandboxFilter{Limit: 5}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteTemplate(ctx, team, "missing"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("%v", err)
	}
	if _, err := s.RefreshSandbox(ctx, team, newSandbox(t, team).ID, nil); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("%v", err)
	}
	if list := auditOf(t, s, team); len(list) != 0 || rec.IsStored() {
		t.Errorf("%+v", list)
	}
	rec.End(audit.Refused, "not_found")
	if err := s.PutAudit(ctx, rec); err != nil {
		t.Fatal(err)
	}
	if list := auditOf(t, s, team); len(list) != 1 || list[0].Outcome != "refused" || list[0].Code != "not_found" || list[0].Resource != "named" {
		t.Errorf("%+v", list)
	}
}

// A record says last what is known last: what was made, and that the call failed
// after all.
func TestARecordIsOneHoweverOftenItIsWritten(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	user, team := bootstrap(t, s)
	sb := newSandbox(t, team)
	insert(t, s, sb)
	ctx, rec := call(t, team, user.ID)
	for _, ttl := range []int32{1, 2} {
		if _, err := s.RefreshSandbox(ctx, team, sb.ID, &ttl); err != nil {
			t.Fatal(err)
		}
	}
	audit.Resource(ctx, "made")
	rec.End(audit.Failed, "internal_error")
	if err := s.PutAudit(ctx, rec); err != nil {
		t.Fatal(err)
	}
	if list := auditOf(t, s, team); len(list) != 1 || list[0].Resource != "made" || list[0].Outcome != "failed" {
		t.Errorf("%+v", list)
	}
}

func TestAuditPagesAndPurges(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	user, team := bootstrap(t, s)
	for range 5 {
		ctx, rec := call(t, team, user.ID)
		if err := s.PutAudit(ctx, rec); err != nil {
			t.Fatal(err)
		}
	}
	ctx, rec := call(t, uuid.Nil, uuid.Nil) // of no team
	if err := s.PutAudit(ctx, rec); err != nil {
		t.Fatal(err)
	}
	var seen []uuid.UUID
	f := store.AuditFilter{Limit: 2}
	for {
		list, err := s.Audit(t.Context(), team, f)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, r := range list {
			seen = append(seen, r.ID)
		}
		f.Before = list[len(list)-1].ID
	}
	if len(seen) != 5 {
		t.Errorf("%d records on all pages", len(seen))
	}
	if all, err := s.AuditOfAll(t.Context(), store.AuditFilter{Limit: 500}); err != nil || len(all) != 6 {
		t.Errorf("%d records in all: %v", len(all), err)
	}
	if list, err := s.Audit(t.Context(), uuid.New(), store.AuditFilter{Limit: 500}); err != nil || len(list) != 0 {
		t.Errorf("another team sees %d: %v", len(list), err)
	}
	if list, err := s.Audit(t.Context(), team, store.AuditFilter{Limit: 500, Outcome: "refused"}); err != nil || len(list) != 0 {
		t.Errorf("%d were refused: %v", len(list), err)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE audit_records SET at = now() - interval '2 hours' WHERE team_id = $1", team); err != nil {
		t.Fatal(err)
	}
	if err := s.PurgeAudit(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if all, err := s.AuditOfAll(t.Context(), store.AuditFilter{Limit: 500}); err != nil || len(all) != 1 {
		t.Errorf("%d records after the purge: %v", len(all), err)
	}
}

// X35: a statement that is sent with its record fails like one that is not.
func TestAuditedStatementsFailAsOthersDo(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	user, team := bootstrap(t, s)
	ctx, _ := call(t, team, user.ID)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.AddRefreshToken(ended, user, []byte("x"), time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := s.AddRefreshToken(ctx, store.User{ID: uuid.New()}, []byte("x"), time.Hour); err == nil {
		t.Error("a token of nobody was stored")
	}
	if err := s.AddRefreshToken(ctx, user, []byte("x"), time.Hour); err != nil {
		t.Errorf("the connection is good no more: %v", err)
	}
	s.Close()
	if err := s.AddRefreshToken(ctx, user, []byte("y"), time.Hour); err == nil {
		t.Error("a closed store stored")
	}
}
