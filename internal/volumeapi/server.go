package volumeapi

import (
	"context"
	"encoding/json"
	"net/http"

	"s0.run/internal/errdefs"
)

// A Server does what a [Client] asks; the client's methods have the contract.
type Server interface {
	Info() Info
	Create(ctx context.Context, req Create) (State, error)
	Fork(ctx context.Context, req Fork) (State, error)
	Use(ctx context.Context, req Use) (Mounted, error)
	Leave(ctx context.Context, req Leave) error
	Commit(ctx context.Context, id string) (Committed, error)
	Capture(ctx context.Context, v Volume) (Captured, error)
	Snapshot(ctx context.Context, req Snapshot) (State, error)
	Drop(ctx context.Context, req Snapshot) error
	Restore(ctx context.Context, req Snapshot) (State, error)
	Release(ctx context.Context, v Volume) error
	Remove(ctx context.Context, v Volume) error
	List(ctx context.Context, ids []string) (States, error)
}

// Handler serves s. logFailure hears what went wrong, with causes that the answer leaves
// out.
func Handler(s Server, logFailure func(path string, err error)) http.Handler {
	mux := http.NewServeMux()
	for path, h := range map[string]func(*http.Request) (any, error){
		PathInfo:     answer(func(context.Context, struct{}) (Info, error) { return s.Info(), nil }),
		PathCreate:   answer(s.Create),
		PathFork:     answer(s.Fork),
		PathUse:      answer(s.Use),
		PathLeave:    done(s.Leave),
		PathCommit:   answer(func(ctx context.Context, one One) (Committed, error) { return s.Commit(ctx, one.ID) }),
		PathCapture:  answer(s.Capture),
		PathSnapshot: answer(s.Snapshot),
		PathDrop:     done(s.Drop),
		PathRestore:  answer(s.Restore),
		PathRelease:  done(s.Release),
		PathRemove:   done(s.Remove),
		PathList:     answer(func(ctx context.Context, some Some) (States, error) { return s.List(ctx, some.IDs) }),
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			v, err := h(r)
			status := http.StatusOK
			if err != nil {
				e := errdefs.From(err)
				logFailure(r.URL.Path, err)
				status, v = e.Kind.HTTPStatus(), failure{Kind: e.Kind, Code: e.Code, Message: e.Message}
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(v) // or noded has gone
		})
	}
	return mux
}

// answer decodes a request for do.
func answer[Req, Resp any](do func(context.Context, Req) (Resp, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var req Req
		if err := decode(r.Body, &req); err != nil {
			return nil, errdefs.New(errdefs.InvalidArgument, "%v", err)
		}
		return do(r.Context(), req)
	}
}

// done is answer for what answers nothing.
func done[Req any](do func(context.Context, Req) error) func(*http.Request) (any, error) {
	return answer(func(ctx context.Context, req Req) (struct{}, error) { return struct{}{}, do(ctx, req) })
}
