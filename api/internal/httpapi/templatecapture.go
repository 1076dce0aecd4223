package httpapi

import (
	"net/http"

	"s0.run/api/internal/auth"
	"s0.run/api/internal/capture"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// CreateTemplateFromSandbox implements POST /api/v1/templates/from-sandbox.
func (a *API) CreateTemplateFromSandbox(w http.ResponseWriter, r *http.Request) {
	var req openapi.TemplateFromSandboxRequest
	err := decode(w, r, controlBytes, &req, "template_id", "sandbox_id")
	var row store.Template
	if err == nil {
		row, err = a.createFromSandbox(r, req)
	}
	a.answerTemplate(w, r, http.StatusAccepted, row, err)
}

func (a *API) createFromSandbox(r *http.Request, req openapi.TemplateFromSandboxRequest) (store.Template, error) {
	p := principalOf(r)
	if !p.Can(auth.SandboxRead) {
		return store.Template{}, errdefs.New(errdefs.PermissionDenied, "insufficient permissions")
	}
	id, err := templates.ParseID(req.TemplateID)
	if err != nil {
		return store.Template{}, err
	}
	sb, err := sandbox.ParseID(req.SandboxID)
	if err != nil {
		return store.Template{}, errdefs.New(errdefs.NotFound, "sandbox not found")
	}
	row, err := a.cfg.Captures.Begin(r.Context(), capture.Request{
		TeamID: p.TeamID, UserID: p.UserID, TemplateID: id, SandboxID: sb, Overrides: value(req.SpecOverrides), Rules: a.templateRules(r),
	})
	a.templatesChanged(r, err)
	return row, err
}

// creationOut shows how a template is made from a sandbox; nil when it is not.
func creationOut(c *store.Capture) *openapi.TemplateCreation {
	if c == nil {
		return nil
	}
	out := &openapi.TemplateCreation{
		State: openapi.TemplateCreationState(c.State), Stage: openapi.TemplateCreationStage(c.Stage),
		StartedAt: &c.StartedAt, CapturedAt: c.CapturedAt, CompletedAt: c.CompletedAt,
	}
	if c.Image != "" {
		out.OutputImage = &c.Image
	}
	if c.State == store.CaptureFailed {
		out.Reason, out.Message = new("CreationFailed"), &c.Message
	}
	return out
}
