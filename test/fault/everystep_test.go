package fault_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"s0.run/api/client"
)

// parts are what a sandbox needs beside noded, those first whose loss ends none.
var parts = []string{"containerd", "netd", "procd", "sentry", "gofer", "shim"}

// frozen are the places at which a sandbox stands still: a kill of its procd waits in its
// kernel then, and in its image, whose memory is worth nothing.
var frozen = []string{"checkpoint.after-freeze", "checkpoint.after-files", "fork.after-freeze", "fork.after-save"}

// TestX28_X29_X30_X31_PartsKilledAtEveryStep kills containerd and netd, and procd, sentry, gofer and shim
// of the sandboxes that there are, at every place of every operation: behind each step, which
// is before the next one. noded lives, and stands still there while it happens. What was asked
// for comes to be or its sandbox has failed; for want of containerd or netd alone none does.
func TestX28_X29_X30_X31_PartsKilledAtEveryStep(t *testing.T) {
	needFaults(t)
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			s := newMatrixStack(t)
			places := s.placesOf(op)
			t.Logf("%s: %d places: %s", op.rows, len(places), strings.Join(places, " "))
			for _, part := range parts {
				for _, place := range places {
					sound := t.Run(part+" at "+place, func(t *testing.T) {
						s.TB = t
						s.harmAt(op, place, part)
					})
					if s.TB = t; !sound {
						s = newMatrixStack(t) // what one harm has broken is none of the next one's
					}
				}
			}
		})
	}
}

// harmAt breaks a part while an operation stands still at a place, and settles what came
// of it.
func (s *stack) harmAt(op operation, place, part string) {
	s.Helper()
	id, tr := s.ready(op)
	s.check()
	killed := map[string][]int{}
	s.during(place, func() error { return op.begin(s, id) }, func() { killed = s.harm(part, id) })
	s.eventually("what was killed to be gone", func() error {
		for owner, pids := range killed {
			if slices.ContainsFunc(s.Pids("sentry", owner), func(pid int) bool { return slices.Contains(pids, pid) }) {
				return fmt.Errorf("%s runs", owner)
			}
		}
		return nil
	})
	s.check()
	switch done := s.done(op, id, len(killed) > 0); {
	case done && part == "procd" && slices.Contains(frozen, place):
		s.verifyWithoutMemory(id, tr)
	case done:
		op.verify(s, id, tr)
	}
	s.removeAll()
	s.check()
}

// verifyWithoutMemory: of a sandbox whose procd was killed in its image the files are there,
// and its contexts by their ids; it is not refused for ever.
func (s *stack) verifyWithoutMemory(id string, tr traces) {
	s.Helper()
	s.check()
	s.resume(id)
	s.wantFile(id, tr)
	s.eventuallyDone("its process by its id", func() error { _, err := s.c.GetContext(s.ctx(), id, tr.context); return err })
	s.wantGeneration(id, 2)
	s.mustServe(id)
}

// harm kills a part of a sandbox, or of every sandbox where the one is not known yet, and
// returns the sentries that are to end with it, by their sandboxes.
func (s *stack) harm(part, id string) map[string][]int {
	s.Helper()
	if part == "shim" {
		id = "" // it serves several
	}
	sentries := map[string][]int{}
	for _, victim := range s.running(id) {
		sentries[victim] = s.Pids("sentry", victim)
	}
	switch part {
	case "containerd":
		s.ctd.Stop(syscall.SIGKILL)
		s.ctd.Start(s)
		return nil
	case "netd":
		s.netd.kill()
		s.startNetd()
		return nil
	case "procd":
		for victim := range sentries {
			s.Logf("procd of %s: %v", victim, s.killProcd(victim)) // what has ended meanwhile is killed
		}
	case "shim":
		s.killAll(s.Pids("shim", ""))
	default:
		for victim := range sentries {
			s.killAll(s.Pids(part, victim))
		}
	}
	return sentries
}

// killProcd kills the first process of a sandbox, which inside nobody can.
func (s *stack) killProcd(id string) error {
	out, err := exec.CommandContext(s.ctx(), s.ctd.Runsc, "--root="+s.ctd.RunscRoot, "kill", id, "KILL").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

func (s *stack) killAll(pids []int) {
	s.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			s.Fatal(err)
		}
	}
}

