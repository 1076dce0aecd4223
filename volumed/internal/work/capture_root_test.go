package work

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/store"
)

func (b *bench) capture() string {
	b.t.Helper()
	token, err := b.manager.Capture(b.t.Context(), b.spec)
	if err != nil {
		b.t.Fatal(err)
	}
	return token
}

// fork is what a volume has that is made of a captured one.
func (b *bench) fork(token string) map[string]string {
	b.t.Helper()
	b.copies++
	copied := b.spec
	copied.ID, copied.Epoch = fmt.Sprint("copy", b.copies), 1
	if _, err := b.manager.Fork(b.t.Context(), b.spec, copied, token); err != nil {
		b.t.Fatal(err)
	}
	at, err := b.manager.Use(b.t.Context(), copied, "copy", true)
	if err != nil {
		b.t.Fatal(err)
	}
	seen := describe(b.t, at)
	if err := b.manager.Remove(b.t.Context(), copied); err != nil {
		b.t.Fatal(err)
	}
	return seen
}

// counters are files that one writer gives the same number, one after the other and each in
// its own way, for ever: none is ever ahead of one before it.
type counters struct {
	dir    string
	gate   sync.RWMutex // who has it for writing has the writer stand still
	mapped []byte
	n      uint64
}

var writings = []struct {
	name string
	set  func(c *counters, path string, number []byte) error
}{
	{"0", inPlace},
	{"1 mapped", func(c *counters, _ string, b []byte) error { copy(c.mapped, b); return nil }},
	{"2 renamed", func(_ *counters, path string, b []byte) error {
		if err := os.WriteFile(path+".new", b, 0o600); err != nil {
			return err
		}
		return os.Rename(path+".new", path)
	}},
	{"3/deep/in place", inPlace},
	{"4", inPlace},
}

// inPlace has no moment at which the file is empty.
func inPlace(_ *counters, path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, 0)
	return err
}

