package store_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// A15: of many who finish one sign-in at the same time one does.
func TestA15_ASignInIsTakenOnce(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	user := firstAdmin(t, s)
	login := store.BrowserLogin{StateHash: []byte("state"), BrowserHash: []byte("browser"), Provider: "corp", ReturnURL: "https://x.test"}
	if err := s.BeginBrowserLogin(t.Context(), login, time.Minute); err != nil {
		t.Fatal(err)
	}
	device := store.DeviceLogin{IDHash: []byte("id"), Provider: "corp", SealedCode: []byte("c"), Interval: time.Second}
	if _, err := s.BeginDeviceLogin(t.Context(), device, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := s.AddLoginCode(t.Context(), store.LoginCode{Hash: []byte("code"), User: user, ReturnURL: "r"}, time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE device_logins SET next_poll = now()"); err != nil {
		t.Fatal(err)
	}
	once(t, "a browser's sign-in", func() error {
		_, err := s.TakeBrowserLogin(t.Context(), login)
		return err
	})
	once(t, "a look", func() error {
		_, turn, err := s.PollDeviceLogin(t.Context(), device)
		if err == nil && !turn {
			err = errdefs.New(errdefs.NotFound, "no turn")
		}
		return err
	})
	once(t, "a device's sign-in", func() error { return s.EndDeviceLogin(t.Context(), device) })
	once(t, "a code", func() error {
		_, err := s.TakeLoginCode(t.Context(), []byte("code"), "r")
		return err
	})
}

// once lets many do what one may.
func once(t *testing.T, what string, do func() error) {
	t.Helper()
	const many = 16
	var wg sync.WaitGroup
	errs := make([]error, many)
	for i := range errs {
		wg.Go(func() { errs[i] = do() })
	}
	wg.Wait()
	succeeded := 0
	for _, err := range errs {
		if err == nil {
			succeeded++
		} else if !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if succeeded != 1 {
		t.Errorf("%s was taken %d times", what, succeeded)
	}
}

func firstAdmin(t *testing.T, s *store.Store) uuid.UUID {
	t.Helper()
	made, err := s.CreateFirstAdmin(t.Context(), store.FirstAdmin{Email: "admin@example.com", Name: "A", TeamName: "T", TeamSlug: "default", RegionID: "local"})
	if err != nil || !made {
		t.Fatal(made, err)
	}
	u, err := s.UserByEmail(t.Context(), "admin@example.com")
	if err != nil {
		t.Fatal(err)
	}
	return u.ID
}

// What strangers begin is bounded, ends by itself and is swept.
func TestPendingSignInsAreBounded(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	_, err := conn.Exec(t.Context(), `INSERT INTO browser_logins
		SELECT sha256(n::text::bytea), '', 'corp', '', now() + interval '10 minutes' FROM generate_series(1, 20000) n`)
	if err != nil {
		t.Fatal(err)
	}
	begin := func() error {
		return s.BeginBrowserLogin(t.Context(), store.BrowserLogin{StateHash: []byte("new"), BrowserHash: []byte("b"), Provider: "corp"}, time.Minute)
	}
	err = begin()
	if !errdefs.Is(err, errdefs.Unavailable) || errdefs.From(err).RetryAfter == 0 {
		t.Errorf("one too many: %v", err)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE browser_logins SET expires_at = now() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	if err := begin(); err != nil {
		t.Errorf("after they have ended: %v", err)
	}
	if err := s.PurgeLogins(t.Context()); err != nil {
		t.Fatal(err)
	}
	var left int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM browser_logins").Scan(&left); err != nil || left != 1 {
		t.Errorf("%d are left, %v", left, err)
	}
}

// Somebody who signs in for the first time, many times at once, is one user.
func TestAFirstSignInMakesOneUser(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	firstAdmin(t, s)
	account := store.Account{Provider: "corp", Issuer: "https://i.test", Subject: "s", Email: "new@example.com", Name: "N"}
	users := make([]uuid.UUID, 8)
	errs := make([]error, len(users))
	var wg sync.WaitGroup
	for i := range users {
		wg.Go(func() {
			users[i], errs[i] = s.Identify(t.Context(), account, store.Provision{Team: "default", Role: "viewer"})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		if !bytes.Equal(u[:], users[0][:]) {
			t.Errorf("users %v", users)
		}
	}
	// An account elsewhere with the same verified address is the same person.
	account.Issuer = "https://other.test"
	if u, err := s.Identify(t.Context(), account, store.Provision{}); err != nil || u != users[0] {
		t.Errorf("a second account with the verified address: %v, %v", u, err)
	}
	account.Subject, account.Email = "t", "newer@example.com"
	_, err := s.Identify(t.Context(), account, store.Provision{})
	if !errdefs.Is(err, errdefs.PermissionDenied) {
		t.Errorf("nobody is provisioned: %v", err)
	}
	_, err = s.Identify(t.Context(), account, store.Provision{Team: "gone", Role: "viewer"})
	if !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("the team is gone: %v", err)
	}
	if _, err := s.UserByEmail(t.Context(), account.Email); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a user was made for it: %v", err)
	}
}
