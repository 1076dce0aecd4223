package rpc

import (
	"net/http"
	"strconv"

	"s0.run/internal/procapi"
)

func (s *server) createSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionSpec
	if err := decode(w, r, &in); err != nil {
		return err
	}
	d, err := s.cfg.Sessions.Create(r.Header.Get(procapi.IdempotencyHeader), in)
	if err != nil {
		return err
	}
	write(w, http.StatusCreated, d)
	return nil
}

func (s *server) listSessions(w http.ResponseWriter, _ *http.Request) error {
	return ok(w, s.cfg.Sessions.List())
}

func (s *server) getSession(w http.ResponseWriter, r *http.Request) error {
	d, err := s.cfg.Sessions.Get(r.PathValue("id"))
	if err != nil {
		return err
	}
	return ok(w, d)
}

func (s *server) updateSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionSpec
	if err := decode(w, r, &in); err != nil {
		return err
	}
	d, err := s.cfg.Sessions.Update(r.PathValue("id"), in)
	if err != nil {
		return err
	}
	return ok(w, d)
}

func (s *server) deleteSession(w http.ResponseWriter, r *http.Request) error {
	if err := s.cfg.Sessions.Delete(r.PathValue("id")); err != nil {
		return err
	}
	return done(w, "deleted")
}

func (s *server) setSessionState(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionDesiredState
	if err := decode(w, r, &in); err != nil {
		return err
	}
	d, err := s.cfg.Sessions.SetDesiredState(r.PathValue("id"), in.State)
	if err != nil {
		return err
	}
	return ok(w, d)
}

func (s *server) createAttempt(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionAttemptRequest
	if err := decode(w, r, &in); err != nil {
		return err
	}
	d, err := s.cfg.Sessions.Attempt(r.Context(), r.PathValue("id"), in.ReplaceCurrent)
	if err != nil {
		return err
	}
	return ok(w, d)
}

func (s *server) inputSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionInput
	if err := decode(w, r, &in); err != nil {
		return err
	}
	receipt, err := s.cfg.Sessions.Input(r.PathValue("id"), in)
	if err != nil {
		return err
	}
	return ok(w, receipt)
}

func (s *server) signalSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionSignal
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := s.cfg.Sessions.Signal(r.PathValue("id"), in); err != nil {
		return err
	}
	return done(w, "accepted")
}

func (s *server) resizeSession(w http.ResponseWriter, r *http.Request) error {
	var in procapi.SessionResize
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := s.cfg.Sessions.Resize(r.PathValue("id"), in); err != nil {
		return err
	}
	return done(w, "resized")
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
		return invalid("limit: want 1 to %d", procapi.MaxSessionEvents)
	}
	page, err := s.cfg.Sessions.Events(r.PathValue("id"), after, int(limit))
	if err != nil {
		return err
	}
	return ok(w, page)
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
	w.Header().Set("Content-Type", ndjson)
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	if err = flush(); err == nil {
		err = reader.Run(r.Context(), func(events []procapi.SessionEvent) error {
			for _, ev := range events {
				if err := writeLine(w, ev); err != nil {
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
	v, err := queryOf(r, name)
	if err != nil || v == "" {
		return otherwise, err
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, invalid("%s: want a number", name)
	}
	return n, nil
}
