package httpapi

import (
	"net/http"

	"s0.run/api/internal/egress"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/policy"
)

// GetSandboxNetwork implements GET /api/v1/sandboxes/{id}/network.
func (a *API) GetSandboxNetwork(w http.ResponseWriter, r *http.Request, id string) {
	sb, err := a.storedSandbox(r, id)
	a.answerNetwork(w, r, sb, err)
}

// UpdateSandboxNetwork implements PUT /api/v1/sandboxes/{id}/network.
func (a *API) UpdateSandboxNetwork(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.SandboxNetworkPolicy
	err := decode(w, r, controlBytes, &req, "mode")
	var sb store.Sandbox
	if err == nil {
		sb, err = a.updateConfig(r, id, func(row store.Sandbox) (c openapi.SandboxUpdateConfig, err error) {
			c.Network, err = egress.Changed(row.Config, req)
			return c, err
		})
	}
	a.answerNetwork(w, r, sb, err)
}

func (a *API) answerNetwork(w http.ResponseWriter, r *http.Request, sb store.Sandbox, err error) {
	var out openapi.SandboxNetworkPolicy
	if err == nil {
		var p *policy.Policy
		if p, err = egress.Stored(sb.Config); err == nil {
			out, err = egress.Wire(p)
		}
	}
	a.answer(w, r, http.StatusOK, out, err)
}
