package rpc

import (
	"net/http"
	"sync"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
	template "s0.run/internal/warm"
	"s0.run/procd/internal/warm"
)

// maxHostname is the kernel's bound.
const maxHostname = 64

// identity is which sandbox this is.
type identity struct {
	mu         sync.Mutex
	generation uint64 // 0: nobody has told it yet
}

func (s *server) hello(w http.ResponseWriter, _ *http.Request) error {
	status, _ := s.cfg.Warm.Status()
	return answer.OK(w, procapi.Hello{Version: s.cfg.Version, BootID: s.cfg.BootID, Ready: status.Ready})
}

// init tells which sandbox this is, once for each generation and before anybody
// claims it; a claim changes the environment alone. It is repeated when its answer
// got lost and when noded has restarted, and a late one of an earlier generation
// must not undo a later one.
func (s *server) init(w http.ResponseWriter, r *http.Request) error {
	var in procapi.Init
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if in.SandboxID == "" || in.Generation == 0 {
		return answer.Invalid("sandbox_id and generation are required")
	}
	if len(in.Hostname) > maxHostname {
		return answer.Invalid("hostname of more than %d bytes", maxHostname)
	}
	s.identity.mu.Lock()
	defer s.identity.mu.Unlock()
	if in.Generation < s.identity.generation {
		return errdefs.New(errdefs.Conflict, "generation %d is over, this is %d", in.Generation, s.identity.generation)
	}
	if in.Generation == s.identity.generation {
		return answer.OK(w, struct{}{})
	}
	if err := template.Validate(in.Warm); err != nil {
		return answer.Invalid("warm: %s", err)
	}
	if len(in.Kept) > procapi.MaxKept {
		return answer.Invalid("kept: more than %d contexts", procapi.MaxKept)
	}
	if err := s.cfg.Warm.SetEnv(in.Env, warm.None); err != nil {
		return err
	}
	if _, err := mountAll(in.Mounts); err != nil {
		return err
	}
	if in.Hostname != "" {
		s.cfg.Identify(in.Hostname)
	}
	first := s.identity.generation == 0 // a later generation of this procd has them from the first
	s.identity.generation = in.Generation
	s.cfg.Sessions.SetGeneration(in.Generation)
	if first {
		s.cfg.Contexts.Revive(in.Kept)
		s.cfg.Warm.Start(in.Warm)
	}
	return answer.OK(w, struct{}{})
}

func (s *server) setEnv(w http.ResponseWriter, r *http.Request) error {
	var in procapi.Env
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	mounted, err := mountAll(in.Mounts)
	if err != nil {
		return err
	}
	restart := warm.None
	switch {
	case in.RestartWarm && mounted: // any of them may have looked there
		restart = warm.All
	case in.RestartWarm:
		restart = warm.Stale
	}
	if err := s.cfg.Warm.SetEnv(in.Env, restart); err != nil {
		return err
	}
	return answer.OK(w, struct{}{})
}

// hangUp ends the connection that it came on, which is its answer.
func (s *server) hangUp(_ http.ResponseWriter, r *http.Request) error {
	s.cfg.HangUp()
	<-r.Context().Done()
	return nil
}
