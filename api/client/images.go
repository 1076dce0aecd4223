package client

import (
	"context"
	"net/http"
)

// CreateRegistryCredentials returns what images of the team are pushed with; with
// a target, it refuses one that they can't push.
func (c *Client) CreateRegistryCredentials(ctx context.Context, target string) (*RegistryCredentials, error) {
	body := RegistryCredentialsRequest{}
	if target != "" {
		body.TargetImage = &target
	}
	return do[RegistryCredentials](ctx, c, call{method: http.MethodPost, path: "/api/v1/registry/credentials", body: body})
}
