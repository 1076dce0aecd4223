package work

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/volumed/internal/store"
)

// A commit that is cut off at any place, by the death of the process or of the machine,
// loses nothing and doubles nothing (X46, R7).
func TestX46_CommitsThatAreCutOff(t *testing.T) {
	for _, again := range []string{"restart", "reboot"} {
		for _, place := range []string{"volume.after-layer", "volume.after-intent", "volume.after-link", "volume.after-version"} {
			t.Run(again+" "+place, func(t *testing.T) {
				b := newBench(t)
				if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
					t.Fatal(err)
				}
				at := b.use()
				write(t, at, "first", "gone later", "rewritten")
				b.commit()
				if err := errors.Join(os.Remove(filepath.Join(at, "gone later"))); err != nil {
					t.Fatal(err)
				}
				write(t, at, "second", "rewritten")
				if err := failpoint.Arm(place + "=error"); err != nil {
					t.Fatal(err)
				}
				_, _, err := b.manager.Commit(t.Context(), "vol")
				if armed := failpoint.Arm(""); armed != nil || err == nil {
					t.Fatalf("a commit that is cut off ended with %v, %v", err, armed)
				}
				if err := os.Remove(filepath.Join(at, "second")); err != nil { // what the cut one had seen
					t.Fatal(err)
				}
				write(t, at, "third")
				if again == "restart" {
					b.restart()
				} else {
					b.reboot()
				}
				at = b.use()
				want := describe(t, at)
				if len(want) != 4 {
					t.Errorf("the volume has %d entries: %v", len(want), want)
				}
				b.commit()
				compare(t, "committed", b.committed(), want)
			})
		}
	}
}

func write(t *testing.T, dir string, names ...string) {
	t.Helper()
	for i, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), fmt.Append(nil, name, i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What a replaced node has not committed is put aside: never in the volume, never lost.
func TestX47_AReplacedNodeCommitsNothing(t *testing.T) {
	b := newBench(t)
	if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
		t.Fatal(err)
	}
	write(t, b.use(), "mine")
	other, err := b.store.Begin("vol", 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.manager.Commit(t.Context(), "vol"); errdefs.From(err).Code != store.CodeFenced {
		t.Errorf("a commit of the replaced node: %v", err)
	}
	if head, err := b.store.Head("vol"); err != nil || head.Seq != other.Seq {
		t.Errorf("head %+v, %v; want %+v", head, err, other)
	}
	b.reboot()
	aside, err := filepath.Glob(filepath.Join(b.dir, "data", asideDir, "vol.*", "upper", "mine"))
	if err != nil || len(aside) != 1 {
		t.Errorf("put aside: %v, %v", aside, err)
	}
	b.spec.Epoch = 3 // it gets the volume again
	if all, err := os.ReadDir(b.use()); err != nil || len(all) != 0 {
		t.Errorf("the volume has %v, %v", all, err)
	}
}
