package metering

import (
	"math/rand/v2"
	"slices"
	"testing"

	"s0.run/api/internal/store"
	"s0.run/internal/sandbox"
)

// A node that names one sandbox again and again is stored in a few lists: one reading of
// a generation, and no more than so many generations, the newest.
func TestOneSandboxMakesFewRounds(t *testing.T) {
	t.Parallel()
	var same []store.Reading
	for n := range mostRead {
		same = append(same, store.Reading{ID: "a", Generation: 1, IngressBytes: int64(n)})
	}
	same = append(same, store.Reading{ID: "a", Generation: 1, EgressBytes: 0, Final: true}, store.Reading{ID: "b", Generation: 1})
	got := rounds(same)
	if len(got) != 1 || len(got[0]) != 2 {
		t.Fatalf("%d lists of one generation of two", len(got))
	}
	for _, r := range got[0] {
		if r.ID == "a" && (r.IngressBytes != mostRead-1 || !r.Final) {
			t.Errorf("it counts as %+v", r)
		}
	}
	var many []store.Reading
	for n := range mostRead {
		many = append(many, store.Reading{ID: "a", Generation: sandbox.Generation(n)})
	}
	check := func() {
		t.Helper()
		got := rounds(many)
		if len(got) != mostRounds {
			t.Fatalf("%d lists", len(got))
		}
		for n, list := range got {
			if len(list) != 1 || list[0].Generation != sandbox.Generation(mostRead-mostRounds+n) {
				t.Fatalf("list %d has %+v", n, list)
			}
		}
	}
	check()
	slices.Reverse(many)
	check()
	rand.Shuffle(len(many), func(i, j int) { many[i], many[j] = many[j], many[i] })
	check()
}
