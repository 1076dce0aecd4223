package client

import (
	"context"
	"net/http"
	"strconv"
)

// SandboxServices returns what a sandbox offers to the outside.
func (c *Client) SandboxServices(ctx context.Context, id string) (*SandboxServices, error) {
	return do[SandboxServices](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "services")})
}

// UpdateSandboxServices replaces what a sandbox offers to the outside; an empty
// list, or nil, clears it.
func (c *Client) UpdateSandboxServices(ctx context.Context, id string, services []SandboxAppService) (*SandboxServices, error) {
	if services == nil {
		services = []SandboxAppService{}
	}
	body := UpdateSandboxServicesRequest{Services: services}
	return do[SandboxServices](ctx, c, call{method: http.MethodPut, path: sandboxPath(id, "services"), body: body})
}

// ExposedPorts returns the ports that a sandbox exposes beside its services.
func (c *Client) ExposedPorts(ctx context.Context, id string) (*ExposedPorts, error) {
	return do[ExposedPorts](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "exposed-ports")})
}

// UpdateExposedPorts replaces the ports that a sandbox exposes.
func (c *Client) UpdateExposedPorts(ctx context.Context, id string, ports []ExposedPort) (*ExposedPorts, error) {
	if ports == nil {
		ports = []ExposedPort{}
	}
	body := UpdateExposedPortsRequest{Ports: ports}
	return do[ExposedPorts](ctx, c, call{method: http.MethodPut, path: sandboxPath(id, "exposed-ports"), body: body})
}

// RemoveExposedPort exposes a port no more.
func (c *Client) RemoveExposedPort(ctx context.Context, id string, port int32) (*ExposedPorts, error) {
	return do[ExposedPorts](ctx, c, call{method: http.MethodDelete, path: sandboxPath(id, "exposed-ports", strconv.Itoa(int(port)))})
}

// ClearExposedPorts exposes no port any more.
func (c *Client) ClearExposedPorts(ctx context.Context, id string) (*ExposedPorts, error) {
	return do[ExposedPorts](ctx, c, call{method: http.MethodDelete, path: sandboxPath(id, "exposed-ports")})
}
