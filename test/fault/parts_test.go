package fault_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"s0.run/api/client"
)

// hold is how long a step of noded stands still while a part is killed beside it.
const hold = "3s"

// TestX29_PartsKilled kills shim, sentry and gofer of a sandbox that runs, that is being
// paused and that is being resumed. It fails with a reason, or is what its last image is;
// nothing of it stays that is not accounted for.
func TestX29_PartsKilled(t *testing.T) {
	needFaults(t)
	s := newStack(t, 1)
	for _, part := range []string{"sentry", "gofer", "shim"} {
		for phase, kill := range map[string]func(*stack, string, traces, string){
			"running": (*stack).killRunning, "pause": (*stack).killPausing, "resume": (*stack).killResuming,
		} {
			t.Run(part+" while "+phase, func(t *testing.T) {
				s.TB = t
				id := s.claim(claimKey(t), "default")
				tr := s.leaveTraces(id)
				s.check()
				kill(s, id, tr, part)
				s.check()
				s.remove(id)
				s.check()
			})
			s.TB = t
		}
	}
}

func (s *stack) killRunning(id string, _ traces, part string) {
	s.Helper()
	s.killPartOf(part, id)
	s.wantFailed(id)
}

// killPausing: the sandbox is frozen, and its memory is written nowhere yet.
func (s *stack) killPausing(id string, _ traces, part string) {
	s.Helper()
	s.during("checkpoint.after-freeze", func() error { _, err := s.c.PauseSandbox(s.ctx(), id); return err }, func() { s.killPartOf(part, id) })
	s.wantFailed(id)
}

// killResuming: its processes are there, but not its owner's yet. The image is what it is.
func (s *stack) killResuming(id string, tr traces, part string) {
	s.Helper()
	s.pause(id)
	s.check()
	s.during("start.after-task", func() error { _, err := s.c.ResumeSandbox(s.ctx(), id); return err }, func() { s.killPartOf(part, id) })
	s.resume(id)
	s.wantTraces(id, tr)
}

// during breaks something while an operation stands still at a place.
func (s *stack) during(place string, operation func() error, harm func()) {
	s.Helper()
	file := filepath.Join(s.Root, "during")
	_ = os.Remove(file)
	s.restartNoded("*=trace(" + file + ");" + place + "=1*delay(" + hold + ")")
	s.check()
	answered := make(chan error, 1)
	go func() { answered <- operation() }()
	s.eventually("the operation to come by "+place, func() error {
		raw, _ := os.ReadFile(file)
		if !slices.Contains(strings.Fields(string(raw)), place) {
			return errors.New("not yet")
		}
		return nil
	})
	harm()
	s.Logf("answered: %v", <-answered)
}

// killPartOf kills a part of a sandbox. The pool's slots may share its shim.
func (s *stack) killPartOf(part, id string) {
	s.Helper()
	owner := id
	if part == "shim" {
		owner = ""
	}
	pids := s.Pids(part, owner)
	if len(pids) == 0 {
		s.Fatalf("no %s of %s", part, id)
	}
	for _, pid := range pids {
		s.must(syscall.Kill(pid, syscall.SIGKILL))
	}
}

func (s *stack) wantFailed(id string) {
	s.Helper()
	s.eventuallyDone("the failure to show", func() error {
		sb, err := s.c.GetSandbox(s.ctx(), id)
		if err == nil && sb.Status != client.SandboxStateFailed {
			err = fmt.Errorf("it is %s", sb.Status)
		}
		return err
	})
}

// TestX30_HangsWhileItIsPaused: a sandbox that stands still as a whole can't be saved,
// but it can be deleted, and holds up nobody else.
func TestX30_HangsWhileItIsPaused(t *testing.T) {
	needFaults(t)
	s := newStack(t, 1)
	id, other := s.claim("hangs", "default"), s.claim("other", "default")
	s.check()
	for _, pid := range s.Pids("sentry", id) {
		s.must(syscall.Kill(pid, syscall.SIGSTOP))
	}
	paused := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() { _, err := s.c.PauseSandbox(ctx, id); paused <- err }()
	s.mustServe(other)
	s.pause(other)
	s.resume(other)
	s.remove(id)
	if err := <-paused; err == nil {
		t.Error("what stood still was saved")
	}
	s.check()
	s.remove(other)
	s.check()
}