// running are the sandboxes that have a sentry: this one, or without an id all.
func (s *stack) running(id string) (ids []string) {
	s.Helper()
	traces, err := s.Traces()
	s.must(err)
	for _, t := range traces {
		if t.Kind == "sentry" && t.ID != "" && (id == "" || t.ID == id) {
			ids = append(ids, t.ID)
		}
	}
	return ids
}

// done asks for an operation again until it is done. It reports false when its sandbox has
// failed instead, which only one may that was hurt.
func (s *stack) done(op operation, id string, hurt bool) bool {
	s.Helper()
	failed := false
	s.eventually(op.name+", asked again", func() error {
		err := op.begin(s, id)
		if err == nil || again(err) {
			return err
		}
		if !hurt || !isStatus(err, 409) {
			s.Fatalf("%s: %v", op.name, err)
		}
		failed = true
		return nil
	})
	if id == "" || op.name == "delete" {
		return !failed
	}
	sb, err := s.c.GetSandbox(s.ctx(), id)
	s.must(err)
	if sb.Status == client.SandboxStateFailed {
		failed = true
		if !hurt {
			s.Errorf("R3: %s has failed, and nobody has hurt it", id)
		}
	} else if failed {
		s.Errorf("%s can't be had of a sandbox that is %s", op.name, sb.Status)
	}
	return !failed
}

// removeAll ends every sandbox and snapshot that there is.
func (s *stack) removeAll() {
	s.Helper()
	v, err := s.view()
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); <-time.After(look) {
		v, err = s.view()
	}
	s.must(err)
	for id := range v.rows {
		s.remove(id)
	}
	s.removeSnapshots(v)
}

// TestX46_Reboot: everything ends at once, the disks stay. Nothing starts again by itself,
// what ran has failed, what was paused is what it was, and nothing of before is left.
func TestX46_Reboot(t *testing.T) {
	needFaults(t)
	s := newMatrixStack(t)
	ran, asleep, filesOnly, dropped := s.claim("ran", "default"), s.claim("asleep", "default"), s.claim("files", "default"), s.claim("dropped", "default")
	tr := map[string]traces{}
	for _, id := range []string{ran, asleep, filesOnly, dropped} {
		tr[id] = s.leaveTraces(id)
	}
	s.eventuallyDone("a snapshot", func() error {
		_, err := s.c.CreateSandboxSnapshot(s.ctx(), ran, client.CreateSandboxRootFSSnapshotRequest{})
		return err
	})
	s.pause(asleep)
	s.pause(dropped)
	s.drop(dropped)
	s.eventuallyDone("a pause", func() error { _, err := s.c.PauseSandboxFiles(s.ctx(), filesOnly); return err })
	s.check()
	s.reboot()
	s.check()
	s.wantFailed(ran)
	for _, id := range []string{asleep, filesOnly, dropped} {
		if sb, err := s.c.GetSandbox(s.ctx(), id); err != nil || sb.Status != client.SandboxStatePaused {
			t.Errorf("R6: %+v (%v)", sb, err)
		}
		s.resume(id)
		s.wantFile(id, tr[id])
	}
	s.wantTraces(asleep, tr[asleep])
	s.wantTraces(dropped, tr[dropped])
	s.wantSnapshots(ran, tr[ran])
	s.removeAll()
	s.check()
}

// reboot ends what a reboot ends: all processes, and what only the kernel or a tmpfs has.
func (s *stack) reboot() {
	s.Helper()
	s.noded.kill()
	s.api.kill()
	s.netd.kill()
	s.must(syscall.Unmount(filepath.Join(s.netdRun(), "bpf"), syscall.MNT_DETACH))
	s.pg.Stop()
	s.ctd.Reboot(s)
	s.must(os.RemoveAll(s.RunDir))
	s.must(os.Mkdir(s.RunDir, 0o711))
	s.must(s.pg.Start())
	s.ctd.Start(s)
	s.startNoded("")
	s.startNetd()
	s.startAPI()
}
