package work

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/tree"
)

// patience is for a loaded machine.
const patience = time.Minute

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		tick := time.NewTimer(5 * time.Millisecond)
		<-tick.C
	}
}

// due has a volume looked at now.
func (b *bench) due(id string) {
	v := b.manager.get(id)
	v.turn <- struct{}{}
	v.looked, v.took = time.Time{}, 0
	b.manager.endTurn(v)
}

// A volume whose commit takes for ever has one of those who commit, and holds up nobody else:
// others are committed beside it, and what is asked of it is answered.
func TestASlowVolumeHoldsNobodyUp(t *testing.T) {
	b, at := created(t)
	stuck, free := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	b.manager.cfg.Sync = func() error {
		if first.CompareAndSwap(false, true) {
			close(stuck)
			<-free
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	write(t, at, "slow")
	b.due("vol")
	go func() {
		defer close(ended)
		b.manager.keepCommitting(ctx)
	}()
	<-stuck // one of them commits it
	for i := range 2 {
		b.spec.ID = fmt.Sprint("other", i)
		if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
			t.Fatal(err)
		}
		write(t, b.use(), "quick")
		b.due(b.spec.ID)
		eventually(t, "another volume is committed", func() bool {
			st, err := b.manager.State(b.spec.ID)
			return err == nil && st.Version.Files == 1
		})
	}
	if st, err := b.manager.State("vol"); err != nil || st.Version.Files != 1 || !st.Uncommitted {
		t.Errorf("the slow volume is %+v, %v", st, err)
	}
	cancel()
	select {
	case <-ended:
		t.Error("who commits has ended before the commit")
	default:
	}
	close(free)
	<-ended
	if st, err := b.manager.State("vol"); err != nil || st.Version.Files != 2 {
		t.Errorf("at last it is %+v, %v", st, err)
	}
}

// However many volumes of a team take long, others are committed.
func TestATeamLeavesWorkersToOthers(t *testing.T) {
	c, busy := newCrew(workers), []string{}
	for _, team := range []string{"greedy", "greedier", "third"} {
		if !c.take(team) {
			t.Errorf("no worker is left to team %s of %d", team, workers)
		}
		busy = append(busy, team)
		for c.take(team) {
			busy = append(busy, team)
		}
	}
	if len(busy) >= workers || c.busy["greedy"] != workers/2 {
		t.Errorf("%d of %d workers are at work: %v", len(busy), workers, c.busy)
	}
	for _, team := range busy {
		c.give(team)
	}
	if c.free != workers || len(c.busy) != 0 {
		t.Errorf("then %d are free, and at work: %v", c.free, c.busy)
	}
}

// A commit that nobody waits for ends, and leaves nothing.
func TestACommitEndsWithItsContext(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	v, done, err := b.manager.take(t.Context(), "vol")
	if err != nil {
		t.Fatal(err)
	}
	before := layerFiles(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root, err := os.Open(b.manager.upperDir("vol"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := b.manager.round(ctx, v); err == nil {
		t.Error("a look goes on when nobody waits")
	}
	if _, _, err := b.manager.makeLayer(ctx, v, root, changesOf(t, v, root), v.seen); err == nil {
		t.Error("a layer is made when nobody waits")
	}
	done()
	if after := layerFiles(t, b); after != before {
		t.Errorf("%d layers, and %d before", after, before)
	}
	b.commit()
}

// A use whose end nobody hears of has not ended, where its commit failed.
func TestR6_AnEndThatNobodyHearsOfIsNone(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	ctx, cancel := context.WithCancel(t.Context())
	b.manager.cfg.Sync = func() error {
		cancel()
		return ctx.Err()
	}
	if err := b.manager.Leave(ctx, "vol", "mount"); err == nil || !b.manager.get("vol").writers() {
		t.Errorf("the use has ended: %v", err)
	}
	b.manager.cfg.Sync = func() error { return nil }
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil || b.manager.get("vol").writers() {
		t.Errorf("the use goes on: %v", err)
	}
	if got := b.committed(); got["mine"] == "" {
		t.Errorf("the volume has %v", got)
	}
}

// A reader that could not be taken up ends as any other: its version is held until the last
// one of it has left, and no longer.
func TestG09_AReaderThatIsNotTakenUpEnds(t *testing.T) {
	b, _ := created(t)
	head := b.commit()
	for _, use := range []string{"one", "two"} {
		if _, err := b.manager.Use(t.Context(), b.spec, use, true); err != nil {
			t.Fatal(err)
		}
	}
	giveBack := b.takeAway()
	b.restart()
	giveBack()
	if n := len(b.manager.get("vol").readers); n != 0 {
		t.Fatalf("%d readers were taken up without a store", n)
	}
	for _, use := range []string{"one", "two"} {
		if _, err := b.store.Held("vol", b.manager.holder(head.Seq)); err != nil {
			t.Errorf("before the end of %s: %v", use, err)
		}
		if err := b.manager.Leave(t.Context(), "vol", use); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.store.Held("vol", b.manager.holder(head.Seq)); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("it is still held: %v", err)
	}
	uses, err := b.manager.listUses()
	mounts, merr := layers.Mounts(b.manager.readersDir())
	if err != nil || merr != nil || len(uses) != 1 || len(mounts) != 0 {
		t.Errorf("left are %v, %v and %v, %v", uses, err, mounts, merr)
	}
}

func layerFiles(t *testing.T, b *bench) int {
	t.Helper()
	all, err := os.ReadDir(filepath.Join(b.dir, "tier", "layers"))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A layer whose mount hangs holds up who wants it, and nobody else.
func TestAHangingLayerHoldsUpNoOther(t *testing.T) {
	b, _ := created(t)
	head, err := b.store.Head("vol")
	if err != nil {
		t.Fatal(err)
	}
	mounting, err := b.store.Mounted()
	if err != nil {
		t.Fatal(err)
	}
	m := b.manager.layers
	hangs := &layerRef{n: 1, ready: make(chan struct{})}
	m.mu.Lock()
	m.refs[filepath.Join(m.dir, mounting, "hangs")] = hangs
	m.mu.Unlock()
	waits := make(chan error, 1)
	go func() {
		s, err := m.take([]store.Layer{{ID: "hangs"}})
		m.give(s)
		waits <- err
	}()
	s, err := m.take(head.Layers)
	if err != nil {
		t.Fatal(err)
	}
	m.give(s)
	if !m.held("hangs") {
		t.Error("a layer that is being mounted is nobody's")
	}
	close(hangs.ready)
	if err := <-waits; err != nil {
		t.Error(err)
	}
}

// An idle volume is closed when all of it is committed, and not before; what it hid is not
// remembered for ever.
func TestAnIdleVolumeIsClosedWhenItIsClean(t *testing.T) {
	b, at := created(t)
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	v := b.manager.get("vol")
	long := func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.idle = time.Now().Add(-2 * idleTime)
	}
	long()
	scatter(t, filepath.Join(at, "scattered"), 8<<40, 2000)
	attend := func() {
		v.turn <- struct{}{}
		b.manager.attend(t.Context(), v)
		b.manager.endTurn(v)
	}
	attend()
	if !b.manager.hasTree("vol") {
		t.Fatal("a volume of which something can't be kept was closed")
	}
	if err := os.Remove(filepath.Join(at, "scattered")); err != nil {
		t.Fatal(err)
	}
	attend()
	attend()
	if b.manager.hasTree("vol") {
		t.Error("a clean volume stays open")
	}
	if got := b.committed(); got["committed"] == "" {
		t.Errorf("the volume has %v", got)
	}
}

// What an entry hides is forgotten with it: nothing grows with what came and went.
func TestWhatComesAndGoesIsForgotten(t *testing.T) {
	b, at := created(t)
	dir := filepath.Join(at, "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "one", "two")
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	if err := b.manager.Release(t.Context(), "vol", 1); err != nil {
		t.Fatal(err)
	}
	b.spec.Epoch = 2
	at = b.use()
	dir = filepath.Join(at, "dir")
	write(t, at, "new", "newer")
	write(t, dir, "one", "two")
	b.commit()
	v := b.manager.get("vol")
	if len(v.hidden) != 3 {
		t.Errorf("with a directory and two files of it written to, there are hidden: %v", v.hidden)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	head := b.commit()
	if len(v.hidden) != 1 || len(v.seen) != 4 {
		t.Errorf("hidden: %v; seen: %v", v.hidden, v.seen)
	}
	checkSize(t, head, at)
}

func changesOf(t *testing.T, v *volume, root *os.File) []tree.Change {
	t.Helper()
	now, err := tree.Scan(t.Context(), root, maxEntries)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Diff(v.seen, now)
}
