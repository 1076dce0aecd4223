package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
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
	var refusals, busy int
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
			status := refused[i].StatusCode
			if status == 503 {
				busy++
			}
			if status != 429 && status != 503 || refused[i].RetryAfter <= 0 {
				t.Errorf("claim %d was refused with %d %q, Retry-After %s: want 429 or 503 and a time", i, status, refused[i].Code, refused[i].RetryAfter)
			}
		}
	}
	t.Logf("%d sandboxes and %d refusals, %d of them for a while, in %s", len(owners), refusals, busy, took)
	if len(owners)+busy < pool {
		t.Errorf("%d claims got a sandbox and %d may have been given up on the way, the pool alone had %d", len(owners), busy, pool)
	}
	if len(owners)+refusals != claims {
		t.Errorf("%d claims are not accounted for", claims-len(owners)-refusals)
	}

	// What each was told is what the node has, once half a claim of who was refused is undone.
	given := slices.Sorted(maps.Keys(owners))
	s.Eventually("everyone's sandbox to be there, and nobody else's", func() error {
		if has := s.Sandboxes(); !slices.Equal(has, given) {
			return fmt.Errorf("%v were given away, the node has %v", given, has)
		}
		return nil
	})
	for id := range owners {
		u.remove(id)
	}
	s.CheckOwned()
}
