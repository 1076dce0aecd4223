package rpc

import (
	"net/http"

	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

func (s *server) createContext(w http.ResponseWriter, r *http.Request) error {
	var in procapi.CreateContext
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	ctx, cancel, err := waiting(r)
	if err != nil {
		return err
	}
	defer cancel()
	c, err := s.cfg.Contexts.Create(ctx, in)
	if err != nil {
		return err
	}
	answer.Write(w, http.StatusCreated, c)
	return nil
}

func (s *server) listContexts(w http.ResponseWriter, _ *http.Request) error {
	return answer.OK(w, s.cfg.Contexts.List())
}

func (s *server) keptContexts(w http.ResponseWriter, _ *http.Request) error {
	return answer.OK(w, procapi.KeptContexts{Contexts: s.cfg.Contexts.Kept()})
}

func (s *server) getContext(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cfg.Contexts.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer.OK(w, c)
}

func (s *server) deleteContext(w http.ResponseWriter, r *http.Request) error {
	if err := s.cfg.Contexts.Delete(r.PathValue("id")); err != nil {
		return err
	}
	return answer.Done(w, "deleted")
}

func (s *server) restartContext(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cfg.Contexts.Restart(r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer.OK(w, c)
}

func (s *server) inputContext(w http.ResponseWriter, r *http.Request) error {
	var in procapi.ExecRequest
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if err := s.cfg.Contexts.Input(r.Context(), r.PathValue("id"), in.Data); err != nil {
		return err
	}
	return answer.Done(w, "written")
}

func (s *server) execContext(w http.ResponseWriter, r *http.Request) error {
	var in procapi.ExecRequest
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	ctx, cancel, err := waiting(r)
	if err != nil {
		return err
	}
	defer cancel()
	res, err := s.cfg.Contexts.Exec(ctx, r.PathValue("id"), in.Data)
	if err != nil {
		return err
	}
	return answer.OK(w, res)
}

func (s *server) resizeContext(w http.ResponseWriter, r *http.Request) error {
	var in procapi.PTYSize
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if err := s.cfg.Contexts.Resize(r.PathValue("id"), in); err != nil {
		return err
	}
	return answer.Done(w, "resized")
}

func (s *server) signalContext(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SignalRequest
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if err := s.cfg.Contexts.Signal(r.PathValue("id"), in.Signal); err != nil {
		return err
	}
	return answer.Done(w, "signaled")
}

func (s *server) statContext(w http.ResponseWriter, r *http.Request) error {
	stats, err := s.cfg.Contexts.Stats(r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer.OK(w, stats)
}
