package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/netns"
	"s0.run/noded/internal/noop"
)

// X01–X12 without the kill: whatever refuses during a creation, nothing stays.
func TestX01_CreateUndoesEverything(t *testing.T) {
	t.Parallel()
	for _, effect := range []string{"images.Ensure", "network.Add", "groups.Create", "runtime.Start"} {
		t.Run(effect, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			refused := errors.New("refused on purpose")
			m.node.Fault = func(e string, _ sandbox.ID) error {
				if e == effect {
					return refused
				}
				return nil
			}
			n := m.boot()
			if err := n.Create(n.ctx(), "pool", spec, nil); !errors.Is(err, refused) {
				t.Fatalf("create: %v", err)
			}
			n.nothingLeft()
		})
	}
}

// The same by failpoint, also for claims and teardowns. Not parallel: the table is the process's.
func TestX02_FailpointMatrix(t *testing.T) {
	defer failpoint.Arm("")
	for _, place := range []string{
		"create.journal.commit", "claim.journal.commit", "delete.journal.commit", // X41: the journal's disk refuses
		"create.after-intent", "create.after-netns", "create.after-cgroup", "create.after-dirs", "create.after-listen", "create.after-start", "create.after-handshake",
		"claim.after-take", "claim.after-journal", "claim.after-env",
		"delete.after-intent", "delete.after-stop", "delete.after-cgroup", "delete.after-remains", "delete.after-dirs", "delete.after-netns",
	} {
		t.Run(place, func(t *testing.T) {
			n := newMachine(t).boot()
			verb, _, _ := strings.Cut(place, ".")
			var slot sandbox.ID
			if verb != "create" {
				slot = n.warm(1)[0]
			}
			if commit := "journal.commit"; strings.HasSuffix(place, commit) {
				place = commit
			}
			if err := failpoint.Arm(place + "=1*error(on purpose)"); err != nil {
				t.Fatal(err)
			}
			switch verb {
			case "create":
				if err := n.Create(n.ctx(), "pool", spec, nil); err == nil {
					t.Fatal("create succeeded")
				}
			case "claim":
				_, _, err := n.Claim(n.ctx(), claimOf(slot, "c"))
				kind(t, err, errdefs.Unavailable)
				if strings.Contains(errdefs.From(err).Message, "on purpose") {
					t.Errorf("the cause is shown: %q", errdefs.From(err).Message)
				}
			case "delete":
				_ = n.Delete(n.ctx(), slot, 0, "test") // may report the failpoint of its own step
				if err := n.Delete(n.ctx(), slot, 0, "test"); err != nil {
					t.Fatal(err)
				}
			}
			n.nothingLeft()
			// And the claim id or the node is none the worse for it.
			n.claim(n.warm(1)[0])
		})
	}
}

// R1, R3: a restart keeps what is claimed and what is free, and tells the truth about it.
func TestX25_RestartAdopts(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(4)
	n.claim(slots[0])
	n.claim(slots[1])
	for range 5 {
		n.stop()
		n = m.boot()
		picture, _ := n.watch()
		for i, id := range slots {
			want := "running"
			if i >= 2 {
				want = "free"
			}
			if picture[string(id)] != want {
				t.Fatalf("%s is %q after a restart, want %q", id, picture[string(id)], want)
			}
		}
	}
	if left := len(m.node.Left()); left != 4*3 {
		t.Errorf("%d things exist for 4 sandboxes, want 12: %v", left, m.node.Left())
	}
	n.claim(slots[2])
	if err := n.Delete(n.ctx(), slots[0], 0, "test"); err != nil {
		t.Fatal(err)
	}
}

