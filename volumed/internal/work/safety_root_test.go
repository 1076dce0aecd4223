package work

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/volumed/internal/store"
)

// created is a bench with a volume that is used and has one committed file.
func created(t *testing.T) (b *bench, at string) {
	t.Helper()
	b = newBench(t)
	if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
		t.Fatal(err)
	}
	at = b.use()
	write(t, at, "committed")
	b.commit()
	return b, at
}

func (b *bench) asides(name string) []string {
	b.t.Helper()
	all, err := filepath.Glob(filepath.Join(b.dir, "data", asideDir, "vol.*", "upper", name))
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// takeAway has the store's directory be what a mount point without its mount is, until it
// is given back.
func (b *bench) takeAway() (giveBack func()) {
	b.t.Helper()
	tier, away := filepath.Join(b.dir, "tier"), filepath.Join(b.dir, "away")
	if err := errors.Join(os.Rename(tier, away), os.Mkdir(tier, 0o700)); err != nil {
		b.t.Fatal(err)
	}
	return func() {
		b.t.Helper()
		if err := errors.Join(os.Remove(tier), os.Rename(away, tier)); err != nil {
			b.t.Fatal(err)
		}
	}
}

// Two never write to one volume on one node either: a later owner waits until the earlier
// one has left, also across a restart (R2).
func TestR2_ALaterWriterWaitsForTheEarlierOne(t *testing.T) {
	b, at := created(t)
	later := b.spec
	later.Epoch = 2
	for _, after := range []string{"", "a restart"} {
		if after != "" {
			b.restart()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, err := b.manager.Use(ctx, later, "other", false); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("a second writer, after %q: %v", after, err)
		}
		cancel()
		if head, err := b.store.Head("vol"); err != nil || head.Epoch != 1 {
			t.Errorf("the volume is at epoch %d, %v", head.Epoch, err)
		}
	}
	if _, err := b.manager.Use(t.Context(), later, "reader", true); err != nil {
		t.Errorf("a reader beside: %v", err)
	}
	write(t, at, "last words")
	v := b.manager.get("vol")
	v.mu.Lock()
	v.left = nil // nobody waits any more
	v.mu.Unlock()
	var now string
	var failed error
	used := make(chan struct{})
	go func() {
		defer close(used)
		now, failed = b.manager.Use(t.Context(), later, "other", false)
	}()
	eventually(t, "the next one waits", func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.left != nil
	})
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	if <-used; failed != nil {
		t.Fatal(failed)
	}
	if _, err := os.Stat(filepath.Join(now, "last words")); err != nil {
		t.Error(err)
	}
	if _, err := b.manager.Use(t.Context(), later, "other", false); err != nil {
		t.Errorf("a repeated use: %v", err)
	}
	if _, err := b.manager.Use(t.Context(), b.spec, "mount", false); errdefs.From(err).Code != store.CodeFenced {
		t.Errorf("the earlier owner again: %v", err)
	}
}

// A store that is away says nothing of volumes: what was not committed stays, over restarts
// and whatever is called, and is committed when the store is back (R7, X43).
func TestX43_NothingIsNotFoundWhereTheStoreIsAway(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	giveBack := b.takeAway()
	if now, err := b.manager.Use(t.Context(), b.spec, "mount", false); err != nil || now != at {
		t.Errorf("who writes and says so again has %q, %v", now, err)
	}
	b.restart()
	b.reboot()
	_, _, committed := b.manager.Commit(t.Context(), "vol")
	_, created := b.manager.Create(t.Context(), b.spec, nil)
	_, used := b.manager.Use(t.Context(), b.spec, "mount", false)
	for call, err := range map[string]error{
		"commit": committed, "create": created, "use": used,
		"release": b.manager.Release(t.Context(), "vol", 1), "remove": b.manager.Remove(t.Context(), b.spec),
	} {
		if err == nil || errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s without a store: %v", call, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(b.dir, "tier")); err != nil || len(left) != 0 {
		t.Errorf("in the store's place there are %v, %v", left, err)
	}
	giveBack()
	if _, err := b.manager.Use(t.Context(), b.spec, "mount", false); err != nil {
		t.Fatal(err)
	}
	b.commit()
	if got := b.committed(); got["mine"] == "" || len(got) != 3 {
		t.Errorf("the volume has %v", got)
	}
}

