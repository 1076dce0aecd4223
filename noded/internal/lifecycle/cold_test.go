package lifecycle

import (
	"context"
	"slices"
	"sync"
	"testing"
)

// D09: a team that starts many sandboxes does not keep another from starting one.
func TestD09_TheLastColdStartIsForAnotherTeam(t *testing.T) {
	t.Parallel()
	shared := true
	c := newColdStarts(3, func() tenants { return tenants{"greedy", shared} })
	take := func(team string, want bool) (end func()) {
		t.Helper()
		end, ok := c.begin(team)
		if ok != want {
			t.Errorf("%s, shared %v: %v", team, shared, ok)
		}
		return end
	}
	first := take("greedy", true)
	second := take("greedy", true)
	take("greedy", false)
	other := take("modest", true)
	take("modest", false)
	take("third", false) // none is left
	other()
	shared = false
	third := take("greedy", true) // alone, it may have them all
	first()
	second()
	third()
	c.isIdle(t)
}

func (c *coldStarts) isIdle(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all != 0 || len(c.of) != 0 || len(c.queue) != 0 || len(c.last) != 0 {
		t.Errorf("%d places of %v are taken, %d wait, %v", c.all, c.of, len(c.queue), c.last)
	}
}

// join has a team wait, and returns when it does.
func (c *coldStarts) join(ctx context.Context, t *testing.T, wg *sync.WaitGroup, team string, done func(end func(), ok bool)) {
	t.Helper()
	c.mu.Lock()
	before := len(c.queue)
	c.mu.Unlock()
	wg.Go(func() { done(c.wait(ctx, team)) })
	for {
		c.mu.Lock()
		now := len(c.queue)
		c.mu.Unlock()
		if now > before {
			return
		}
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// D13: resumes wait for places, and a team that resumes many keeps no other waiting behind
// all of them.
func TestD13_ResumesTakeTurnsByTeam(t *testing.T) {
	t.Parallel()
	c := newColdStarts(1, func() tenants { return tenants{"other", true} })
	end, ok := c.begin("greedy")
	if !ok {
		t.Fatal("no place")
	}
	var wg sync.WaitGroup
	var order []string // whoever has the only place appends
	for _, team := range []string{"greedy", "greedy", "greedy", "modest", "third", "modest"} {
		c.join(t.Context(), t, &wg, team, func(end func(), ok bool) {
			if !ok {
				t.Errorf("%s is refused", team)
				return
			}
			order = append(order, team)
			end()
		})
	}
	end()
	wg.Wait()
	if want := []string{"modest", "third", "greedy", "modest", "greedy", "greedy"}; !slices.Equal(order, want) {
		t.Errorf("they began as %v, not as %v", order, want)
	}
	c.isIdle(t)
}

// D13: the queue is bounded, and no team has all of it.
func TestD13_TheQueueIsBounded(t *testing.T) {
	t.Parallel()
	c := newColdStarts(1, func() tenants { return tenants{"other", true} })
	end, _ := c.begin("other")
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	refused := func(_ func(), ok bool) {
		if ok {
			t.Error("there was a place")
		}
	}
	for i := range maxWaiting {
		c.join(ctx, t, &wg, []string{"greedy", "modest"}[i%2], refused)
	}
	for _, team := range []string{"greedy", "third"} {
		if _, ok := c.wait(ctx, team); ok {
			t.Errorf("%s has a place", team)
		}
	}
	cancel()
	wg.Wait()
	for range maxWaiting / 2 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.join(ctx, t, &wg, "greedy", func(end func(), ok bool) {
			if ok {
				end()
			}
		})
	}
	if _, ok := c.wait(t.Context(), "greedy"); ok {
		t.Error("one team has more than half of the queue")
	}
	end()
	wg.Wait()
	c.isIdle(t)
}

// Who gives up in the moment in which he gets a place has not got it.
func TestG03_APlaceForWhoHasLeft(t *testing.T) {
	t.Parallel()
	for range 200 {
		c := newColdStarts(1, func() tenants { return tenants{one: "a"} })
		end, _ := c.begin("a")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		c.join(ctx, t, &wg, "a", func(end func(), ok bool) {
			if ok {
				end()
			}
		})
		wg.Go(end)
		wg.Go(cancel)
		wg.Wait()
		c.isIdle(t)
	}
}

// Who is on the node is looked up without the queue's lock, which every end of a start takes.
func TestD13_TheQueueWaitsForNoTable(t *testing.T) {
	t.Parallel()
	var c *coldStarts
	c = newColdStarts(2, func() tenants {
		c.mu.Lock() // or this hangs
		defer c.mu.Unlock()
		return tenants{one: "a"}
	})
	end, ok := c.begin("a")
	other, also := c.wait(t.Context(), "a")
	if !ok || !also {
		t.Fatal("no place")
	}
	end()
	other()
	c.isIdle(t)
}

func TestTenants(t *testing.T) {
	t.Parallel()
	for here, want := range map[tenants]bool{{}: false, {one: "a"}: false, {one: "b"}: true, {"a", true}: true} {
		if got := here.beside("a"); got != want {
			t.Errorf("%+v beside a: %v", here, got)
		}
	}
}