// C15: a claim that was cut after procd had its environment was never anybody's:
// the next tenant of the slot sees nothing of it.
func TestC15_CutClaimLeavesNoEnvironment(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	n.claim(slots[1])
	n.stop()
	rt := noop.Runtime{Node: m.node}
	rt.SetEnv(slots[0], map[string]string{"SECRET": "of the one before"})
	rt.SetEnv(slots[1], map[string]string{}) // and one that was cut the other way
	groups := noop.Groups{Node: m.node}
	if err := groups.Create(slots[0], cgroup.Limits{MemoryBytes: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	m.boot()
	if l := groups.Limits(slots[0]); !l.Idle || l.MemoryBytes != spec.MemoryBytes {
		t.Errorf("limits of a slot after a cut claim: %+v", l)
	}
	if env := rt.Env(slots[0]); env["SECRET"] != "" || env["A"] != "template" {
		t.Errorf("environment of a slot after a cut claim: %v", env)
	}
	if env := rt.Env(slots[1]); env["A"] != "claim" {
		t.Errorf("environment of a claimed sandbox after a cut claim: %v", env)
	}
}

// What died while noded was away is failed if it was somebody's, else gone.
func TestX29_DiedWhileAway(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	n.claim(slots[0])
	n.stop()
	for _, id := range slots {
		noop.Runtime{Node: m.node}.Kill(id, false)
	}
	n = m.boot()
	eventually(t, "the claimed one fails", func() bool {
		sb, err := n.Get(slots[0])
		return err == nil && sb.State() == sandbox.Failed && sb.Reason == "not running"
	})
	eventually(t, "all is freed", func() bool { return len(m.node.Left()) == 0 })
	if err := n.Delete(n.ctx(), slots[0], 0, "seen"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}

// R3: that the runtime does not know a sandbox is no proof that it is dead. Before
// procd has redialled, a claimed one is waited for; a slot is nobody's and goes.
func TestX29_UnseenIsNoEndOfAClaimedOne(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	n.claim(slots[0])
	n.stop()
	n = m.prepare()
	n.run()
	rt := noop.Runtime{Node: m.node}
	for _, id := range slots { // before it is listened for: nobody can have redialled
		rt.Report(lifecycle.Exit{ID: id, Reason: lifecycle.NotRunning, Unseen: true})
	}
	eventually(t, "the slot goes", func() bool { return len(m.node.Left()) == 3 })
	if sb, err := n.Get(slots[0]); err != nil || sb.State() != sandbox.Unknown {
		t.Errorf("before procd has redialled: %s (%v)", sb.State(), err)
	}
	n.Adopt(t.Context())
	if sb, err := n.Get(slots[0]); err != nil || sb.State() != sandbox.Running {
		t.Errorf("after it has: %s %q (%v)", sb.State(), sb.Reason, err)
	}
}

// R3: one write that fails while a claimed sandbox is adopted does not end it; nor
// do all of them. A slot that can't be trusted goes.
func TestX25_AdoptionRepeatsWhatFails(t *testing.T) {
	t.Parallel()
	for name, failures := range map[string]int64{"one": 1, "all": 1 << 40} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			var left atomic.Int64
			m.node.Fault = func(effect string, _ sandbox.ID) error {
				if effect == "groups.Create" && left.Add(-1) >= 0 {
					return errors.New("device or resource busy")
				}
				return nil
			}
			n := m.boot()
			slots := n.warm(2)
			n.claim(slots[0])
			n.stop()
			left.Store(failures)
			n = m.prepare()
			if failures > 1 {
				n.SetAdoptGrace(2 * time.Second)
			}
			n.run()
			_, w := n.watch()
			n.Adopt(t.Context())
			w.until(slots[0], "running")
			if failures > 1 {
				eventually(t, "the slot goes", func() bool { return len(m.node.Left()) == 3 })
			} else {
				eventually(t, "the slot is free again", func() bool { return len(n.free()) == 1 })
			}
			if sb, err := n.Get(slots[0]); err != nil || sb.State() != sandbox.Running {
				t.Errorf("the claimed one is %s %q (%v)", sb.State(), sb.Reason, err)
			}
		})
	}
}

// A noded that died between a start and its handshake left a procd that does not
// know who it is.
func TestX12_AdoptionIntroduces(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	n.claim(slots[0])
	n.stop()
	rt := noop.Runtime{Node: m.node}
	for _, id := range slots {
		rt.Forget(id)
	}
	m.boot()
	for _, id := range slots {
		if in := rt.Identity(id); in.SandboxID != string(id) || in.Generation != 1 || in.Hostname != string(id) {
			t.Errorf("after adoption %s is told to be %+v", id, in)
		}
	}
}

