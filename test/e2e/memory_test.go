package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// testMemoryPressure: when the machine is out of memory the kernel ends a sandbox before
// any daemon (X42). One that is out of its own ends alone.
func testMemoryPressure(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	hungry, neighbour := u.claim(), u.claim()
	u.exec(neighbour, u.python(neighbour), "x = 41")
	wantSandboxesFirst(t, s, hungry, neighbour)
	paused, err := u.c.PauseSandbox(u.ctx(), hungry)
	must(u, "pausing", paused, err)
	resumed, err := u.c.ResumeSandbox(u.ctx(), hungry)
	must(u, "resuming", resumed, err)
	wantSandboxesFirst(t, s, hungry, neighbour)

	before := status(t, s)
	_, err = u.c.UpdateSandbox(u.ctx(), hungry, client.SandboxUpdateConfig{Resources: &client.SandboxResources{Memory: ptr("256Mi")}})
	must(u, "limiting the memory", 0, err)
	_, _ = u.c.ExecContext(u.ctx(), hungry, u.python(hungry), "y = b'y' * (1 << 30)") // which ends with the sandbox
	s.Eventually("the sandbox to be shown as failed", func() error {
		sb, err := u.c.GetSandbox(u.ctx(), hungry)
		if err == nil && sb.Status != client.SandboxStateFailed {
			err = errors.New("its status is " + string(sb.Status))
		}
		return err
	})
	u.wantExec(neighbour, u.python(neighbour), "print(6 * 7)", "42")
	if after := status(t, s); after.PID != before.PID || !maps.Equal(after.Children, before.Children) {
		t.Errorf("the daemons were %+v, and are %+v", before, after)
	}
	u.remove(hungry)
	u.remove(neighbour)
}

// wantSandboxesFirst compares what the kernel adds to each process's share of the memory
// when it looks for one to end. Where s0 runs without CAP_SYS_RESOURCE the daemons have
// what they inherit, and only sandboxes' can be moved: up.
func wantSandboxesFirst(t *testing.T, s *s0test.Stack, ids ...string) {
	t.Helper()
	st := status(t, s)
	daemons := append(slices.Collect(maps.Values(st.Children)), st.PID)
	highest := slices.Max(oomScores(t, append(daemons, s.Pids("shim", "")...)))
	for _, id := range ids {
		sentries, gofers := s.Pids("sentry", id), s.Pids("gofer", id)
		if len(sentries) != 1 || len(gofers) != 1 {
			t.Fatalf("%s has the sentries %v and the gofers %v, want one of each", id, sentries, gofers)
		}
		// With either of these the sandbox ends.
		if lowest := slices.Min(oomScores(t, append(gofers, sentries...))); lowest <= highest {
			t.Errorf("sandbox %s has %d, want more than the daemons' %d", id, lowest, highest)
		}
		// These have what its programs use.
		if lowest := slices.Min(oomScores(t, descendants(sentries[0]))); lowest < highest {
			t.Errorf("a process of sandbox %s has %d, want no less than the daemons' %d", id, lowest, highest)
		}
	}
}

func status(t *testing.T, s *s0test.Stack) s0test.Status {
	t.Helper()
	st, err := s.Status(t.Context())
	if err != nil || st.PID == 0 || len(st.Children) == 0 {
		t.Fatalf("the server says %+v, %v", st, err)
	}
	return st
}

// oomScores are the oom_score_adj of those processes that live, of which there is one.
func oomScores(t *testing.T, pids []int) (scores []int) {
	t.Helper()
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil {
			continue // it has ended
		}
		score, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err != nil {
			t.Fatal(err)
		}
		scores = append(scores, score)
	}
	if len(scores) == 0 {
		t.Fatalf("none of %v lives", pids)
	}
	return scores
}

// descendants are the children of a process, and theirs.
func descendants(pid int) (all []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		raw, _ := os.ReadFile(list)
		for field := range strings.FieldsSeq(string(raw)) {
			child, _ := strconv.Atoi(field)
			all = append(append(all, child), descendants(child)...)
		}
	}
	return all
}
