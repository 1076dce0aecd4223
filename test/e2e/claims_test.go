package e2e_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestConcurrentClaims: 200 claims at once on a pool of 50. Each is answered: a
// sandbox of its own, warm or cold, or a refusal that says when to come back.
// Nobody gets what another has, and in the end nothing is left.
func TestConcurrentClaims(t *testing.T) {
	const claims, pool = 200, 50
	s := s0test.Start(t, s0test.Options{Pool: pool, MaxSandboxes: claims})
	u := newUser(t, s)
	s.Eventually("a full pool", func() error {
		live, err := s.Live()
		if err == nil && len(live) < pool {
			return errors.New("not yet")
		}
		return err
	})

	results := make([]*client.ClaimResponse, claims)
	refused := make([]*client.APIError, claims)
	ctx := u.ctx()
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range claims {
		wg.Go(func() {
			<-start
			res, err := u.c.CreateSandbox(ctx, client.ClaimRequest{Template: "default"})
			if err != nil && !errors.As(err, &refused[i]) {
				t.Errorf("claim %d: %v, want a sandbox or an answer of the API", i, err)
			}
			results[i] = res
		})
	}
	began := time.Now()
	close(start)
	wg.Wait()
	took := time.Since(began)

	owners := map[string]int{}
	var refusals int
	for i := range claims {
		switch {
		case results[i] != nil:
			if first, ok := owners[results[i].SandboxID]; ok {
				t.Errorf("claims %d and %d both got %s", first, i, results[i].SandboxID)
			}
			owners[results[i].SandboxID] = i
		case refused[i] != nil:
			refusals++
			// 503: on a busy machine the crowd also waits too long for the database.
			if status := refused[i].StatusCode; status != 429 && status != 503 || refused[i].RetryAfter <= 0 {
				t.Errorf("claim %d was refused with %d %q, Retry-After %s: want 429 or 503 and a time", i, status, refused[i].Code, refused[i].RetryAfter)
			}
		}
	}
	t.Logf("%d sandboxes and %d refusals in %s", len(owners), refusals, took)
	if len(owners) < pool {
		t.Errorf("%d claims got a sandbox, the pool alone had %d", len(owners), pool)
	}
	if len(owners)+refusals != claims {
		t.Errorf("%d claims are not accounted for", claims-len(owners)-refusals)
	}

	// What each was told is what the node has: everyone's sandbox is there, and is
	// nobody else's.
	known := map[string]bool{}
	for _, id := range s.Sandboxes() {
		known[id] = true
		if _, ok := owners[id]; !ok {
			t.Errorf("the node has %s, which nobody was given", id)
		}
	}
	for id := range owners {
		if !known[id] {
			t.Errorf("%s was given away, but the node does not have it", id)
		}
	}
	for id := range owners {
		u.remove(id)
	}
	s.CheckOwned()
}
