package netdapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	pathInfo   = "/v1/info"
	pathWatch  = "/v1/watch"
	pathAttach = "/v1/attach"
	pathPolicy = "/v1/policy"
	pathDetach = "/v1/detach"
	pathList   = "/v1/sandboxes"
	pathEvents = "/v1/events"

	pathCounters = "/v1/counters"
)

// eventsWait is how long a caller waits for events: less than one that hangs is
// waited for.
const eventsWait = answerTimeout / 2

// A Server does what a [Client] asks; the client's methods have the contract. What
// it is given was validated.
type Server interface {
	Info() Info
	Attach(ctx context.Context, s Slot) error
	SetPolicy(ctx context.Context, p Policy) error
	Detach(ctx context.Context, id sandbox.ID, gen sandbox.Generation) error
	List() []Known
	Counters() (map[sandbox.ID]Counters, error)
	CA(id sandbox.ID) (CA, error)
	// TakeEvents waits for events until ctx ends.
	TakeEvents(ctx context.Context, stored Mark) Events
}

// failure is an error on the wire.
type failure struct {
	Kind    errdefs.Kind `json:"kind"`
	Code    string       `json:"code"`
	Message string       `json:"message"`
}

// Handler serves s. logFailure hears what went wrong, with causes that the answer
// leaves out.
func Handler(s Server, logFailure func(path string, err error)) http.Handler {
	h := handler{logFailure}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathInfo, h.answer(func(*http.Request) (any, error) { return s.Info(), nil }))
	mux.HandleFunc("GET "+pathList, h.answer(func(*http.Request) (any, error) { return s.List(), nil }))
	mux.HandleFunc("GET "+pathCounters, h.answer(func(*http.Request) (any, error) { return s.Counters() }))
	mux.HandleFunc("GET "+pathList+"/{id}/ca", h.answer(func(r *http.Request) (any, error) {
		return s.CA(sandbox.ID(r.PathValue("id")))
	}))
	mux.HandleFunc("POST "+pathAttach, h.answer(func(r *http.Request) (any, error) {
		return nil, told(r, Slot.Validate, s.Attach)
	}))
	mux.HandleFunc("POST "+pathPolicy, h.answer(func(r *http.Request) (any, error) {
		return nil, told(r, Policy.Validate, s.SetPolicy)
	}))
	mux.HandleFunc("POST "+pathDetach, h.answer(func(r *http.Request) (any, error) {
		return nil, told(r, detachRequest.validate, func(ctx context.Context, d detachRequest) error { return s.Detach(ctx, d.ID, d.Generation) })
	}))
	mux.HandleFunc("GET "+pathWatch, func(w http.ResponseWriter, r *http.Request) { watch(w, r, s) })
	mux.HandleFunc("POST "+pathEvents, h.answer(func(r *http.Request) (any, error) {
		var stored Mark
		if err := decode(r.Body, &stored); err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, "%v", err)
		}
		ctx, cancel := context.WithTimeout(r.Context(), eventsWait)
		defer cancel()
		return s.TakeEvents(ctx, stored), nil
	}))
	return mux
}

type handler struct{ logFailure func(path string, err error) }

func (d detachRequest) validate() error { return validIdentity(d.ID, max(d.Generation, 1)) }

// told decodes what a request says and has it done.
func told[T any](r *http.Request, validate func(T) error, do func(context.Context, T) error) error {
	var said T
	if err := decode(r.Body, &said); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "%v", err)
	}
	if err := validate(said); err != nil {
		return err
	}
	return do(r.Context(), said)
}

func (h handler) answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			h.fail(w, r, err)
			return
		}
		if v == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // whoever asked has gone
	}
}

func (h handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	h.logFailure(r.URL.Path, err)
	f := failure{Kind: errdefs.Internal, Code: errdefs.Internal.Code(), Message: "netd failed"}
	var typed *errdefs.Error
	if errors.As(err, &typed) {
		f = failure{Kind: typed.Kind, Code: typed.Code, Message: typed.Message}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.Kind.HTTPStatus())
	_ = json.NewEncoder(w).Encode(f)
}

// watch says who this is and then holds on: the connection's end is netd's.
func watch(w http.ResponseWriter, r *http.Request, s Server) {
	if json.NewEncoder(w).Encode(s.Info()) == nil && http.NewResponseController(w).Flush() == nil {
		<-r.Context().Done()
	}
}
