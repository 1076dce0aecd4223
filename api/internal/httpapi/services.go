package httpapi

import (
	"context"
	"net/http"
	"slices"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/exposure"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/services"
	"s0.run/api/internal/store"
	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// servicesBytes leaves room for functions' code as JSON.
const servicesBytes = 4 << 20

// exposureRoute is how requests for sandboxes' ports are called in logs and metrics.
const exposureRoute = "exposure"

// expose answers a request for a sandbox's port.
func (a *API) expose(w http.ResponseWriter, r *http.Request, req exposure.Request, err error) {
	entry := entryOf(r)
	entry.route, entry.exposed = exposureRoute, true
	if err == nil {
		req.Remote = daemon.Network(entryOf(r).client)
		err = a.cfg.Exposure.Serve(w, r, req)
	}
	if err != nil {
		a.fail(w, r, err)
	}
}

// normalize puts what a config says of services and ports into its stored form.
func normalize(list *[]openapi.SandboxAppService, ports *[]openapi.ExposedPort) (err error) {
	if *list, err = services.Normalize(*list); err != nil {
		return err
	}
	*ports, err = services.NormalizePorts(*ports)
	return err
}

// GetSandboxServices implements GET /api/v1/sandboxes/{id}/services.
func (a *API) GetSandboxServices(w http.ResponseWriter, r *http.Request, id string) {
	sb, err := a.storedSandbox(r, id)
	a.answerServices(w, r, sb, err)
}

// UpdateSandboxServices implements PUT /api/v1/sandboxes/{id}/services.
func (a *API) UpdateSandboxServices(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.UpdateSandboxServicesRequest
	err := decode(w, r, servicesBytes, &req, "services")
	if err == nil {
		req.Services, err = services.Normalize(req.Services)
	}
	var sb store.Sandbox
	if err == nil {
		sb, err = a.updateConfig(r, id, func(store.Sandbox) (openapi.SandboxUpdateConfig, error) {
			return openapi.SandboxUpdateConfig{Services: req.Services}, nil
		})
	}
	a.answerServices(w, r, sb, err)
}

func (a *API) answerServices(w http.ResponseWriter, r *http.Request, sb store.Sandbox, err error) {
	var c services.Config
	if err == nil {
		c, err = services.Stored(sb.Config)
	}
	a.answer(w, r, http.StatusOK, openapi.SandboxServices{
		SandboxID: string(sb.ID), Services: c.Views(sb.ID, a.cfg.Domain), ExposureDomain: a.cfg.Domain.String(),
	}, err)
}

// GetExposedPorts implements GET /api/v1/sandboxes/{id}/exposed-ports.
func (a *API) GetExposedPorts(w http.ResponseWriter, r *http.Request, id string) {
	sb, err := a.storedSandbox(r, id)
	a.answerPorts(w, r, sb, err)
}

// UpdateExposedPorts implements PUT /api/v1/sandboxes/{id}/exposed-ports.
func (a *API) UpdateExposedPorts(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.UpdateExposedPortsRequest
	err := decode(w, r, controlBytes, &req, "ports")
	if err == nil {
		req.Ports, err = services.NormalizePorts(req.Ports)
	}
	var sb store.Sandbox
	if err == nil {
		sb, err = a.updateConfig(r, id, func(store.Sandbox) (openapi.SandboxUpdateConfig, error) {
			return openapi.SandboxUpdateConfig{ExposedPorts: req.Ports}, nil
		})
	}
	a.answerPorts(w, r, sb, err)
}

// ClearExposedPorts implements DELETE /api/v1/sandboxes/{id}/exposed-ports.
func (a *API) ClearExposedPorts(w http.ResponseWriter, r *http.Request, id string) {
	sb, err := a.updateConfig(r, id, func(store.Sandbox) (openapi.SandboxUpdateConfig, error) {
		return openapi.SandboxUpdateConfig{ExposedPorts: []openapi.ExposedPort{}}, nil
	})
	a.answerPorts(w, r, sb, err)
}

// RemoveExposedPort implements DELETE /api/v1/sandboxes/{id}/exposed-ports/{port}.
func (a *API) RemoveExposedPort(w http.ResponseWriter, r *http.Request, id string, port openapi.Port) {
	sb, err := a.updateConfig(r, id, func(row store.Sandbox) (openapi.SandboxUpdateConfig, error) {
		c, err := services.Stored(row.Config)
		if err != nil {
			return openapi.SandboxUpdateConfig{}, err
		}
		left := slices.DeleteFunc(slices.Clone(c.ExposedPorts), func(p openapi.ExposedPort) bool { return p.Port == port })
		if len(left) == len(c.ExposedPorts) {
			return openapi.SandboxUpdateConfig{}, errdefs.New(errdefs.NotFound, "port %d is not exposed", port)
		}
		return openapi.SandboxUpdateConfig{ExposedPorts: left}, nil
	})
	a.answerPorts(w, r, sb, err)
}

func (a *API) answerPorts(w http.ResponseWriter, r *http.Request, sb store.Sandbox, err error) {
	var c services.Config
	if err == nil {
		c, err = services.Stored(sb.Config)
	}
	a.answer(w, r, http.StatusOK, openapi.ExposedPorts{
		SandboxID: string(sb.ID), ExposedPorts: c.PortViews(sb.ID, a.cfg.Domain), ExposureDomain: a.cfg.Domain.String(),
	}, err)
}

// storedSandbox reads a sandbox whatever its node says at the moment.
func (a *API) storedSandbox(r *http.Request, id string) (store.Sandbox, error) {
	parsed, err := sandboxID(id)
	if err != nil {
		return store.Sandbox{}, err
	}
	return a.cfg.Store.Sandbox(r.Context(), principalOf(r).TeamID, parsed)
}

// updateConfig changes a sandbox's config and makes the change felt.
func (a *API) updateConfig(r *http.Request, id string, change func(store.Sandbox) (openapi.SandboxUpdateConfig, error)) (store.Sandbox, error) {
	parsed, err := sandboxID(id)
	if err != nil {
		return store.Sandbox{}, err
	}
	var changed openapi.SandboxUpdateConfig
	sb, err := a.cfg.Lifecycle.Change(r.Context(), principalOf(r).TeamID, parsed, func(row store.Sandbox) (_ openapi.SandboxUpdateConfig, err error) {
		changed, err = change(row)
		return changed, err
	})
	if err != nil {
		return sb, err
	}
	a.cfg.Exposure.Changed(parsed)
	if changed.Services != nil && sb.Status == sandbox.Running {
		a.stopRemoved(r.Context(), sb, changed.Services)
	}
	return sb, nil
}

// stopRemoved stops what serves services that are no more. They are not exposed
// already; what could not be stopped now is stopped with the next start.
func (a *API) stopRemoved(ctx context.Context, sb store.Sandbox, list []openapi.SandboxAppService) {
	err := a.cfg.Runtimes.Prune(ctx, dataplane.Target{Team: sb.TeamID, ID: sb.ID}, list)
	if err != nil {
		a.cfg.Log.Warn("could not stop the processes of removed services", "sandbox", sb.ID, "gen", sb.Generation, "err", err)
	}
}