// TestX39_AServerDiesInAFork: of children whose API server dies before it has recorded them
// nothing stays, and whoever asks again gets others.
func TestX39_AServerDiesInAFork(t *testing.T) {
	needFaults(t)
	s := newStack(t, 1)
	id := s.claim("source", "default")
	tr := s.leaveTraces(id)
	s.check()
	s.during("fork.after-commit", func() error { _, err := s.fork(id); return err }, s.api.kill)
	s.eventually("the children to be made", func() error {
		v, err := s.view()
		if err == nil && len(v.orphans()) != 2 {
			err = fmt.Errorf("%d sandboxes have no row", len(v.orphans()))
		}
		return err
	})
	s.startAPI()
	s.awaitOrphans(childTime)
	s.check()
	s.verifyFork(id, tr)
	s.remove(id)
	s.check()
}

// TestX25_CrashLoop: noded dies again and again under many sandboxes that work on, at all
// times after its start.
func TestX25_CrashLoop(t *testing.T) {
	needFaults(t)
	s := newStack(t, 2)
	kept := map[string]traces{}
	for i := range 50 {
		id := s.claim(fmt.Sprint("kept-", i), "default")
		kept[id] = s.leaveTraces(id)
	}
	asleep := slices.Sorted(maps.Keys(kept))[0]
	s.pause(asleep)
	before := len(s.check().traces)
	for i := range 20 {
		s.noded.kill()
		s.noded.start("")
		<-time.After(time.Duration(i) * 50 * time.Millisecond)
	}
	s.restartNoded("")
	if after := len(s.check().traces); after != before {
		t.Errorf("the machine had %d traces, has %d", before, after)
	}
	s.resume(asleep)
	for id, tr := range kept {
		s.wantTraces(id, tr)
		s.remove(id)
	}
	s.check()
}

// TestX26_Stopped: noded stands still for a minute. Nobody is told that what it has is
// gone, and when it goes on nothing of what was asked for meanwhile is done twice.
func TestX26_Stopped(t *testing.T) {
	needFaults(t)
	const still = time.Minute
	s := newStack(t, 2)
	id := s.claim("before", "default")
	tr := s.leaveTraces(id)
	s.noded.signal(syscall.SIGSTOP)
	claimed := make(chan string, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), still+patience)
		defer cancel()
		var got string
		for ; got == "" && ctx.Err() == nil; <-time.After(look) {
			if sb, err := s.c.CreateSandboxOnce(ctx, "meanwhile", client.ClaimRequest{Template: "default"}); err == nil {
				got = sb.SandboxID
			}
		}
		claimed <- got
	}()
	for until := time.Now().Add(still); time.Now().Before(until); <-time.After(time.Second) {
		sb, err := s.c.GetSandbox(s.ctx(), id)
		if unknown := isStatus(err, 503); !unknown && (err != nil || sb.Status == client.SandboxStateFailed) {
			t.Fatalf("R6: %+v (%v)", sb, err)
		}
	}
	s.noded.resume()
	s.wantTraces(id, tr)
	other := <-claimed
	if again := s.claim("meanwhile", "default"); again != other {
		t.Errorf("one claim has got %s and %s", other, again)
	}
	s.check()
	s.remove(id)
	s.remove(other)
	s.check()
}

// TestX28_Containerd: sandboxes serve on without it for as long as it is away, and nothing is
// said to be gone; a pause that it was needed for leaves the sandbox running or paused.
func TestX28_Containerd(t *testing.T) {
	needFaults(t)
	s := newStack(t, 1)
	id := s.claim("one", "default")
	tr := s.leaveTraces(id)
	s.check()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, place := range []string{"", "checkpoint.after-freeze", "checkpoint.after-files"} {
			t.Run(fmt.Sprintf("%v %s", sig, place), func(t *testing.T) {
				s.TB = t
				pause := func() error { _, err := s.c.PauseSandbox(s.ctx(), id); return err }
				if place == "" {
					s.ctd.Stop(sig)
					for until := time.Now().Add(30 * time.Second); time.Now().Before(until); <-time.After(time.Second) {
						s.wantTraces(id, tr)
					}
					t.Logf("a pause without containerd: %v", pause())
				} else {
					s.during(place, pause, func() { s.ctd.Stop(sig) })
				}
				if sb, err := s.c.GetSandbox(s.ctx(), id); err != nil {
					t.Errorf("without containerd: %+v (%v)", sb, err)
				}
				s.ctd.Start(t)
				s.wantTraces(id, tr) // resumes it if it is paused
				s.check()
			})
			s.TB = t
		}
	}
	s.remove(id)
	s.check()
}
