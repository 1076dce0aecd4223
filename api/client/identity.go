package client

import (
	"context"
	"net/http"
)

// Metadata tells how to talk to the server. It needs no token.
func (c *Client) Metadata(ctx context.Context) (*Metadata, error) {
	return do[Metadata](ctx, c, call{method: http.MethodGet, path: "/metadata"})
}

// Ready returns nil once the server can serve claims. It needs no token.
func (c *Client) Ready(ctx context.Context) error {
	return exec(ctx, c, call{method: http.MethodGet, path: "/readyz"})
}

// AuthProviders lists the ways to sign in. It needs no token.
func (c *Client) AuthProviders(ctx context.Context) (*AuthProviderList, error) {
	return do[AuthProviderList](ctx, c, call{method: http.MethodGet, path: "/auth/providers"})
}

// Login exchanges an email address and a password for tokens. It needs no token.
func (c *Client) Login(ctx context.Context, email, password string) (*Login, error) {
	body := LoginRequest{Email: email, Password: password}
	return do[Login](ctx, c, call{method: http.MethodPost, path: "/auth/login", body: body})
}

// StartDeviceLogin begins a sign-in through an OpenID provider, which the user
// confirms in a browser anywhere. It needs no token.
func (c *Client) StartDeviceLogin(ctx context.Context, provider string) (*DeviceLogin, error) {
	return do[DeviceLogin](ctx, c, call{method: http.MethodPost, path: escape("auth", "oidc", provider, "device", "start")})
}

// PollDeviceLogin asks whether the user has confirmed. It needs no token.
func (c *Client) PollDeviceLogin(ctx context.Context, provider, deviceLoginID string) (*DeviceLoginState, error) {
	body := PollDeviceLoginRequest{DeviceLoginID: deviceLoginID}
	return do[DeviceLoginState](ctx, c, call{method: http.MethodPost, path: escape("auth", "oidc", provider, "device", "poll"), body: body})
}

// ExchangeLoginCode exchanges the code that a page was given at the end of a
// sign-in in a browser. It needs no token.
func (c *Client) ExchangeLoginCode(ctx context.Context, code, returnURL string) (*Login, error) {
	body := ExchangeLoginCodeRequest{LoginCode: code, ReturnURL: returnURL}
	return do[Login](ctx, c, call{method: http.MethodPost, path: "/auth/web-login/exchange", body: body})
}

// RefreshToken exchanges a refresh token for new tokens; the old one is void
// afterwards. It needs no access token.
func (c *Client) RefreshToken(ctx context.Context, refreshToken string) (*Login, error) {
	body := RefreshTokenRequest{RefreshToken: refreshToken}
	return do[Login](ctx, c, call{method: http.MethodPost, path: "/auth/refresh", body: body})
}

// Logout revokes a refresh token; an empty one stands for all of the user's.
func (c *Client) Logout(ctx context.Context, refreshToken string) error {
	body := LogoutRequest{}
	if refreshToken != "" {
		body.RefreshToken = &refreshToken
	}
	return exec(ctx, c, call{method: http.MethodPost, path: "/auth/logout", body: body})
}

// ChangePassword changes the signed-in user's password.
func (c *Client) ChangePassword(ctx context.Context, oldPassword, newPassword string) error {
	body := ChangePasswordRequest{OldPassword: oldPassword, NewPassword: newPassword}
	return exec(ctx, c, call{method: http.MethodPost, path: "/auth/change-password", body: body})
}

// CurrentUser returns the signed-in user.
func (c *Client) CurrentUser(ctx context.Context) (*User, error) {
	return do[User](ctx, c, call{method: http.MethodGet, path: "/users/me"})
}

// ListTeams lists the signed-in user's teams.
func (c *Client) ListTeams(ctx context.Context) (*TeamList, error) {
	return do[TeamList](ctx, c, call{method: http.MethodGet, path: "/teams"})
}

// ListAPIKeys lists the team's API keys, without their secrets.
func (c *Client) ListAPIKeys(ctx context.Context) (*APIKeyList, error) {
	return do[APIKeyList](ctx, c, call{method: http.MethodGet, path: "/api-keys"})
}

// CreateAPIKey creates an API key; the answer is the only one with its secret.
func (c *Client) CreateAPIKey(ctx context.Context, req CreateAPIKeyRequest) (*CreatedAPIKey, error) {
	return do[CreatedAPIKey](ctx, c, call{method: http.MethodPost, path: "/api-keys", body: req})
}

// CurrentAPIKey describes the API key that the client uses.
func (c *Client) CurrentAPIKey(ctx context.Context) (*CurrentAPIKey, error) {
	result, err := do[CurrentAPIKeyResult](ctx, c, call{method: http.MethodGet, path: "/api-keys/current"})
	if err != nil {
		return nil, err
	}
	return &result.APIKey, nil
}

// DeactivateAPIKey makes a key useless but keeps its record.
func (c *Client) DeactivateAPIKey(ctx context.Context, id string) error {
	return exec(ctx, c, call{method: http.MethodPost, path: escape("api-keys", id, "deactivate")})
}

// DeleteAPIKey makes a key useless and forgets it.
func (c *Client) DeleteAPIKey(ctx context.Context, id string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: escape("api-keys", id)})
}
