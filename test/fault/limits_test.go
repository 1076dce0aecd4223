package fault_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/api/client"
)

// TestX49_NoDescriptors: noded has nearly all the descriptors open that it may, so that
// creations fail at one place after the other. Who asks is told to come again, what runs goes
// on and can be ended; when there are descriptors again everybody gets what he asked for, and
// nothing else is left.
func TestX49_NoDescriptors(t *testing.T) {
	needFaults(t)
	s := newStack(t, 1)
	s.makeColdTemplate()
	kept := s.claim("kept", "default")
	tr := s.leaveTraces(kept)
	for _, spare := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12} {
		t.Run(fmt.Sprint(spare, " to spare"), func(t *testing.T) {
			s.TB = t
			gone := s.claim(claimKey(t)+"-gone", "default")
			s.check()
			lift := s.limitFiles(spare)
			refused := s.claimsInNeed(4)
			if refused == 0 && spare == 0 {
				t.Error("everything was done without descriptors")
			}
			s.remove(gone)
			lift()
			t.Logf("%d refused", refused)
			if s.noded.ended() {
				t.Fatalf("R3: noded died of it:\n%s", s.noded.tail())
			}
			s.wantTraces(kept, tr)
			s.claimsAfterNeed(4)
			s.check()
		})
		s.TB = t
	}
	s.remove(kept)
	s.check()
}

// TestX49_NoProcesses: the machine has nearly no room for another process or thread in
// sandboxes, so that starts fail at one place after the other.
func TestX49_NoProcesses(t *testing.T) {
	needFaults(t)
	s := newStack(t, 1)
	s.makeColdTemplate()
	for _, spare := range []int{0, 1, 2, 4, 8, 12, 16, 20} {
		t.Run(fmt.Sprint(spare, " to spare"), func(t *testing.T) {
			s.TB = t
			s.check()
			lift := s.limitProcesses(spare)
			refused := s.claimsInNeed(2)
			lift()
			t.Logf("%d refused", refused)
			if refused == 0 && spare == 0 {
				t.Error("everything was done without processes")
			}
			s.claimsAfterNeed(2)
			s.check()
		})
		s.TB = t
	}
}

// rested is when an address has long been free again that its sandbox gave back.
const rested = 10 * time.Minute

// TestX49_NoNetworks: the node has a sandbox for every address of its range. Who asks for
// another is told to come again, and what runs goes on; when one has ended, and its address
// has rested, there is room for the next.
func TestX49_NoNetworks(t *testing.T) {
	needFaults(t)
	s := newStackWith(t, 1, false, "--sandbox-cidr=10.77.0.0/29") // five of them
	s.makeColdTemplate()
	kept, ended := s.claim("kept", "default"), s.claim("ended", coldTemplate)
	tr := s.leaveTraces(kept)
	s.check()
	const asked, left = 6, 2 // the pool has one
	if refused := s.claimsInNeed(asked); refused < asked-left {
		t.Errorf("%d of %d got an address, there were %d", asked-refused, asked, left)
	}
	s.wantTraces(kept, tr)
	s.check()
	s.remove(ended)
	s.within(rested, "its address", func() error {
		sb, err := s.c.CreateSandboxOnce(s.ctx(), "next", client.ClaimRequest{Template: coldTemplate})
		if err == nil {
			s.mustServe(sb.SandboxID)
		}
		return err
	})
	s.wantTraces(kept, tr)
	s.check()
}

// limitProcesses leaves all sandboxes together room for so many processes and threads more,
// until lift.
func (s *stack) limitProcesses(spare int) (lift func()) {
	s.Helper()
	group := filepath.Join("/sys/fs/cgroup/pids", s.CgroupParent)
	raw, err := os.ReadFile(filepath.Join(group, "pids.current"))
	if errors.Is(err, fs.ErrNotExist) { // cgroup v2
		group = filepath.Join("/sys/fs/cgroup", s.CgroupParent)
		raw, err = os.ReadFile(filepath.Join(group, "pids.current"))
	}
	s.must(err)
	now, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	s.must(err)
	limit := filepath.Join(group, "pids.max")
	s.must(os.WriteFile(limit, []byte(strconv.Itoa(now+spare)), 0))
	return func() { s.must(os.WriteFile(limit, []byte("max"), 0)) }
}

// limitFiles leaves noded so many descriptors that it may open, until lift.
func (s *stack) limitFiles(spare int) (lift func()) {
	s.Helper()
	pid := s.noded.cmd.Process.Pid
	var before unix.Rlimit
	s.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before))
	low := before
	low.Cur = s.unused(pid, spare)
	s.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &low, nil))
	return func() { s.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil)) }
}

// unused is the number below which a process could open so many descriptors more.
func (s *stack) unused(pid, spare int) uint64 {
	s.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	s.must(err)
	open := map[string]bool{}
	for _, e := range entries {
		open[e.Name()] = true
	}
	for n := uint64(0); ; n++ {
		if open[strconv.FormatUint(n, 10)] {
			continue
		}
		if spare == 0 {
			return n
		}
		spare--
	}
}

// claimsInNeed asks for sandboxes, each once, and counts those that were refused.
func (s *stack) claimsInNeed(n int) (refused int) {
	s.Helper()
	for i := range n {
		_, err := s.c.CreateSandboxOnce(s.ctx(), s.keyInNeed(i), client.ClaimRequest{Template: coldTemplate})
		if err == nil {
			continue
		}
		refused++
		var answer *client.APIError
		if !errors.As(err, &answer) || answer.StatusCode != 429 && answer.StatusCode != 503 || answer.Code == "" || answer.RequestID == "" {
			s.Errorf("a claim without what it needs: %+v", err)
		}
	}
	return refused
}

// claimsAfterNeed asks for the same ones again, which are there once, and removes them.
func (s *stack) claimsAfterNeed(n int) {
	s.Helper()
	seen := map[string]bool{}
	for i := range n {
		id := s.claim(s.keyInNeed(i), coldTemplate)
		s.mustServe(id)
		seen[id] = true
	}
	if len(seen) != n {
		s.Errorf("%d claims have got %d sandboxes", n, len(seen))
	}
	s.check()
	for id := range seen {
		s.remove(id)
	}
}

func (s *stack) keyInNeed(i int) string { return fmt.Sprint(claimKey(s), "-", i) }
