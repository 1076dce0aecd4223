package httpapi

import (
	"encoding/json"
	"net/http"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/errdefs"
)

// ListTemplates implements GET /api/v1/templates.
func (a *API) ListTemplates(w http.ResponseWriter, r *http.Request) {
	rows, err := a.cfg.Store.Templates(r.Context(), principalOf(r).TeamID)
	out := openapi.TemplateList{Templates: []openapi.Template{}}
	for _, row := range rows {
		var t openapi.Template
		if t, err = a.templateOut(r, row); err != nil {
			break
		}
		out.Templates = append(out.Templates, t)
	}
	out.Count = len(out.Templates)
	a.answer(w, r, http.StatusOK, out, err)
}

// GetTemplate implements GET /api/v1/templates/{template_id}.
func (a *API) GetTemplate(w http.ResponseWriter, r *http.Request, name string) {
	row, err := a.template(r, name)
	a.answerTemplate(w, r, http.StatusOK, row, err)
}

// template reads the template that the caller's team means by a name.
func (a *API) template(r *http.Request, name string) (store.Template, error) {
	id, err := templates.ParseID(name)
	if err != nil {
		return store.Template{}, errdefs.New(errdefs.NotFound, "template not found")
	}
	return a.cfg.Store.Template(r.Context(), principalOf(r).TeamID, id)
}

// CreateTemplate implements POST /api/v1/templates.
func (a *API) CreateTemplate(w http.ResponseWriter, r *http.Request) {
	var req openapi.CreateTemplateRequest
	err := decode(w, r, controlBytes, &req, "template_id", "spec")
	var row store.Template
	if err == nil {
		row, err = a.createTemplate(r, req)
	}
	a.answerTemplate(w, r, http.StatusCreated, row, err)
}

func (a *API) createTemplate(r *http.Request, req openapi.CreateTemplateRequest) (store.Template, error) {
	id, err := templates.ParseID(req.TemplateID)
	if err != nil {
		return store.Template{}, err
	}
	if err := a.templateRules(r).Validate(&req.Spec); err != nil {
		return store.Template{}, err
	}
	spec, err := json.Marshal(req.Spec)
	if err != nil {
		return store.Template{}, err
	}
	p := principalOf(r)
	digest, err := a.cfg.Images.Admit(r.Context(), p.TeamID, req.Spec.MainContainer.Image)
	if err != nil {
		return store.Template{}, err
	}
	row, err := a.cfg.Store.CreateTemplate(r.Context(), p.TeamID, p.UserID, id, spec)
	return a.pinned(r, row, req.Spec.MainContainer.Image, digest, err)
}

// templateRules are what the caller's templates may be.
func (a *API) templateRules(r *http.Request) templates.Rules {
	return templates.Rules{Operator: principalOf(r).IsAdmin, Cluster: a.cfg.Cluster, Offers: a.cfg.Table.Offers}
}

// UpdateTemplate implements PUT /api/v1/templates/{template_id}.
func (a *API) UpdateTemplate(w http.ResponseWriter, r *http.Request, name string) {
	var req openapi.UpdateTemplateRequest
	err := decode(w, r, controlBytes, &req, "spec")
	var row store.Template
	if err == nil {
		row, err = a.updateTemplate(r, name, req)
	}
	a.answerTemplate(w, r, http.StatusOK, row, err)
}

func (a *API) updateTemplate(r *http.Request, name string, req openapi.UpdateTemplateRequest) (store.Template, error) {
	old, err := a.ownTemplate(r, name)
	if err != nil {
		return store.Template{}, err
	}
	if err := a.templateRules(r).Validate(&req.Spec); err != nil {
		return store.Template{}, err
	}
	spec, err := json.Marshal(req.Spec)
	if err != nil {
		return store.Template{}, err
	}
	digest, err := a.cfg.Images.Admit(r.Context(), *old.TeamID, req.Spec.MainContainer.Image)
	if err != nil {
		return store.Template{}, err
	}
	row, err := a.cfg.Store.UpdateTemplate(r.Context(), *old.TeamID, old.TemplateID, spec)
	return a.pinned(r, row, req.Spec.MainContainer.Image, digest, err)
}

// pinned stores which image a template that was stored means. Should that fail,
// it is asked for again later.
func (a *API) pinned(r *http.Request, row store.Template, image, digest string, err error) (store.Template, error) {
	if err == nil && digest != "" {
		if perr := a.cfg.Images.Pin(r.Context(), row, image, digest); perr != nil {
			a.cfg.Log.Warn("could not pin an image", "template", row.TemplateID, "err", perr)
		} else {
			row.Digest = digest
		}
	}
	a.templatesChanged(r, err)
	return row, err
}

// ownTemplate reads a template that the team may change. Public ones are made by
// the operator.
func (a *API) ownTemplate(r *http.Request, name string) (store.Template, error) {
	row, err := a.template(r, name)
	if err == nil && row.TeamID == nil {
		err = errdefs.New(errdefs.PermissionDenied, "a builtin template can't be changed")
	}
	return row, err
}

// DeleteTemplate implements DELETE /api/v1/templates/{template_id}.
func (a *API) DeleteTemplate(w http.ResponseWriter, r *http.Request, name string) {
	row, err := a.ownTemplate(r, name)
	if err == nil {
		err = a.cfg.Store.DeleteTemplate(r.Context(), *row.TeamID, row.TemplateID)
		a.templatesChanged(r, err)
	}
	a.answer(w, r, http.StatusOK, openapi.DeletedTemplate{Message: "template deleted"}, err)
}

func (a *API) templatesChanged(r *http.Request, err error) {
	if err == nil {
		a.cfg.TemplatesChanged(r.Context())
	}
}

func (a *API) answerTemplate(w http.ResponseWriter, r *http.Request, status int, row store.Template, err error) {
	var out openapi.Template
	if err == nil {
		out, err = a.templateOut(r, row)
	}
	a.answer(w, r, status, out, err)
}

func (a *API) templateOut(r *http.Request, row store.Template) (openapi.Template, error) {
	t, err := a.cfg.Catalog.Decode(row)
	if err != nil {
		return openapi.Template{}, err
	}
	if !principalOf(r).IsAdmin {
		t.Spec = templates.Shown(t.Spec)
	}
	out := openapi.Template{
		TemplateID: row.TemplateID, Scope: openapi.TemplateScopePublic, Spec: t.Spec,
		Status: a.templateStatus(t), CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	}
	if row.TeamID != nil {
		out.Scope, out.TeamID = openapi.TemplateScopeTeam, new(row.TeamID.String())
	}
	if row.UserID != nil {
		out.UserID = new(row.UserID.String())
	}
	return out, nil
}
