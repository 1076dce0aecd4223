package httpapi

import (
	"net/http"

	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// ForkSandbox implements POST /api/v1/sandboxes/{id}/fork.
func (a *API) ForkSandbox(w http.ResponseWriter, r *http.Request, id string, params openapi.ForkSandboxParams) {
	made, err := a.fork(w, r, id, value(params.IdempotencyKey))
	out := openapi.ForkResponse{SourceSandboxID: id}
	for i, sb := range made {
		if i == 0 {
			out.Sandbox = a.sandboxOut(sb)
		}
		if len(made) > 1 {
			out.Sandboxes = append(out.Sandboxes, a.sandboxOut(sb))
		}
	}
	a.answer(w, r, http.StatusCreated, out, err)
}

func (a *API) fork(w http.ResponseWriter, r *http.Request, id, key string) ([]store.Sandbox, error) {
	var req openapi.ForkRequest
	if err := decodeOptional(w, r, &req); err != nil {
		return nil, err
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if req.Count != nil && *req.Count < 1 {
		return nil, errdefs.New(errdefs.InvalidArgument, "count must be 1 to %d", lifecycle.MaxForks)
	}
	source, err := a.storedSandbox(r, id)
	if err != nil {
		return nil, err
	}
	config := value(req.Config)
	if err := a.checkTTL(r.Context(), source, config.TTL); err != nil {
		return nil, err
	}
	p := principalOf(r)
	return a.cfg.Lifecycle.Fork(r.Context(), lifecycle.ForkRequest{
		TeamID: p.TeamID, UserID: p.UserID, Source: source.ID, Count: value(req.Count), Memory: config.Memory,
		TTL: config.TTL, HardTTL: config.HardTTL, Key: key,
	})
}
