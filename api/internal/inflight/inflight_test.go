package inflight

import (
	"sync"
	"sync/atomic"
	"testing"
)

func TestEachOwnerHasItsOwnBound(t *testing.T) {
	t.Parallel()
	c := New[string](2)
	one, ok1 := c.Enter("a")
	two, ok2 := c.Enter("a")
	if _, ok := c.Enter("a"); !ok1 || !ok2 || ok {
		t.Fatalf("entered: %v, %v and then %v, want two", ok1, ok2, ok)
	}
	other, ok := c.Enter("b")
	if !ok {
		t.Error("another owner was refused")
	}
	one()
	again, ok := c.Enter("a")
	if !ok {
		t.Fatal("refused although one has left")
	}
	for _, leave := range []func(){two, other, again} {
		leave()
	}
	if len(c.now) != 0 {
		t.Errorf("owners without anything are remembered: %v", c.now)
	}
}

func TestNoMoreThanTheMostAtOnce(t *testing.T) {
	t.Parallel()
	const most = 3
	c := New[int](most)
	var inside, highest atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				leave, ok := c.Enter(1)
				if !ok {
					continue
				}
				n := inside.Add(1)
				for old := highest.Load(); n > old && !highest.CompareAndSwap(old, n); old = highest.Load() {
				}
				inside.Add(-1)
				leave()
			}
		})
	}
	wg.Wait()
	if h := highest.Load(); h > most || h == 0 {
		t.Errorf("%d at once, want 1 to %d", h, most)
	}
}
