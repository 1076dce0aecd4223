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

// enter ends the volume's use and begins one at an epoch.
func (b *bench) enter(epoch uint64) string {
	b.t.Helper()
	if err := b.manager.Leave(b.t.Context(), "vol", "mount"); err != nil {
		b.t.Fatal(err)
	}
	b.spec.Epoch = epoch
	return b.use()
}

func (b *bench) head() store.Version {
	b.t.Helper()
	head, err := b.store.Head("vol")
	if err != nil {
		b.t.Fatal(err)
	}
	return head
}

// fenced wants an error of who is late.
func (b *bench) fenced(what string, err error) {
	b.t.Helper()
	if errdefs.From(err).Code != store.CodeFenced {
		b.t.Errorf("%s: %v", what, err)
	}
}

// The epoch that follows a node's own waits for no store, and whoever is at an earlier one is
// refused all the same: by this process, by the next, and by the store once the volume is
// let go (R2).
func TestR2_TheNextEpochFencesTheEarlier(t *testing.T) {
	b, _ := created(t)
	if _, err := b.manager.Snapshot(t.Context(), b.spec, "snap", ""); err != nil {
		t.Fatal(err)
	}
	before, earlier := b.head(), b.spec
	b.enter(2)
	if now := b.head(); now.Seq != before.Seq {
		t.Errorf("the epoch wrote version %d after %d", now.Seq, before.Seq)
	}
	refused := func(after string) {
		t.Helper()
		_, err := b.manager.Use(t.Context(), earlier, "late", false)
		b.fenced("a use after "+after, err)
		b.fenced("files after "+after, b.manager.Share(t.Context(), earlier, nil))
		_, err = b.manager.Restore(t.Context(), earlier, "snap")
		b.fenced("a restore after "+after, err)
		b.fenced("a removal after "+after, b.manager.Remove(t.Context(), earlier))
	}
	_, err := b.manager.Capture(t.Context(), earlier)
	b.fenced("a capture", err)
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	refused("its use")
	b.restart()
	refused("a restart")
	b.reboot()
	refused("a reboot")
	if st, err := b.manager.State("vol"); err != nil || st.Version.Epoch != 2 {
		t.Errorf("the volume is %+v, %v", st, err)
	}
	if err := b.manager.Release(t.Context(), "vol", 2); err != nil {
		t.Fatal(err)
	}
	if now := b.head(); now.Epoch != 2 {
		t.Errorf("let go, the volume is at epoch %d", now.Epoch)
	}
	refused("its release")
}

// The store hears of an epoch with the next version, and at once where another node may have
// had one before (R2).
func TestR2_TheStoreHearsOfEpochs(t *testing.T) {
	b, _ := created(t)
	write(t, b.enter(2), "mine")
	if now := b.commit(); now.Epoch != 2 {
		t.Errorf("a commit is of epoch %d", now.Epoch)
	}
	b.enter(3)
	b.enter(4)
	if now := b.head(); now.Epoch != 2 {
		t.Errorf("the volume is at epoch %d", now.Epoch)
	}
	b.enter(6)
	if now := b.head(); now.Epoch != 6 {
		t.Errorf("the volume is at epoch %d, of which another may be the one before", now.Epoch)
	}
	b.enter(7)
	if _, err := b.store.Begin("vol", 8); err != nil {
		t.Fatal(err)
	}
	write(t, b.manager.get("vol").at, "late")
	_, _, err := b.manager.Commit(t.Context(), "vol")
	b.fenced("a commit", err)
	if all := b.asides("late"); len(all) != 1 {
		t.Errorf("put aside: %v", all)
	}
}

// An epoch whose mount was refused, for the store is away, has begun: who is earlier is late, and
// the next goes on, over restarts, too (R2).
func TestR2_AnEpochBeginsThoughTheStoreIsAway(t *testing.T) {
	b, at := created(t)
	write(t, at, "mine")
	b.commit()
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	earlier := b.spec
	giveBack := b.takeAway()
	b.spec.Epoch = 2
	_, err := b.manager.Use(t.Context(), b.spec, "mount", false)
	giveBack()
	if !errdefs.Is(err, errdefs.Unavailable) {
		t.Fatalf("a use without a store: %v", err)
	}
	_, err = b.manager.Use(t.Context(), earlier, "late", false)
	b.fenced("a use at the epoch before", err)
	b.restart()
	_, err = b.manager.Use(t.Context(), earlier, "late", false)
	b.fenced("a use at the epoch before, after a restart", err)
	for range 2 {
		if got := describe(t, b.use()); got["mine"] == "" {
			t.Errorf("at epoch %d the volume has %v", b.spec.Epoch, got)
		}
		b.enter(b.spec.Epoch + 1)
	}
}

// An epoch whose write was torn has not begun, and the one before has: each is in a block of
// its own (R2).
func TestR2_AnEpochThatIsTornLeavesTheOneBefore(t *testing.T) {
	b, _ := created(t)
	earlier := b.spec
	for epoch := uint64(2); epoch <= 5; epoch++ {
		b.enter(epoch)
		earlier.Epoch = epoch - 2
		tear(t, b.manager.epochFile("vol"), epoch)
		if err := b.manager.endUse(b.manager.get("vol"), "mount"); err != nil {
			t.Fatal(err)
		}
		b.reboot()
		if epoch > 2 {
			_, err := b.manager.Use(t.Context(), earlier, "late", false)
			b.fenced(fmt.Sprintf("a use at epoch %d, where %d was torn", earlier.Epoch, epoch), err)
		}
		b.use() // of nobody who was answered
	}
	if now := b.head(); now.Epoch != 1 {
		t.Errorf("the volume is at epoch %d in the store, which nobody had to tell", now.Epoch)
	}
}

