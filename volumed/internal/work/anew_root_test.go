package work

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/layers"
)

// mountAnew has the store be mounted another time: what was opened in the earlier mounting
// is of no use any more.
func (b *bench) mountAnew() {
	b.t.Helper()
	tier, earlier := filepath.Join(b.dir, "tier"), filepath.Join(b.dir, "earlier")
	if err := errors.Join(os.Rename(tier, earlier), os.Mkdir(tier, 0o700), unix.Mount("tmpfs", tier, "tmpfs", 0, "")); err != nil {
		b.t.Fatal(err)
	}
	if err := os.CopyFS(tier, os.DirFS(earlier)); err != nil {
		b.t.Fatal(err)
	}
	layers, err := filepath.Glob(filepath.Join(earlier, "layers", "*"))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, l := range layers {
		if err := os.Truncate(l, 0); err != nil {
			b.t.Fatal(err)
		}
	}
}

// When the store was lost and is mounted anew, nothing is taken from what was mounted
// before, in this process or the next; what is written through the earlier view of who is
// still there is committed, and a new one is had by who comes then (X43).
func TestX43_NothingLiesOnALostStore(t *testing.T) {
	for _, again := range []string{"goes on", "restart"} {
		t.Run(again, func(t *testing.T) {
			b, at := created(t)
			if _, err := b.manager.Use(t.Context(), b.spec, "reader", true); err != nil {
				t.Fatal(err)
			}
			b.mountAnew()
			write(t, b.manager.upperDir("vol"), "mine") // through a view that may answer EIO
			if again == "restart" {
				b.restart()
			}
			b.commit()
			if now := b.use(); now != at {
				t.Errorf("who writes is shown %s, beside %s", now, at)
			}
			path, err := b.manager.Use(t.Context(), b.spec, "another", true)
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(t, path); got["mine"] == "" || got["committed"] == "" {
				t.Errorf("a reader sees %v", got)
			}
			for _, use := range []string{"reader", "another", "mount"} {
				if err := b.manager.Leave(t.Context(), "vol", use); err != nil {
					t.Fatal(err)
				}
			}
			now := b.use()
			if now == at {
				t.Error("a new writer has the earlier view")
			}
			write(t, now, "later")
			b.commit()
			compare(t, "committed", b.committed(), describe(t, now))
			b.manager.layers.dropOrphans()
			mounting, err := b.store.Mounted()
			if err != nil {
				t.Fatal(err)
			}
			mounts, err := layers.Mounts(filepath.Join(b.dir, "run"))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range mounts {
				if rel, _ := filepath.Rel(filepath.Join(b.dir, "run"), m); !strings.HasPrefix(rel[2:], mounting) {
					t.Errorf("%s is still mounted, of %s", rel, mounting)
				}
			}
		})
	}
}
