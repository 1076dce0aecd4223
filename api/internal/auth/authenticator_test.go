package auth

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/s0test"
)

// counting lets a test see, and stop, the reads of a real store.
type counting struct {
	*store.Store
	reads atomic.Int32
	read  func() // called after each read, before its result is used
}

func (c *counting) APIKeyByPrefix(ctx context.Context, prefix string) (store.APIKey, error) {
	k, err := c.Store.APIKeyByPrefix(ctx, prefix)
	c.reads.Add(1)
	if c.read != nil {
		c.read()
	}
	return k, err
}

func keyFixture(t *testing.T) (*counting, uuid.UUID, uuid.UUID) {
	t.Helper()
	s, err := store.Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if _, err := s.CreateFirstAdmin(t.Context(), store.FirstAdmin{Email: "a@b", Name: "a", PasswordHash: "x", TeamName: "t", TeamSlug: "t", RegionID: "local"}); err != nil {
		t.Fatal(err)
	}
	u, err := s.UserByEmail(t.Context(), "a@b")
	if err != nil {
		t.Fatal(err)
	}
	grants, err := s.Grants(t.Context(), u.ID)
	if err != nil {
		t.Fatal(err)
	}
	return &counting{Store: s}, u.ID, grants[0].TeamID
}

func addKey(t *testing.T, s *counting, user, team uuid.UUID, scope string, life time.Duration) (APIKey, store.APIKey) {
	t.Helper()
	k := NewAPIKey("local")
	row, err := s.CreateAPIKey(t.Context(), team, store.APIKey{CreatedBy: user, Name: "k", Scope: scope, Roles: []string{RoleDeveloper}, Prefix: k.Prefix, Hash: k.Hash}, life)
	if err != nil {
		t.Fatal(err)
	}
	return k, row
}

func TestAPIKeyIsReadOnceAndForgottenOnChange(t *testing.T) {
	t.Parallel()
	s, user, team := keyFixture(t)
	a := NewAuthenticator(testSigner(t), s)
	k, row := addKey(t, s, user, team, ScopeTeam, time.Hour)
	if !strings.HasPrefix(k.Secret, "s0_local_") || len(k.Secret) != len("s0_local_")+48 {
		t.Fatalf("key of the wrong form: %d bytes", len(k.Secret))
	}
	if _, known, _ := a.Known(k.Secret); known {
		t.Fatal("a key that nobody looked up must not be known")
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if id, err := a.Lookup(t.Context(), k.Secret); err != nil || id.KeyID != row.ID || id.UserID != user {
				t.Errorf("%+v: %v", id, err)
			}
		})
	}
	wg.Wait()
	id, known, err := a.Known(k.Secret)
	if err != nil || !known || id.KeyID != row.ID {
		t.Fatalf("%+v %v: %v", id, known, err)
	}
	if p, err := id.InTeam(""); err != nil || p.TeamID != team || !p.Can(SandboxCreate) || p.Can(APIKeyManage) {
		t.Fatalf("%+v: %v", p, err)
	}
	if err := s.DeactivateAPIKey(t.Context(), team, row.ID); err != nil {
		t.Fatal(err)
	}
	a.Forget()
	if _, known, _ := a.Known(k.Secret); known {
		t.Fatal("A06: a changed key must be forgotten")
	}
	if _, err := a.Lookup(t.Context(), k.Secret); !errdefs.Is(err, errdefs.Unauthenticated) {
		t.Fatalf("A06: deactivated key: %v", err)
	}
}

func TestA06_AChangeDuringTheReadIsNotCachedOver(t *testing.T) {
	t.Parallel()
	s, user, team := keyFixture(t)
	a := NewAuthenticator(testSigner(t), s)
	k, _ := addKey(t, s, user, team, ScopeTeam, 0)
	s.read = a.Forget // the notification arrives between the read and its use
	if _, err := a.Lookup(t.Context(), k.Secret); err != nil {
		t.Fatal(err)
	}
	if _, known, _ := a.Known(k.Secret); known {
		t.Fatal("what was read before the change must not be remembered after it")
	}
}

func TestA04_UnknownAndWrongKeysAreRefusedAlike(t *testing.T) {
	t.Parallel()
	s, user, team := keyFixture(t)
	a := NewAuthenticator(testSigner(t), s)
	k, _ := addKey(t, s, user, team, ScopeTeam, 0)
	expired, _ := addKey(t, s, user, team, ScopeTeam, time.Nanosecond*1000)
	wrongSecret := k.Secret[:len(k.Secret)-1] + flip(k.Secret[len(k.Secret)-1])
	otherRegion := strings.Replace(k.Secret, "s0_local_", "s0_other_", 1)
	for name, token := range map[string]string{
		"unknown prefix": NewAPIKey("local").Secret,
		"wrong secret":   wrongSecret,
		"other region":   otherRegion,
		"expired":        expired.Secret,
		"upper case":     strings.ToUpper(k.Secret[:3]) + k.Secret[3:] + "F",
		"too short":      k.Secret[:len(k.Secret)-1],
		"no region":      "s0__" + k.Secret[len(k.Secret)-48:],
		"injection":      "s0_' OR 1=1 --_" + k.Secret[len(k.Secret)-48:],
	} {
		_, err := a.Lookup(t.Context(), token)
		if !errdefs.Is(err, errdefs.Unauthenticated) || errdefs.From(err).Message != ErrUnauthenticated.Message {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(err.Error(), token) {
			t.Errorf("A07: %s: the token is in the error", name)
		}
	}
	before := s.reads.Load()
	for range 3 {
		a.Lookup(t.Context(), wrongSecret)
	}
	if s.reads.Load() != before+3 {
		t.Error("a refused key must not be remembered")
	}
}

func TestKeysFailClosedWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	s, user, team := keyFixture(t)
	a := NewAuthenticator(testSigner(t), s)
	k, _ := addKey(t, s, user, team, ScopePlatform, 0)
	id, err := a.Lookup(t.Context(), k.Secret)
	if err != nil {
		t.Fatal(err)
	}
	other := uuid.New()
	if p, err := id.InTeam(other.String()); err != nil || p.TeamID != other || !p.Can(APIKeyManage) {
		t.Fatalf("a platform key acts in any team: %+v %v", p, err)
	}
	s.Store.Close()
	if _, known, err := a.Known(k.Secret); !known || err != nil {
		t.Fatalf("X34: a key that is known must hold on without the database: %v %v", known, err)
	}
	if _, err := a.Lookup(t.Context(), NewAPIKey("local").Secret); err == nil || errdefs.Is(err, errdefs.Unauthenticated) {
		t.Fatalf("without the database nobody can say that a key does not hold: %v", err)
	}
}

func flip(c byte) string {
	if c == '0' {
		return "1"
	}
	return "0"
}
