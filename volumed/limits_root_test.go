package volumed_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/volumeapi"
)

// limited makes a volume of so many bytes, and uses it.
func (n *node) limited(id string, limit int64) (use func() (at string)) {
	n.Helper()
	v := volume(id, 1)
	v.Limit = limit
	_, err := n.api.Create(n.ctx(), volumeapi.Create{Volume: v})
	n.must(err)
	return func() string {
		n.Helper()
		m, err := n.api.Use(n.ctx(), volumeapi.Use{Volume: v, Use: "writer-" + id})
		n.must(err)
		return m.Path
	}
}

// killedDuring kills the volumed in the middle of what is done until it fails, and starts
// another one.
func (n *node) killedDuring(do func() error, middle func() bool) error {
	n.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	n.until("the middle", middle)
	n.kill()
	err := <-done
	n.start("")
	return err
}

// R7, X46: what was fsynced in a volume that has a limit is there after its volumed was
// killed, at every place of a commit, and what was fsynced while none ran.
func TestR7_FsyncInAVolumeWithALimit(t *testing.T) {
	c := newCluster(t)
	n := c.node("node")
	use, want := n.limited("limited", 32<<20), map[string]string{}
	put := func(at, name string) {
		t.Helper()
		n.put(at, name, "what is in "+name)
		want[name] = "what is in " + name
	}
	for _, place := range []string{"volume.after-layer", "volume.after-intent", "volume.after-link", "volume.after-version"} {
		n.kill()
		n.start(place + "=exit")
		at := use()
		put(at, "before "+place)
		if err := n.commit("limited"); err == nil {
			t.Errorf("%s: a commit by who was killed has succeeded", place)
		}
		<-n.exited
		put(at, "behind "+place)
		n.kill()
		n.start("")
		got, err := content(use())
		c.must(err)
		c.want("after "+place, got, want)
	}
	n.die()
	n.start("")
	got, err := content(use())
	c.must(err)
	c.want("after all of the node died", got, want)
	c.must(n.commit("limited"))
	c.want("committed", n.read("limited", 1), want)
}

// D04, X46: a limit in bytes is the same for who writes while volumed is killed, and after it.
func TestD04_ALimitOutlivesAKill(t *testing.T) {
	const limit = 64 << 20
	c := newCluster(t)
	n := c.node("node")
	use := n.limited("limited", limit)
	at := use()
	big := filepath.Join(at, "big")
	err := n.killedDuring(func() error { return fill(big, 2*limit) }, func() bool { return size(big) >= 1<<20 })
	if got := size(big); !errors.Is(err, unix.ENOSPC) || got < limit || got > limit*3/2 {
		t.Fatalf("%d bytes of %d were written: %v", got, limit, err)
	}
	was := size(big)
	for _, after := range []string{"a kill", "the node's death"} {
		if after != "a kill" {
			n.die()
			n.start("")
		}
		at = use()
		if got := size(filepath.Join(at, "big")); got != was {
			t.Errorf("after %s it has %d bytes of %d", after, got, was)
		}
		if err := fill(filepath.Join(at, "more"), 1<<20); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("after %s there is room for more: %v", after, err)
		}
	}
}

// D05, X46: so is a limit in files.
func TestD05_ALimitOfFilesOutlivesAKill(t *testing.T) {
	const limit, files = 32 << 20, 16 << 10 // that a room of this size has at least
	c := newCluster(t)
	n := c.node("node")
	use := n.limited("limited", limit)
	at, made := use(), 0
	err := n.killedDuring(func() error {
		for ; made < 2*files; made++ {
			if err := os.Mkdir(filepath.Join(at, fmt.Sprint(made)), 0o700); err != nil {
				return err
			}
		}
		return nil
	}, func() bool { return size(filepath.Join(at, "100")) >= 0 })
	if !errors.Is(err, unix.ENOSPC) || made > files {
		t.Fatalf("%d directories were made: %v", made, err)
	}
	at = use()
	if all, err := os.ReadDir(at); err != nil || len(all) != made {
		t.Errorf("%d of %d are there: %v", len(all), made, err)
	}
	if err := os.Mkdir(filepath.Join(at, "more"), 0o700); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("there is room for more: %v", err)
	}
}

// size is a file's, or -1.
func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return -1
	}
	return info.Size()
}

// fill writes so much to a file, fsynced bit by bit.
func fill(path string, bytes int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for n := 0; n < bytes && err == nil; n += len(block) {
		if _, err = f.Write(block); err == nil && n%(1<<20) == 0 {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}