// What was not committed of a volume that another node has removed is put aside; the one
// who is told to remove it does.
func TestX47_WhatWasRemovedElsewhereIsPutAside(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	if err := b.store.Remove("vol"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if all := b.asides("mine"); len(all) != 1 {
		t.Errorf("put aside: %v", all)
	}
	b.spec.Epoch = 2
	if err := b.manager.Remove(t.Context(), b.spec); err != nil {
		t.Fatal(err)
	}
	if all := b.asides("*"); len(all) != 0 {
		t.Errorf("still put aside: %v", all)
	}
}

// A working tree that this process could not take up is not committed, and nobody says so
// (R6, R7).
func TestR7_ATreeThatIsNotOpenIsNotCommitted(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	giveBack := b.takeAway()
	b.restart() // which can't open it
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err == nil {
		t.Error("an end of its use says that it is committed")
	}
	if err := b.manager.Release(t.Context(), "vol", 1); err == nil {
		t.Error("a release says that it is committed")
	}
	giveBack()
	if st, err := b.manager.State("vol"); err != nil || !st.Uncommitted {
		t.Errorf("the volume is %+v, %v", st, err)
	}
	v := b.manager.get("vol")
	v.turn <- struct{}{}
	if !b.manager.due(v) {
		t.Error("nobody attends to the volume")
	}
	b.manager.attend(t.Context(), v)
	b.manager.endTurn(v)
	if st, err := b.manager.State("vol"); err != nil || st.Uncommitted {
		t.Errorf("attended to, the volume is %+v, %v", st, err)
	}
	if got := b.committed(); got["mine"] == "" {
		t.Errorf("the volume has %v", got)
	}
}

// An attempt whose answer is lost was ours: in this process, in the next one, and at the
// beginning of an epoch as well (R7, X43).
func TestX43_OurOwnVersionsAreNoOthers(t *testing.T) {
	for _, next := range []string{"goes on", "restart", "reboot"} {
		for _, what := range []string{"commit", "epoch", "merge"} {
			if what == "merge" && next != "restart" || what == "epoch" && next == "reboot" { // each takes its commits
				continue
			}
			for _, place := range []string{"volume.after-intent", "volume.after-link", "volume.after-version"} {
				t.Run(what+" "+next+" "+place, func(t *testing.T) {
					b, at := created(t)
					write(t, at, "mine")
					do := func() error {
						_, _, err := b.manager.Commit(t.Context(), "vol")
						return err
					}
					switch what {
					case "epoch":
						b.commit()
						b.spec.Epoch = 3 // somebody else may have had the one between
						do = func() error {
							_, err := b.manager.Use(t.Context(), b.spec, "mount", false)
							return err
						}
					case "merge":
						for range mergeFrom {
							write(t, at, "more")
							b.commit()
						}
						do = func() error {
							v, done, err := b.manager.take(t.Context(), "vol")
							if err != nil {
								return err
							}
							defer done()
							return b.manager.mergeSome(t.Context(), v)
						}
					}
					if err := failpoint.Arm(place + "=error"); err != nil {
						t.Fatal(err)
					}
					err := do()
					if armed := failpoint.Arm(""); armed != nil || err == nil {
						t.Fatalf("an attempt that is cut off: %v, %v", err, armed)
					}
					write(t, at, "later")
					switch next {
					case "restart":
						b.restart()
					case "reboot":
						b.reboot()
					}
					at = b.use()
					b.commit()
					compare(t, "committed", b.committed(), describe(t, at))
					if all := b.asides("*"); len(all) != 0 {
						t.Errorf("put aside: %v", all)
					}
				})
			}
		}
	}
}

// An intent of an earlier process that is on its way yet becomes no version later, and is
// not taken for another's.
func TestX43_AnIntentOnItsWayIsVoid(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	if err := failpoint.Arm("volume.after-intent=error"); err != nil {
		t.Fatal(err)
	}
	_, _, err := b.manager.Commit(t.Context(), "vol")
	if armed := failpoint.Arm(""); armed != nil || err == nil {
		t.Fatal(err, armed)
	}
	rec, err := b.manager.readRecord("vol")
	if err != nil || rec.Intent == nil {
		t.Fatalf("record %+v, %v", rec, err)
	}
	b.restart()
	b.use()
	if _, err := b.store.Advance("vol", rec.Seq, *rec.Intent); errdefs.From(err).Code != store.CodeFenced {
		t.Errorf("the late attempt: %v", err)
	}
	b.commit()
	if got := b.committed(); got["mine"] == "" {
		t.Errorf("the volume has %v", got)
	}
}

// That a volume is lost is told to whoever wants something of it committed, by later
// processes as well, until a later owner comes; what was not committed is put aside, also
// by who lets the volume go (R6, R7, X47).
func TestX47_ALostVolumeStaysLost(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	if _, err := b.store.Begin("vol", 3); err != nil {
		t.Fatal(err)
	}
	lost := func(what string, err error) {
		t.Helper()
		if errdefs.From(err).Code != store.CodeFenced {
			t.Errorf("%s: %v", what, err)
		}
	}
	commit := func() error {
		_, _, err := b.manager.Commit(context.Background(), "vol")
		return err
	}
	lost("a commit", commit())
	lost("the next one", commit())
	b.restart()
	lost("a commit of the next process", commit())
	if st, err := b.manager.State("vol"); err != nil || st.Lost == nil {
		t.Errorf("the volume is %+v, %v", st, err)
	}
	lost("the end of its use", b.manager.Leave(t.Context(), "vol", "mount"))
	_, err := b.manager.Snapshot(t.Context(), b.spec, "snap", "")
	lost("a snapshot", err)
	lost("a release", b.manager.Release(t.Context(), "vol", 1))
	if all := b.asides("mine"); len(all) != 1 {
		t.Errorf("put aside: %v", all)
	}
	if err := b.manager.Release(t.Context(), "vol", 1); err != nil {
		t.Errorf("a repeated release: %v", err)
	}
	b.spec.Epoch = 4
	if all := describe(t, b.use()); len(all) != 2 || all["committed"] == "" {
		t.Errorf("the volume has %v", all)
	}
	if err := commit(); err != nil {
		t.Errorf("a commit of the later owner: %v", err)
	}
	if all := b.asides("mine"); len(all) != 1 {
		t.Errorf("put aside: %v", all)
	}
}

// A volume that comes back to a node that does not know yet that it was away is had at
// once, as it is now.
func TestX47_AVolumeComesBack(t *testing.T) {
	for _, after := range []string{"", "a restart"} {
		b, at := created(t)
		write(t, at, "mine")
		if _, err := b.store.Begin("vol", 2); err != nil {
			t.Fatal(err)
		}
		if after != "" {
			b.restart()
		}
		b.spec.Epoch = 3
		if all := describe(t, b.use()); len(all) != 2 || all["committed"] == "" {
			t.Errorf("after %q the volume has %v", after, all)
		}
		b.commit()
		if all := b.asides("mine"); len(all) != 1 {
			t.Errorf("after %q put aside: %v", after, all)
		}
	}
}

// Who has just lost a volume and lets it go at once loses nothing.
func TestX47_AReleasePutsAside(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	if err := b.manager.endUse(b.manager.get("vol"), "mount"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Begin("vol", 3); err != nil {
		t.Fatal(err)
	}
	if err := b.manager.Release(t.Context(), "vol", 1); errdefs.From(err).Code != store.CodeFenced {
		t.Errorf("release: %v", err)
	}
	if all := b.asides("mine"); len(all) != 1 {
		t.Errorf("put aside: %v", all)
	}
}

// An epoch begins with what was made and not committed before it: nothing of that counts
// as committed (R7).
func TestR7_AnEpochBeginsWithWhatIsPending(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	v, done, err := b.manager.take(t.Context(), "vol")
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.manager.round(t.Context(), v) // and the process is too slow for more
	done()
	if err != nil || len(v.pending) != 1 {
		t.Fatalf("%d pending, %v", len(v.pending), err)
	}
	b.spec.Epoch = 2
	at = b.use()
	b.reboot()
	if got := b.committed(); got["mine"] == "" {
		t.Errorf("the volume has %v", got)
	}
	b.use()
	b.commit()
	compare(t, "committed", b.committed(), describe(t, at))
}

// What a later owner says of the volume is known with its epoch.
func TestAnEpochBringsWhatTheVolumeIs(t *testing.T) {
	b, _ := created(t)
	b.spec.Epoch, b.spec.Limit, b.spec.UID = 2, 1<<30, 1001
	b.use()
	for _, after := range []string{"", "a restart", "a commit"} {
		switch after {
		case "a restart":
			b.restart()
		case "a commit":
			write(t, b.use(), "mine")
			b.commit()
		}
		rec, err := b.manager.readRecord("vol")
		if err != nil || rec.Spec.Limit != b.spec.Limit || rec.Spec.UID != b.spec.UID {
			t.Errorf("after %q the volume is %+v, %v", after, rec.Spec, err)
		}
	}
}

// A volume that is begun has nothing of an earlier working tree.
func TestX46_ANewWorkingTreeIsEmpty(t *testing.T) {
	b := newBench(t)
	if _, err := b.manager.Create(t.Context(), b.spec, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.manager.Release(t.Context(), "vol", 1); err != nil {
		t.Fatal(err)
	}
	upper := b.manager.upperDir("vol")
	if err := os.MkdirAll(upper, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, upper, "left over")
	if all := describe(t, b.use()); len(all) != 1 {
		t.Errorf("the volume has %v", all)
	}
	if all := b.asides("left over"); len(all) != 1 {
		t.Errorf("put aside: %v", all)
	}
}

// A layer that waited for its version until it was collected is made anew.
func TestG09_AVersionNamesNoLayerThatIsGone(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	if err := failpoint.Arm("volume.after-intent=error"); err != nil {
		t.Fatal(err)
	}
	_, _, err := b.manager.Commit(t.Context(), "vol")
	if armed := failpoint.Arm(""); armed != nil || err == nil {
		t.Fatal(err, armed)
	}
	pending := b.manager.get("vol").pending
	if len(pending) != 1 || !b.manager.layers.held(pending[0].ID) {
		t.Fatalf("pending %v", pending)
	}
	if err := b.store.RemoveLayer(pending[0].ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.manager.Commit(t.Context(), "vol"); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a commit of a layer that is gone: %v", err)
	}
	head := b.commit()
	if b.manager.layers.held(head.Layers[0].ID) {
		t.Error("a committed layer is still held")
	}
	compare(t, "committed", b.committed(), describe(t, at))
}
