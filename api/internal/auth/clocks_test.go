package auth

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

// at runs f where it is so long after the beginning of time.
func at(t *testing.T, after time.Duration, f func()) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		time.Sleep(after) // the bubble's clock alone
		f()
	})
}

// X48: a token holds for whoever's clock says that it does, give or take the leeway. A
// replica whose clock is an hour off takes none that others have signed, and theirs takes
// none of its own: those who hold them have to sign in again.
func TestX48_TokensFailSafely(t *testing.T) {
	t.Parallel()
	s := testSigner(t)
	for _, tt := range []struct {
		name           string
		signed, looked time.Duration
		holds          bool
	}{
		{"the same time", 2 * time.Hour, 2 * time.Hour, true},
		{"within its life", 2 * time.Hour, 2*time.Hour + accessTokenLife - time.Second, true},
		{"within the leeway ahead", 2 * time.Hour, 2*time.Hour + accessTokenLife + tokenLeeway - time.Second, true},
		{"within the leeway behind", 2 * time.Hour, 2*time.Hour - tokenLeeway + time.Second, true},
		{"five minutes behind", 2 * time.Hour, 2*time.Hour - 5*time.Minute, false},
		{"an hour ahead", 2 * time.Hour, 3 * time.Hour, false},
		{"an hour behind", 2 * time.Hour, time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var token string
			var err error
			at(t, tt.signed, func() { token, _, err = s.Sign(uuid.New(), nil, false) })
			if err != nil {
				t.Fatal(err)
			}
			at(t, tt.looked, func() { _, err = s.verify(token) })
			if holds := err == nil; holds != tt.holds {
				t.Errorf("holds: %v (%v), want %v", holds, err, tt.holds)
			}
		})
	}
}
