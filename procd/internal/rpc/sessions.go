package rpc

import (
	"net/http"
	"strconv"

	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

func (s *server) createSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionSpec
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	d, err := s.cfg.Sessions.Create(r.Header.Get(procapi.IdempotencyHeader), in)
	if err != nil {
		return err
	}
	answer.Write(w, http.StatusCreated, d)
	return nil
}

func (s *server) listSessions(w http.ResponseWriter, _ *http.Request) error {
	return answer.OK(w, s.cfg.Sessions.List())
}

func (s *server) getSession(w http.ResponseWriter, r *http.Request) error {
	d, err := s.cfg.Sessions.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer.OK(w, d)
}

func (s *server) updateSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionSpec
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	d, err := s.cfg.Sessions.Update(r.PathValue("id"), in)
	if err != nil {
		return err
	}
	return answer.OK(w, d)
}

func (s *server) deleteSession(w http.ResponseWriter, r *http.Request) error {
	if err := s.cfg.Sessions.Delete(r.PathValue("id")); err != nil {
		return err
	}
	return answer.Done(w, "deleted")
}

func (s *server) setSessionState(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionDesiredState
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	d, err := s.cfg.Sessions.SetDesiredState(r.PathValue("id"), in.State)
	if err != nil {
		return err
	}
	return answer.OK(w, d)
}

func (s *server) createAttempt(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionAttemptRequest
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	d, err := s.cfg.Sessions.Attempt(r.Context(), r.PathValue("id"), in.ReplaceCurrent)
	if err != nil {
		return err
	}
	return answer.OK(w, d)
}

func (s *server) inputSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionInput
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	receipt, err := s.cfg.Sessions.Input(r.PathValue("id"), in)
	if err != nil {
		return err
	}
	return answer.OK(w, receipt)
}

func (s *server) signalSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionSignal
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if err := s.cfg.Sessions.Signal(r.PathValue("id"), in); err != nil {
		return err
	}
	return answer.Done(w, "accepted")
}

func (s *server) resizeSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionResize
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if err := s.cfg.Sessions.Resize(r.PathValue("id"), in); err != nil {
		return err
	}
	return answer.Done(w, "resized")
}

func (s *server) listSessionEvents(w http.ResponseWriter, r *http.Request) error {
	after, err := numberOf(r, "after", 0)
	if err != nil {
		return err
	}
	limit, err := numberOf(r, "limit", procapi.MaxSessionEvents)
	if err != nil {
		return err
	}
	if limit < 1 || limit > procapi.MaxSessionEvents {
		return answer.Invalid("limit: want 1 to %d", procapi.MaxSessionEvents)
	}
	page, err := s.cfg.Sessions.Events(r.PathValue("id"), after, int(limit))
	if err != nil {
		return err
	}
	return answer.OK(w, page)
}

// streamSession sends events as lines. It ends when the session was deleted; when
// the client is away or too slow, the events wait in the session's log, or go.
func (s *server) streamSession(w http.ResponseWriter, r *http.Request) error {
	after, err := numberOf(r, "after", 0)
	if err != nil {
		return err
	}
	reader, err := s.cfg.Sessions.Follow(r.PathValue("id"), after)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", answer.NDJSON)
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	if err = flush(); err == nil {
		err = reader.Run(r.Context(), func(events []procapi.SessionEvent) error {
			for _, ev := range events {
				if err := answer.Line(w, ev); err != nil {
					return err
				}
			}
			return flush()
		})
	}
	if err != nil {
		panic(http.ErrAbortHandler) // a clean end would say that the session was deleted
	}
	return nil
}

// numberOf is a number of the query's.
func numberOf(r *http.Request, name string, otherwise uint64) (uint64, error) {
	v, err := answer.Query(r, name)
	if err != nil || v == "" {
		return otherwise, err
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, answer.Invalid("%s: want a number", name)
	}
	return n, nil
}
