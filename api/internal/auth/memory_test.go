package auth

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// people is a database with one user whose answers the test decides.
type people struct {
	oneUser
	reads atomic.Int32
	read  func(ctx context.Context) (disabled bool, err error)
}

func (p *people) User(ctx context.Context, id uuid.UUID) (store.User, error) {
	p.reads.Add(1)
	disabled, err := p.read(ctx)
	return store.User{ID: id, Disabled: disabled}, err
}

var errAway = errdefs.New(errdefs.Unavailable, "the database is not available")

// signedIn is an authenticator that has looked up its only user, and his token.
func signedIn(t *testing.T) (*Authenticator, *people, string) {
	t.Helper()
	p := &people{oneUser: oneUser{uuid.New(), uuid.New()}, read: func(context.Context) (bool, error) { return false, nil }}
	a := NewAuthenticator(testSigner(t), p)
	token, _, err := a.signer.Sign(p.user, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Lookup(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	return a, p, token
}

// A06: without anybody to tell of a change, it is seen within seconds.
func TestA06_RightsAreLookedUpAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, p, token := signedIn(t)
		p.read = func(context.Context) (bool, error) { return true, nil } // disabled, and nobody says so
		if _, known, err := a.Known(token); !known || err != nil {
			t.Fatalf("%v %v", known, err)
		}
		time.Sleep(10 * time.Second)
		if _, known, _ := a.Known(token); known {
			t.Fatal("what was read 10 s ago is taken for true")
		}
		if _, err := a.Lookup(t.Context(), token); !errdefs.Is(err, errdefs.Unauthenticated) {
			t.Fatalf("a disabled user: %v", err)
		}
		// And it does not come back when the database goes.
		p.read = func(context.Context) (bool, error) { return false, errAway }
		if _, err := a.Lookup(t.Context(), token); !errdefs.Is(err, errdefs.Unavailable) {
			t.Fatalf("a disabled user, without the database: %v", err)
		}
	})
}

// X34: while the database is away, what held last holds on, for a minute.
func TestX34_RightsHoldOnWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, p, token := signedIn(t)
		p.read = func(context.Context) (bool, error) { return false, errAway }
		began := time.Now()
		for time.Since(began) < 55*time.Second {
			time.Sleep(4 * time.Second)
			if _, known, _ := a.Known(token); known {
				continue
			}
			if id, err := a.Lookup(t.Context(), token); err != nil || id.UserID != p.user || len(id.Grants) != 1 {
				t.Fatalf("after %v: %+v %v", time.Since(began), id, err)
			}
		}
		if n := p.reads.Load(); n > 15 {
			t.Errorf("the database was asked %d times in a minute", n)
		}
		time.Sleep(10 * time.Second)
		if _, err := a.Lookup(t.Context(), token); !errdefs.Is(err, errdefs.Unavailable) {
			t.Fatalf("after more than a minute: %v", err)
		}
	})
}

// X35: a database that is slow keeps nobody waiting who was known a moment ago,
// and what it says at last counts.
func TestX35_ASlowDatabaseKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, p, token := signedIn(t)
		time.Sleep(freshLife + time.Second)
		p.read = func(ctx context.Context) (bool, error) {
			select {
			case <-time.After(2 * time.Second):
				return true, nil // he was disabled
			case <-ctx.Done():
				return false, ctx.Err()
			}
		}
		began := time.Now()
		if _, err := a.Lookup(t.Context(), token); err != nil || time.Since(began) > time.Second {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
		time.Sleep(3 * time.Second)
		if _, known, _ := a.Known(token); known {
			t.Fatal("the answer that came late was not heeded")
		}
	})
}

// A06: a change that is told while somebody waits is not slept over: who has no
// answer yet is let in by nothing that was known before it.
func TestA06_AChangeWhileTheDatabaseIsSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, p, token := signedIn(t)
		time.Sleep(freshLife + time.Second)
		p.read = func(ctx context.Context) (bool, error) {
			<-ctx.Done()
			return false, ctx.Err()
		}
		done := make(chan error, 1)
		go func() {
			_, err := a.Lookup(t.Context(), token)
			done <- err
		}()
		synctest.Wait()
		a.Forget()
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v", err)
		}
	})
}

// No number of teams makes a token too large to be taken.
func TestTokensStaySmall(t *testing.T) {
	t.Parallel()
	s := testSigner(t)
	grants := make([]Grant, 500)
	for i := range grants {
		grants[i] = Grant{TeamID: uuid.New(), TeamRole: RoleDeveloper, HomeRegionID: "a-region-with-a-long-name"}
	}
	token, _, err := s.Sign(uuid.New(), grants, false)
	if err != nil || len(token) > maxTokenBytes {
		t.Fatalf("%d bytes: %v", len(token), err)
	}
	if _, err := s.verify(token); err != nil {
		t.Fatal(err)
	}
}