// A shrink that the kernel refuses is not durable: the next noded does not try
// what can't be.
func TestUpdateThatTheKernelRefuses(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var refuse atomic.Bool
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if refuse.Load() && (effect == "groups.Set" || effect == "groups.Create") {
			return errors.New("device or resource busy")
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	refuse.Store(true)
	_, err := n.Update(n.ctx(), lifecycle.UpdateRequest{ID: id, MemoryBytes: 128 << 20})
	kind(t, err, errdefs.Conflict)
	refuse.Store(false)
	n.stop()
	n = m.boot()
	if sb, err := n.Get(id); err != nil || sb.Claim.MemoryBytes != spec.MemoryBytes {
		t.Errorf("after a restart the limit is %d (%v), want %d as before", sb.Claim.MemoryBytes, err, spec.MemoryBytes)
	}
}

// X46: after a reboot nothing runs and the volatile directories are gone. What
// was somebody's says so, the rest is forgotten, and the node works.
func TestX46_Reboot(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(3)
	n.claim(slots[0])
	n.stop()
	m.node.Close()
	if err := os.RemoveAll(filepath.Join(m.dir, "run")); err != nil {
		t.Fatal(err)
	}
	n = m.boot()
	if sb, err := n.Get(slots[0]); err != nil || sb.State() != sandbox.Failed || sb.Reason == "" {
		t.Errorf("after a reboot: %s, %q (%v)", sb.State(), sb.Reason, err)
	}
	eventually(t, "the rest is forgotten", func() bool { return len(m.node.Left()) == 0 && n.Holding() == 1 })
	n.claim(n.warm(1)[0])
	if err := n.Delete(n.ctx(), slots[0], 0, "seen"); err != nil {
		t.Fatal(err)
	}
}

// What a sandbox costs noded is given back: goroutines and descriptors.
func TestG12_NothingAccumulates(t *testing.T) {
	n := newMachine(t).boot()
	cycle := func(times int) {
		for range times {
			id := n.warm(1)[0]
			n.claim(id)
			if err := n.Delete(n.ctx(), id, 0, "cycle"); err != nil {
				t.Fatal(err)
			}
		}
		n.nothingLeft()
	}
	cycle(3)
	goroutines, fds := runtime.NumGoroutine(), countFDs(t)
	cycle(100)
	eventually(t, "goroutines and descriptors are back", func() bool {
		return runtime.NumGoroutine() <= goroutines+2 && countFDs(t) <= fds+2
	})
}

func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestX29_ExitIsReported(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	n.claim(slots[0])
	_, w := n.watch()
	rt := noop.Runtime{Node: m.node}
	rt.Kill(slots[0], true)
	if e := w.until(slots[0], "failed"); e.GetSandbox().Reason != "killed" {
		t.Errorf("reason %q", e.GetSandbox().Reason)
	}
	eventually(t, "its resources are freed", func() bool { return len(m.node.Left()) == 3 })
	_, err := n.Proc(slots[0], 0)
	kind(t, err, errdefs.Conflict)
	rt.Kill(slots[1], true) // a slot of nobody's just goes
	w.until(slots[1], "taken")

	n.stop() // a failed sandbox is remembered
	n = m.boot()
	if sb, err := n.Get(slots[0]); err != nil || sb.State() != sandbox.Failed || sb.Reason != "killed" {
		t.Errorf("after a restart: %+v (%v)", sb, err)
	}
	if err := n.Delete(n.ctx(), slots[0], 0, "seen"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}

// G12: what has failed keeps its record until its Delete, and nothing else: no
// number of them takes the node's addresses away.
func TestG12_FailedKeepsNoIndex(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	n.claim(slots[0])
	noop.Runtime{Node: m.node}.Kill(slots[0], true)
	eventually(t, "its index is given back", func() bool { return n.IndexesInUse() == 1 })
	n.stop()
	n = m.boot()
	if used := n.IndexesInUse(); used != 1 {
		t.Errorf("after a restart %d indexes are in use, want the slot's", used)
	}
	if sb, err := n.Get(slots[0]); err != nil || sb.State() != sandbox.Failed {
		t.Errorf("it is %s (%v)", sb.State(), err)
	}
	if err := n.Delete(n.ctx(), slots[0], 0, "seen"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is forgotten", func() bool { return n.Holding() == 1 })
	if used := n.IndexesInUse(); used != 1 {
		t.Errorf("after its delete %d indexes are in use, want the slot's", used)
	}
}

// X30, R6: a procd that does not answer is no dead one. Its sandbox is unknown until
// it does, a free slot is not kept.
func TestX30_Silence(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	n.claim(slots[0])
	_, w := n.watch()
	n.FallSilent(slots[0])
	w.until(slots[0], "unknown")
	w.until(slots[0], "running") // this one answers when it is asked again
	noop.Runtime{Node: m.node}.Kill(slots[1], false)
	eventually(t, "the slot goes", func() bool {
		n.FallSilent(slots[1])
		return len(n.free()) == 0
	})
	if loss := <-n.Losses(); loss.Err.Error() != "procd does not answer" {
		t.Errorf("%+v", loss)
	}
	if err := n.Delete(n.ctx(), slots[0], 0, "test"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}

// B12, X30: the processes' end that nobody reports shows in the broken channel.
func TestB12_ProcdLost(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	_, w := n.watch()
	noop.Runtime{Node: m.node}.Kill(id, false)
	if e := w.until(id, "failed"); e.GetSandbox().Reason != "procd lost" {
		t.Errorf("reason %q", e.GetSandbox().Reason)
	}
}

// G04: a delete during the start ends deleted, with nothing left.
func TestG04_DeleteDuringCreate(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	starting := make(chan sandbox.ID, 1)
	held := make(chan struct{})
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if effect == "runtime.Start" {
			starting <- id
			<-held
		}
		return nil
	}
	n := m.boot()
	created := make(chan error, 1)
	go func() { created <- n.Create(n.ctx(), "pool", spec, nil) }()
	id := <-starting
	deleted := make(chan error, 1)
	go func() { deleted <- n.Delete(n.ctx(), id, 0, "changed my mind") }()
	close(held)
	if err := <-created; err == nil {
		t.Log("the creation was quicker than the delete")
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}

// A delete that means another generation does not end a start that is under way.
func TestG04_StaleDeleteDuringCreate(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	starting, held := make(chan sandbox.ID, 1), make(chan struct{})
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if effect == "runtime.Start" {
			starting <- id
			<-held
		}
		return nil
	}
	n := m.boot()
	created := make(chan error, 1)
	go func() { created <- n.Create(n.ctx(), "pool", spec, nil) }()
	kind(t, n.Delete(n.ctx(), <-starting, 7, "stale"), errdefs.Conflict)
	close(held)
	if err := <-created; err != nil {
		t.Errorf("the creation that was not meant: %v", err)
	}
}

// Deletes against claims against exits: whatever wins, the end is clean and
// nobody holds a sandbox that is not there.
func TestG03_RacesEndClean(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	slots := n.warm(30)
	rt := noop.Runtime{Node: n.node}
	var wg sync.WaitGroup
	for i, id := range slots {
		wg.Go(func() {
			if sb, _, err := n.Claim(n.ctx(), claimOf(id, fmt.Sprint("r", i))); err == nil && sb.ID != id {
				t.Errorf("claim of %s answered %s", id, sb.ID)
			}
		})
		wg.Go(func() {
			if i%3 == 0 {
				rt.Kill(id, true)
			} else {
				n.Drain(n.ctx(), id)
			}
		})
		wg.Go(func() {
			if err := n.Delete(n.ctx(), id, 0, "race"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n.nothingLeft()
}

// G05: a claim whose caller has gone is rolled back, and its slot is nobody's again.
func TestG05_CallerGone(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, _, err := n.Claim(ctx, claimOf(id, "c"))
	kind(t, err, errdefs.Unavailable)
	n.nothingLeft()
}

// R4, G12: leftovers without a record go; absence of a listing is no evidence.
func TestG12_SweepTakesOnlyOrphans(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	kept := n.warm(1)[0]
	n.stop()
	orphan, _ := sandbox.NewID("local")
	if err := (noop.Runtime{Node: m.node}).Start(t.Context(), lifecycle.Container{ID: orphan, SlotDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if err := (noop.Network{Node: m.node}).Add(netns.Slot{ID: orphan, Index: 99}); err != nil {
		t.Fatal(err)
	}
	if err := (noop.Groups{Node: m.node}).Create(orphan, cgroup.Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(m.dir, "data", string(orphan)), filepath.Join(m.dir, "run", string(orphan), "bin")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(m.dir, "run", "not-an-id"), 0o700); err != nil {
		t.Fatal(err)
	}
	n = m.boot()
	eventually(t, "the orphan is swept", func() bool {
		_, data := os.Stat(filepath.Join(m.dir, "data", string(orphan)))
		_, run := os.Stat(filepath.Join(m.dir, "run", string(orphan)))
		return len(m.node.Left()) == 3 && errors.Is(data, os.ErrNotExist) && errors.Is(run, os.ErrNotExist)
	})
	if _, err := os.Stat(filepath.Join(m.dir, "run", "not-an-id")); err != nil {
		t.Errorf("a stranger's directory was swept: %v", err)
	}
	if free := n.free(); !slices.Equal(free, []sandbox.ID{kept}) {
		t.Errorf("free after the sweep: %v, want %s", free, kept)
	}
}

// G09: when the runtime can't be listed nothing is swept, and what is there serves on.
func TestG09_NoListNoSweep(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.stop()
	orphan, _ := sandbox.NewID("local")
	if err := (noop.Groups{Node: m.node}).Create(orphan, cgroup.Limits{}); err != nil {
		t.Fatal(err)
	}
	var asked, away atomic.Int64
	away.Store(1)
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "runtime.List" {
			asked.Add(1)
			if away.Load() == 1 {
				return errors.New("containerd is away")
			}
		}
		return nil
	}
	n = m.boot()
	eventually(t, "a sweep is tried", func() bool { return asked.Load() > 0 })
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Running {
		t.Errorf("without containerd the sandbox is %s (%v)", sb.State(), err)
	}
	if left := len(m.node.Left()); left != 4 {
		t.Errorf("%d things left, want the sandbox's three and the orphan", left)
	}
	away.Store(0)
	eventually(t, "the orphan is swept when the runtime is back", func() bool { return len(m.node.Left()) == 3 })
}

func TestUnreadableJournalStopsTheStart(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	if err := os.WriteFile(filepath.Join(m.dir, "journal.db"), []byte(strings.Repeat("not a journal ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(m); err == nil {
		t.Error("a broken journal was opened")
	}
}

// A teardown that fails is repeated, and the record stays until it has succeeded.
func TestX13_TeardownIsRepeated(t *testing.T) {
	t.Parallel()
	for _, effect := range []string{"runtime.Remove", "groups.Remove", "network.Remove"} {
		t.Run(effect, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			var refusals atomic.Int64
			m.node.Fault = func(e string, _ sandbox.ID) error {
				if e == effect && refusals.Add(1) <= 2 {
					return errors.New("refused on purpose")
				}
				return nil
			}
			n := m.boot()
			id := n.warm(1)[0]
			n.claim(id)
			_, w := n.watch()
			if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the first attempt", func() bool { return refusals.Load() >= 1 })
			if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Terminating {
				t.Errorf("during teardown: %s (%v)", sb.State(), err)
			}
			w.until(id, "gone")
			n.nothingLeft()
		})
	}
}

// X27: what a noded of another version has put into a slot's directory keeps nobody from it.
func TestX27_TeardownTakesWhatAnotherVersionMade(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warm(1)[0]
	slot := filepath.Join(m.dir, "run", string(id))
	outside := filepath.Join(t.TempDir(), "kept")
	for _, path := range []string{filepath.Join(slot, "file"), outside} {
		if err := os.WriteFile(path, []byte("later"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(slot, "point"), 0o700), os.Symlink(outside, filepath.Join(slot, "link"))); err != nil {
		t.Fatal(err)
	}
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
	if _, err := os.Stat(slot); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what a link led to: %v", err)
	}
}

// X13–X18 over a restart: a teardown that a stop interrupted is finished by the next noded.
func TestX14_TeardownSurvivesRestart(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var broken atomic.Bool
	m.node.Fault = func(e string, _ sandbox.ID) error {
		if e == "network.Remove" && broken.Load() {
			return errors.New("refused on purpose")
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	broken.Store(true)
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n = m.boot()
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Terminating {
		t.Errorf("after a restart: %s (%v)", sb.State(), err)
	}
	broken.Store(false)
	n.nothingLeft()
}
