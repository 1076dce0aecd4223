package work

import (
	"math/rand/v2"
	"testing"

	"s0.run/internal/s0test/fsx"
)

// What programs read and write at random, through descriptors, mappings, holes and renames, is
// what they wrote, also in what is committed, and in the volume that is mounted anew after a
// kill, a reboot and a move (X46).
func TestX46_RandomInputAndOutputHolds(t *testing.T) {
	for name, limit := range map[string]int64{"unlimited": 0, "limited": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.spec.Limit = limit
			if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
				t.Fatal(err)
			}
			s := *seed
			if s == 0 {
				s = rand.Uint64()
			}
			t.Logf("-seed %d repeats this", s)
			w := &walker{bench: b, rng: rand.New(rand.NewPCG(s, 1)), at: b.use()}
			var err error
			if w.walk, err = fsx.New(w.at, s); err != nil {
				t.Fatal(err)
			}
			for range max(1, *steps/20) {
				w.must(w.walk.Steps(60))
				w.happens(w.rng.IntN(4))
			}
			w.must(w.walk.Check(w.at))
			w.must(w.walk.Close())
			t.Logf("what the file system can't do: %q", w.walk.Cant())
		})
	}
}

// walker is random work on a volume to which things happen.
type walker struct {
	*bench
	rng  *rand.Rand
	walk *fsx.Walk
	at   string
}

func (w *walker) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *walker) happens(what int) {
	w.t.Helper()
	switch what {
	case 0:
		w.commit()
		at, err := w.manager.Use(w.t.Context(), w.spec, "reader", true)
		w.must(err)
		w.must(w.walk.Check(at))
		w.must(w.manager.Leave(w.t.Context(), w.spec.ID, "reader"))
		return
	case 1:
		w.restart() // the descriptors stay good
		w.at = w.use()
		return
	case 2:
		w.must(w.walk.Close())
		w.reboot()
	case 3:
		w.must(w.walk.Close())
		w.must(w.manager.Leave(w.t.Context(), w.spec.ID, "mount"))
		w.must(w.manager.Release(w.t.Context(), w.spec.ID, w.spec.Epoch))
		w.spec.Epoch++
	}
	w.at = w.use()
	w.must(w.walk.Check(w.at))
	w.must(w.walk.Reopen(w.at))
}