func newCounters(t *testing.T, dir string) *counters {
	t.Helper()
	c := &counters{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "3/deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, w := range writings {
		if err := os.WriteFile(filepath.Join(dir, w.name), make([]byte, 8), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, writings[1].name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if c.mapped, err = unix.Mmap(int(f.Fd()), 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(c.mapped) })
	return c
}

// write writes until ctx ends.
func (c *counters) write(ctx context.Context) error {
	for ctx.Err() == nil {
		c.n++
		for _, w := range writings {
			if err := c.one(w.set, filepath.Join(c.dir, w.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *counters) one(set func(*counters, string, []byte) error, path string) error {
	c.gate.RLock()
	defer c.gate.RUnlock()
	return set(c, path, binary.BigEndian.AppendUint64(nil, c.n))
}

// read says what is wrong with the counters in a directory, and what the first one is.
func readCounters(dir string) (first uint64, err error) {
	last := uint64(0)
	for i, w := range writings {
		b, err := os.ReadFile(filepath.Join(dir, w.name))
		if err != nil {
			return 0, err
		}
		if len(b) != 8 {
			return 0, fmt.Errorf("%q has %d bytes", w.name, len(b))
		}
		n := binary.BigEndian.Uint64(b)
		if i == 0 {
			first, last = n, n
		}
		if n > last || n+1 < first {
			return 0, fmt.Errorf("%q is at %d, the one before at %d, the first at %d", w.name, n, last, first)
		}
		last = n
	}
	return first, nil
}

// R7: a snapshot of what is written to all the time is one instant, however it is written.
func TestR7_ACaptureIsOneInstant(t *testing.T) {
	b, at := created(t)
	c := newCounters(t, at)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.write(ctx) }()
	before := uint64(0)
	for i := range 6 {
		if _, _, err := b.manager.Commit(t.Context(), "vol"); err != nil {
			t.Fatal(err)
		}
		c.gate.Lock()
		token := b.capture()
		now, err := readCounters(at)
		c.gate.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("snapshot", i)
		kept, err := b.manager.Snapshot(t.Context(), b.spec, name, token)
		if err != nil {
			t.Fatal(err)
		}
		copied := b.spec
		copied.ID, copied.Epoch = fmt.Sprint("copy", i), 1
		if _, err := b.manager.Create(t.Context(), copied, &kept); err != nil {
			t.Fatal(err)
		}
		dir, err := b.manager.Use(t.Context(), copied, "reader", true)
		if err != nil {
			t.Fatal(err)
		}
		first, err := readCounters(dir)
		if err != nil || first != now || first < before {
			t.Errorf("snapshot %d: %d, when it was made %d: %v", i, first, now, err)
		}
		before = first
		if err := b.manager.Leave(t.Context(), copied.ID, "reader"); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	b.commit()
	compare(t, "committed", b.committed(), describe(t, at))
}

// R7: without a capture, what is written to is an instant or refused.
func TestR7_AnAnswerIsOneInstant(t *testing.T) {
	b, at := created(t)
	c := newCounters(t, at)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.write(ctx) }()
	copied := b.spec
	copied.ID = "copy"
	_, err := b.manager.Fork(t.Context(), b.spec, copied, "")
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	switch e := errdefs.From(err); {
	case err == nil: // the writer had no turn of the CPU
		dir, err := b.manager.Use(t.Context(), copied, "reader", true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readCounters(dir); err != nil {
			t.Error(err)
		}
	case e.Kind != errdefs.Unavailable || e.Code != volumeapi.CodeWritten || e.RetryAfter <= 0:
		t.Error(err)
	}
}

// R7: who works on a volume without a sandbox is not made to stand still: what he writes
// meanwhile is found out, and what is captured is one instant of his, too.
func TestR7_ACaptureBesideAShare(t *testing.T) {
	b, at := created(t)
	open := func(string) (func(), error) { return func() {}, nil }
	if err := b.manager.Share(t.Context(), b.spec, open); err != nil {
		t.Fatal(err)
	}
	write(t, at, "mine")
	b.commit()
	write(t, at, "more")
	eventually(t, "a capture while nobody writes", func() bool {
		_, err := b.manager.Capture(t.Context(), b.spec)
		return err == nil
	})
	c := newCounters(t, at)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.write(ctx) }()
	eventually(t, "one while somebody does is refused", func() bool {
		token, err := b.manager.Capture(t.Context(), b.spec)
		if err != nil {
			return errdefs.From(err).Code == volumeapi.CodeWritten
		}
		b.fork(token)
		return false
	})
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	b.commit()
	compare(t, "committed", b.committed(), describe(t, at))
}

// What was captured is what it was, whoever commits first and whatever is written since; a
// page that was dirty then and is written to without a word is committed all the same.
func TestR7_WhatWasCapturedIsNotWhatCameThen(t *testing.T) {
	b, at := created(t)
	c := newCounters(t, at)
	c.n = 7
	for _, w := range writings {
		if err := c.one(w.set, filepath.Join(at, w.name)); err != nil {
			t.Fatal(err)
		}
	}
	want := describe(t, at)
	token := b.capture()
	binary.BigEndian.PutUint64(c.mapped, 8)
	write(t, at, "later", "committed")
	b.commit()
	compare(t, "what was captured", b.fork(token), want)
	now := describe(t, at)
	if now[writings[1].name] == want[writings[1].name] {
		t.Fatal("what is mapped did not change")
	}
	compare(t, "committed", b.committed(), now)
	again := b.capture() // with nothing new
	compare(t, "what was captured then", b.fork(again), now)
}

// A token is good for what was captured, in this process and of this owner, and for nothing
// else; what was not asked for is forgotten.
func TestACaptureThatIsNone(t *testing.T) {
	b, at := created(t)
	unknown := func(what, token string) {
		t.Helper()
		if _, err := b.manager.Snapshot(t.Context(), b.spec, "snap", token); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	write(t, at, "mine")
	unknown("a token of nobody", "nobody's")
	earlier := b.capture()
	write(t, at, "more")
	if later := b.capture(); later == earlier {
		t.Error("two captures have one token")
	}
	unknown("one that another has replaced", earlier)
	token := b.capture()
	b.restart()
	b.use()
	unknown("one of an earlier process", token)
	if _, err := os.Lstat(b.manager.captureFile("vol")); !os.IsNotExist(err) {
		t.Errorf("its file stays: %v", err)
	}
	other := b.spec
	other.Team = "another"
	if _, err := b.manager.Capture(t.Context(), other); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("of another team: %v", err)
	}
	first := b.capture()
	b.commit()
	for range maxMoments {
		b.capture()
		b.commit()
	}
	unknown("one that nobody asked for", first)
	b.spec.Epoch = 2
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	b.use()
	b.spec.Epoch = 1
	if _, err := b.manager.Capture(t.Context(), b.spec); errdefs.From(err).Code != store.CodeFenced {
		t.Errorf("of an earlier owner: %v", err)
	}
	b.spec.Epoch = 2
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	if err := b.manager.Release(t.Context(), "vol", 2); err != nil {
		t.Fatal(err)
	}
	if _, err := b.manager.Capture(t.Context(), b.spec); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("of what is not mounted: %v", err)
	}
}

// A capture that is cut leaves nothing, and one whose commit is cut is no version.
func TestX43_ACaptureThatIsCut(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if token, err := b.manager.Capture(ctx, b.spec); err == nil {
		t.Errorf("nobody waits, and it is %q", token)
	}
	head, err := b.store.Head("vol")
	if err != nil {
		t.Fatal(err)
	}
	token := b.capture()
	giveBack := b.takeAway()
	if _, err := b.manager.Snapshot(t.Context(), b.spec, "snap", token); err == nil {
		t.Error("it was kept without a store")
	}
	giveBack()
	if err := failpoint.Arm("volume.after-layer=error"); err != nil {
		t.Fatal(err)
	}
	_, err = b.manager.Snapshot(t.Context(), b.spec, "snap", token)
	if armed := failpoint.Arm(""); armed != nil || err == nil {
		t.Errorf("a cut commit ended with %v, %v", err, armed)
	}
	if _, err := b.manager.Snapshot(t.Context(), b.spec, "snap", token); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("after a commit that was cut: %v", err)
	}
	if now, err := b.store.Head("vol"); err != nil || now.Seq != head.Seq {
		t.Errorf("version %d after %d, %v", now.Seq, head.Seq, err)
	}
	if _, err := b.store.Snapshot("vol", "snap"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("the snapshot is there: %v", err)
	}
	b.commit()
	compare(t, "committed", b.committed(), describe(t, at))
	left, err := filepath.Glob(filepath.Join(b.manager.dir("vol"), "captured*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
