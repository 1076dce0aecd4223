package fault_test

import (
	"syscall"

	"s0.run/api/client"
)

// netdIsAway: X31 beside the life of sandboxes. Without netd, and with one that hangs,
// sandboxes begin, sleep, wake up and end all the same, none with a policy that nobody would
// enforce; when it is back it judges those that there are.
func (s *stack) netdIsAway() {
	s.Helper()
	kept, gone := s.claim(claimKey(s)+"-kept", "default"), s.claim(claimKey(s)+"-gone", "default")
	tr := s.leaveTraces(kept)
	s.check()
	for _, away := range []struct {
		name  string
		leave func()
		back  func()
	}{
		{"killed", func() { s.netd.kill() }, s.startNetd},
		{"hangs", func() { s.netd.signal(syscall.SIGSTOP) }, func() { s.netd.resume() }},
	} {
		away.leave()
		other := s.claim(claimKey(s)+away.name, "default")
		s.mustServe(other)
		s.pause(kept)
		s.resume(kept)
		s.wantTraces(kept, tr)
		s.remove(gone)
		s.wantRefusedPolicy(away.name)
		away.back()
		s.check()
		gone = other
	}
	s.removeAll()
	s.check()
}

// wantRefusedPolicy: nobody gets a sandbox whose policy is not enforced.
func (s *stack) wantRefusedPolicy(key string) {
	s.Helper()
	_, err := s.c.CreateSandboxOnce(s.ctx(), claimKey(s)+"-policy-"+key, client.ClaimRequest{
		Template: "default", Config: &client.SandboxConfig{Network: &client.SandboxNetworkPolicy{Mode: client.SandboxNetworkPolicyModeBlockAll}},
	})
	if !isStatus(err, 503) {
		s.Errorf("R5: a claim with a policy while netd is away (%s): %v", key, err)
	}
}
