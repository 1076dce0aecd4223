package identity_test

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"s0.run/api/internal/auth"
	"s0.run/api/internal/identity"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/s0test"
)

func service(t *testing.T) (*identity.Service, *auth.Authenticator) {
	t.Helper()
	s, err := store.Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	signer, err := auth.NewSigner(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return identity.New(identity.Config{Store: s, Signer: signer, Hasher: auth.NewHasher(), RegionID: "local"}), auth.NewAuthenticator(signer, s)
}

func TestASession(t *testing.T) {
	t.Parallel()
	svc, a := service(t)
	password, err := svc.Bootstrap(t.Context(), "admin@example.com", "")
	if err != nil || len(password) != 20 {
		t.Fatalf("%d characters: %v", len(password), err)
	}
	if again, err := svc.Bootstrap(t.Context(), "other@example.com", ""); err != nil || again != "" {
		t.Fatalf("there is a user already: %q %v", again, err)
	}
	for _, c := range [][2]string{{"admin@example.com", "wrong password"}, {"nobody@example.com", password}, {"", ""}} {
		_, err := svc.Login(t.Context(), c[0], c[1])
		if e := errdefs.From(err); e.Kind != errdefs.Unauthenticated || e.Message != "invalid email or password" {
			t.Errorf("%q: %v", c[0], err)
		}
	}
	first, err := svc.Login(t.Context(), "ADMIN@example.com", password)
	if err != nil || first.DefaultTeam == uuid.Nil {
		t.Fatalf("%+v: %v", first, err)
	}
	id, err := a.Lookup(t.Context(), first.AccessToken)
	if err != nil || id.UserID != first.User.ID || len(id.Grants) != 1 || id.Grants[0].TeamRole != auth.RoleAdmin || !id.IsAdmin {
		t.Fatalf("%+v: %v", id, err)
	}
	second, err := svc.Refresh(t.Context(), first.RefreshToken)
	if err != nil || second.RefreshToken == first.RefreshToken {
		t.Fatalf("%v", err)
	}
	if _, err := svc.Refresh(t.Context(), first.RefreshToken); errdefs.From(err).Message != "invalid refresh token" {
		t.Fatalf("A06: a token used twice: %v", err)
	}
	if _, err := svc.Refresh(t.Context(), second.RefreshToken); !errdefs.Is(err, errdefs.Unauthenticated) {
		t.Fatalf("A06: its family must have ended: %v", err)
	}
}

func TestChangingThePassword(t *testing.T) {
	t.Parallel()
	svc, _ := service(t)
	const old, next = "first password", "second password"
	if got, err := svc.Bootstrap(t.Context(), "a@example.com", old); err != nil || got != old {
		t.Fatalf("%q: %v", got, err)
	}
	session, err := svc.Login(t.Context(), "a@example.com", old)
	if err != nil {
		t.Fatal(err)
	}
	user := session.User.ID
	if err := svc.ChangePassword(t.Context(), user, "wrong", next); !errdefs.Is(err, errdefs.PermissionDenied) {
		t.Errorf("without the old one: %v", err)
	}
	if err := svc.ChangePassword(t.Context(), user, old, "short"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("too short: %v", err)
	}
	if err := svc.ChangePassword(t.Context(), user, old, next); err != nil {
		t.Fatal(err)
	}
	if _, err := svc.Refresh(t.Context(), session.RefreshToken); !errdefs.Is(err, errdefs.Unauthenticated) {
		t.Errorf("the session must have ended: %v", err)
	}
	if _, err := svc.Login(t.Context(), "a@example.com", old); !errdefs.Is(err, errdefs.Unauthenticated) {
		t.Errorf("the old password: %v", err)
	}
	session, err = svc.Login(t.Context(), "a@example.com", next)
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Logout(t.Context(), user, session.RefreshToken); err != nil {
		t.Fatal(err)
	}
	if _, err := svc.Refresh(t.Context(), session.RefreshToken); !errdefs.Is(err, errdefs.Unauthenticated) {
		t.Errorf("after the logout: %v", err)
	}
}

func TestAWeakInitialPasswordIsRefused(t *testing.T) {
	t.Parallel()
	svc, _ := service(t)
	if _, err := svc.Bootstrap(t.Context(), "a@example.com", "short"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Fatalf("%v", err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	svc, a := service(t)
	if _, err := svc.Bootstrap(t.Context(), "a@example.com", "the password"); err != nil {
		t.Fatal(err)
	}
	session, err := svc.Login(t.Context(), "a@example.com", "the password")
	if err != nil {
		t.Fatal(err)
	}
	id, err := a.Lookup(t.Context(), session.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := id.InTeam("")
	if err != nil {
		t.Fatal(err)
	}
	row, secret, err := svc.CreateKey(t.Context(), admin, identity.NewKey{Name: "k", Scope: auth.ScopeTeam, Roles: []string{auth.RoleViewer}})
	if err != nil || row.ExpiresAt != nil || bytes.Contains(row.Hash, []byte(secret)) {
		t.Fatalf("%+v: %v", row, err)
	}
	keyID, err := a.Lookup(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := keyID.InTeam(""); err != nil || p.Can(auth.SandboxCreate) || !p.Can(auth.SandboxRead) {
		t.Errorf("%+v: %v", p, err)
	}
	if _, _, err := svc.CreateKey(t.Context(), admin, identity.NewKey{Name: "k", Scope: auth.ScopeTeam, Roles: []string{"root"}}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("unknown role: %v", err)
	}
	admin.IsAdmin = false
	if _, _, err := svc.CreateKey(t.Context(), admin, identity.NewKey{Name: "k", Scope: auth.ScopePlatform, Roles: []string{auth.RoleAdmin}}); !errdefs.Is(err, errdefs.PermissionDenied) {
		t.Errorf("a platform key by a team's admin: %v", err)
	}
}
