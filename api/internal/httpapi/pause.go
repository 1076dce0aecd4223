package httpapi

import (
	"context"
	"net/http"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/sandbox"
)

// PauseSandbox implements POST /api/v1/sandboxes/{id}/pause.
func (a *API) PauseSandbox(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.PauseRequest
	err := decodeOptional(w, r, &req)
	pause := a.cfg.Lifecycle.Pause
	if req.Memory != nil && !*req.Memory {
		pause = a.cfg.Lifecycle.PauseFiles
	}
	var sb store.Sandbox
	if err == nil {
		sb, err = a.switchSandbox(r, id, pause)
	}
	a.answer(w, r, http.StatusOK, openapi.PauseResponse{
		SandboxID: string(sb.ID), Paused: sb.Status == sandbox.Paused, Status: openapi.SandboxState(sb.Status), RuntimeGeneration: int64(sb.Generation),
	}, err)
}

// ResumeSandbox implements POST /api/v1/sandboxes/{id}/resume.
func (a *API) ResumeSandbox(w http.ResponseWriter, r *http.Request, id string) {
	sb, err := a.switchSandbox(r, id, a.cfg.Lifecycle.Resume)
	a.answer(w, r, http.StatusOK, openapi.ResumeResponse{
		SandboxID: string(sb.ID), Resumed: sb.Status == sandbox.Running, Status: openapi.SandboxState(sb.Status), RuntimeGeneration: int64(sb.Generation),
	}, err)
}

// switchSandbox takes a sandbox from one state to another, and tells whoever
// remembers its state.
func (a *API) switchSandbox(r *http.Request, id string, do func(context.Context, uuid.UUID, sandbox.ID) (store.Sandbox, error)) (store.Sandbox, error) {
	parsed, err := sandboxID(id)
	if err != nil {
		return store.Sandbox{}, err
	}
	defer a.cfg.Exposure.Changed(parsed)
	return do(r.Context(), principalOf(r).TeamID, parsed)
}
