package httpapi

import (
	"net/http"

	"s0.run/api/internal/images"
	"s0.run/api/internal/openapi"
)

// providerBuiltin is the machine's own registry.
const providerBuiltin = "builtin"

// CreateRegistryCredentials implements POST /api/v1/registry/credentials.
func (a *API) CreateRegistryCredentials(w http.ResponseWriter, r *http.Request) {
	var req openapi.RegistryCredentialsRequest
	err := decodeOptional(w, r, &req)
	var c images.Credentials
	if err == nil {
		target := ""
		if req.TargetImage != nil {
			target = *req.TargetImage
		}
		c, err = a.cfg.Images.Credentials(r.Context(), principalOf(r).TeamID, target)
	}
	out := openapi.RegistryCredentials{
		Provider: providerBuiltin, PushRegistry: c.Push, PullRegistry: c.Pull, Username: c.User, Password: c.Password, ExpiresAt: &c.Expires,
	}
	w.Header().Set("Cache-Control", "no-store")
	a.answer(w, r, http.StatusOK, out, err)
}