// tear has an epoch be half written.
func tear(t *testing.T, file string, epoch uint64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0xff}, int64(epoch%epochBlocks)*epochBlock+1); err != nil {
		t.Fatal(err)
	}
}

// An epoch that could not be made durable is nobody's (R2), and one of a tree that has no file
// for it yet is made durable as any other.
func TestR2_AnEpochIsDurableBeforeItIsAnswered(t *testing.T) {
	b, _ := created(t)
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	file, earlier := b.manager.epochFile("vol"), b.spec
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
		t.Fatal(err)
	}
	next := earlier
	next.Epoch = 2
	if _, err := b.manager.Use(t.Context(), next, "mount", false); err == nil {
		t.Error("an epoch that could not be saved was answered")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	b.spec = next
	b.use()
	if err := b.manager.endUse(b.manager.get("vol"), "mount"); err != nil {
		t.Fatal(err)
	}
	b.reboot()
	_, err := b.manager.Use(t.Context(), earlier, "late", false)
	b.fenced("a use at the epoch before", err)
}

// A tree that no process has taken up yet refuses who is late as well.
func TestR2_ATreeThatIsNotOpenFencesTheEarlier(t *testing.T) {
	b, _ := created(t)
	if _, err := b.manager.Snapshot(t.Context(), b.spec, "snap", ""); err != nil {
		t.Fatal(err)
	}
	earlier := b.spec
	write(t, b.enter(2), "mine")
	if err := b.manager.endUse(b.manager.get("vol"), "mount"); err != nil {
		t.Fatal(err)
	}
	giveBack := b.takeAway()
	b.restart() // which can't open it
	giveBack()
	_, err := b.manager.Restore(t.Context(), earlier, "snap")
	b.fenced("a restore", err)
	b.fenced("a removal", b.manager.Remove(t.Context(), earlier))
	if got := describe(t, b.use()); got["mine"] == "" {
		t.Errorf("the volume has %v", got)
	}
}

// A release that failed has let nothing go: the node has the volume at its epoch still.
func TestR2_AReleaseThatFailedLetsNothingGo(t *testing.T) {
	b, _ := created(t)
	b.enter(2)
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	if err := failpoint.Arm("volume.after-intent=error"); err != nil {
		t.Fatal(err)
	}
	err := b.manager.Release(t.Context(), "vol", 2)
	if armed := failpoint.Arm(""); armed != nil || err == nil {
		t.Fatalf("a release without its version ended with %v, %v", err, armed)
	}
	shared := func(string) (func(), error) { return func() {}, nil }
	if err := b.manager.Share(t.Context(), b.spec, shared); err != nil {
		t.Errorf("files after a release that failed: %v", err)
	}
	if err := b.manager.Release(t.Context(), "vol", 2); err != nil {
		t.Fatal(err)
	}
	b.fenced("files after the release", b.manager.Share(t.Context(), b.spec, shared))
}

// A restore whose outcome is not known leaves no tree that its next owner goes on with: what
// he writes would be committed by nobody (R7).
func TestR7_ARestoreThatWasCutOffLeavesNoTree(t *testing.T) {
	for name, epoch := range map[string]uint64{"epoch in the store": 1, "epoch in the record": 2} {
		t.Run(name, func(t *testing.T) {
			b, at := created(t)
			if _, err := b.manager.Snapshot(t.Context(), b.spec, "snap", ""); err != nil {
				t.Fatal(err)
			}
			write(t, at, "later")
			b.commit()
			if epoch != b.spec.Epoch {
				b.enter(epoch)
			}
			if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
				t.Fatal(err)
			}
			if err := failpoint.Arm("volume.after-link=error"); err != nil {
				t.Fatal(err)
			}
			_, err := b.manager.Restore(t.Context(), b.spec, "snap")
			if armed := failpoint.Arm(""); armed != nil || err == nil {
				t.Fatalf("a restore that is cut off ended with %v, %v", err, armed)
			}
			b.spec.Epoch++
			at = b.use()
			if got := describe(t, at); got["later"] != "" || got["committed"] == "" {
				t.Errorf("the volume has %v", got)
			}
			write(t, at, "mine")
			b.commit()
			if b.committed()["mine"] == "" {
				t.Error("what the next owner wrote is not committed")
			}
		})
	}
}

// What was synced survives a power failure at which the store forgets the version that began
// the epoch (R7).
func TestR7_AnEpochThatTheStoreForgot(t *testing.T) {
	b, _ := created(t)
	if err := b.manager.Leave(t.Context(), "vol", "mount"); err != nil {
		t.Fatal(err)
	}
	if err := b.manager.Release(t.Context(), "vol", 1); err != nil {
		t.Fatal(err)
	}
	b.spec.Epoch = 3
	write(t, b.use(), "synced")
	begun := b.head()
	if begun.Epoch != 3 {
		t.Fatalf("the volume is at epoch %d", begun.Epoch)
	}
	if err := os.Remove(filepath.Join(b.dir, "tier", "volumes", "vol", "log", fmt.Sprintf("%016d", begun.Seq))); err != nil {
		t.Fatal(err)
	}
	b.reboot()
	at := b.use()
	if got := describe(t, at); got["synced"] == "" || got["committed"] == "" {
		t.Errorf("the volume has %v", got)
	}
	if now := b.head(); now.Epoch != 3 {
		t.Errorf("the volume is at epoch %d again", now.Epoch)
	}
	want := describe(t, at)
	b.commit()
	compare(t, "committed", b.committed(), want)
}
