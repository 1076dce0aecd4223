package httpapi

import (
	"net/http"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
)

// credentialBytes leaves room for PEM in JSON.
const credentialBytes = 256 << 10

// ListCredentialSources implements GET /api/v1/credential-sources.
func (a *API) ListCredentialSources(w http.ResponseWriter, r *http.Request) {
	list, err := a.cfg.Store.CredentialSources(r.Context(), principalOf(r).TeamID)
	out := []openapi.CredentialSourceMetadata{}
	for _, c := range list {
		out = append(out, sourceOut(c))
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// CreateCredentialSource implements POST /api/v1/credential-sources.
func (a *API) CreateCredentialSource(w http.ResponseWriter, r *http.Request) {
	var req openapi.CredentialSourceWriteRequest
	err := decode(w, r, credentialBytes, &req, "name", "resolverKind", "spec")
	var c store.CredentialSource
	if err == nil {
		if policy.ValidRef(req.Name) { // a record takes no other
			audit.Resource(r.Context(), req.Name)
		}
		c, err = a.cfg.Network.CreateSource(r.Context(), principalOf(r).TeamID, req.Name, string(req.ResolverKind), req.Spec)
	}
	a.answer(w, r, http.StatusCreated, sourceOut(c), err)
}

// GetCredentialSource implements GET /api/v1/credential-sources/{name}.
func (a *API) GetCredentialSource(w http.ResponseWriter, r *http.Request, name string) {
	err := sourceName(name)
	var c store.CredentialSource
	if err == nil {
		c, err = a.cfg.Store.CredentialSource(r.Context(), principalOf(r).TeamID, name)
	}
	a.answer(w, r, http.StatusOK, sourceOut(c), err)
}

// UpdateCredentialSource implements PUT /api/v1/credential-sources/{name}.
func (a *API) UpdateCredentialSource(w http.ResponseWriter, r *http.Request, name string) {
	err := sourceName(name)
	var req openapi.CredentialSourceUpdateRequest
	if err == nil {
		err = decode(w, r, credentialBytes, &req, "resolverKind", "spec")
	}
	if err == nil && req.Name != nil && *req.Name != name {
		err = errdefs.New(errdefs.InvalidArgument, "name must be the one in the path")
	}
	var c store.CredentialSource
	if err == nil {
		c, err = a.cfg.Network.UpdateSource(r.Context(), principalOf(r).TeamID, name, string(req.ResolverKind), req.Spec)
	}
	a.answer(w, r, http.StatusOK, sourceOut(c), err)
}

// DeleteCredentialSource implements DELETE /api/v1/credential-sources/{name}.
func (a *API) DeleteCredentialSource(w http.ResponseWriter, r *http.Request, name string) {
	err := sourceName(name)
	if err == nil {
		err = a.cfg.Store.DeleteCredentialSource(r.Context(), principalOf(r).TeamID, name)
	}
	a.answer(w, r, http.StatusOK, openapi.Deleted{Deleted: true}, err)
}

// sourceName is the gate for every name of a source that a client asks for.
func sourceName(name string) error {
	if !policy.ValidRef(name) {
		return errdefs.New(errdefs.NotFound, "credential source not found")
	}
	return nil
}

func sourceOut(c store.CredentialSource) openapi.CredentialSourceMetadata {
	return openapi.CredentialSourceMetadata{
		Name: c.Name, ResolverKind: openapi.CredentialResolverKind(c.Kind), CurrentVersion: c.Version,
		Status: openapi.CredentialSourceMetadataStatusActive, CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
	}
}
