package lifecycle

import (
	"testing"
	"time"
)

func TestIndexesRest(t *testing.T) {
	t.Parallel()
	x := newIndexes(3)
	now := time.Unix(1000, 0)
	x.hold(1)
	if got := x.take(now); got != 2 {
		t.Fatalf("first free index: %d, want 2", got)
	}
	x.release(1, now)
	if got := x.take(now.Add(time.Second)); got != 3 {
		t.Fatalf("while 1 rests: %d, want 3", got)
	}
	if got := x.take(now.Add(time.Second)); got != 0 {
		t.Fatalf("none is left: %d", got)
	}
	if got := x.take(now.Add(indexRest)); got != 1 {
		t.Fatalf("after its rest: %d, want 1", got)
	}
}
