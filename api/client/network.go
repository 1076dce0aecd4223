package client

import (
	"context"
	"net/http"
)

// SandboxNetwork returns what a sandbox may reach.
func (c *Client) SandboxNetwork(ctx context.Context, id string) (*SandboxNetworkPolicy, error) {
	return do[SandboxNetworkPolicy](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "network")})
}

// UpdateSandboxNetwork replaces what a sandbox may reach. Bindings that are nil are
// kept, empty ones clear.
func (c *Client) UpdateSandboxNetwork(ctx context.Context, id string, policy SandboxNetworkPolicy) (*SandboxNetworkPolicy, error) {
	return do[SandboxNetworkPolicy](ctx, c, call{method: http.MethodPut, path: sandboxPath(id, "network"), body: policy})
}

// ListCredentialSources lists the team's credential sources by name.
func (c *Client) ListCredentialSources(ctx context.Context) ([]CredentialSourceMetadata, error) {
	return values(do[[]CredentialSourceMetadata](ctx, c, call{method: http.MethodGet, path: "/api/v1/credential-sources"}))
}

// GetCredentialSource returns what may be known of a credential source.
func (c *Client) GetCredentialSource(ctx context.Context, name string) (*CredentialSourceMetadata, error) {
	return do[CredentialSourceMetadata](ctx, c, call{method: http.MethodGet, path: credentialPath(name)})
}

// CreateCredentialSource makes a credential source.
func (c *Client) CreateCredentialSource(ctx context.Context, source CredentialSourceWriteRequest) (*CredentialSourceMetadata, error) {
	return do[CredentialSourceMetadata](ctx, c, call{method: http.MethodPost, path: "/api/v1/credential-sources", body: source})
}

// UpdateCredentialSource replaces what a credential source holds.
func (c *Client) UpdateCredentialSource(ctx context.Context, name string, source CredentialSourceUpdateRequest) (*CredentialSourceMetadata, error) {
	return do[CredentialSourceMetadata](ctx, c, call{method: http.MethodPut, path: credentialPath(name), body: source})
}

// DeleteCredentialSource deletes a credential source that no sandbox is bound to.
func (c *Client) DeleteCredentialSource(ctx context.Context, name string) error {
	_, err := do[Deleted](ctx, c, call{method: http.MethodDelete, path: credentialPath(name)})
	return err
}

func credentialPath(name string) string { return escape("api", "v1", "credential-sources", name) }
