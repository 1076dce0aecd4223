package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// ListQuotas lists what the team may use, every dimension of it.
func (c *Client) ListQuotas(ctx context.Context) ([]TeamQuota, error) {
	list, err := do[[]TeamQuota](ctx, c, call{method: http.MethodGet, path: "/api/v1/quotas", query: url.Values{"all": {"true"}}})
	if err != nil {
		return nil, err
	}
	return *list, nil
}

// GetQuota returns what the team may use of one dimension.
func (c *Client) GetQuota(ctx context.Context, dimension string) (*TeamQuota, error) {
	return do[TeamQuota](ctx, c, call{method: http.MethodGet, path: escape("api", "v1", "quotas", dimension)})
}

// SetTeamQuota limits a team. It needs a system admin.
func (c *Client) SetTeamQuota(ctx context.Context, teamID, dimension string, limit SetQuotaRequest) (*TeamQuota, error) {
	return do[TeamQuota](ctx, c, call{method: http.MethodPut, path: escape("internal", "v1", "teams", teamID, "quotas", dimension), body: limit})
}

// UnsetTeamQuota lets the default limit a team again. It needs a system admin.
func (c *Client) UnsetTeamQuota(ctx context.Context, teamID, dimension string) (*TeamQuota, error) {
	return do[TeamQuota](ctx, c, call{method: http.MethodDelete, path: escape("internal", "v1", "teams", teamID, "quotas", dimension)})
}

// UsageQuery narrows a list of usage windows; zero values do not.
type UsageQuery struct {
	Type   string
	Cursor string // of the last page
	Limit  int
}

// ListUsageWindows lists what the team has used, an hour a window, as they were closed.
func (c *Client) ListUsageWindows(ctx context.Context, q UsageQuery) (*UsageWindowPage, error) {
	values := url.Values{}
	for name, value := range map[string]string{"window_type": q.Type, "cursor": q.Cursor} {
		if value != "" {
			values.Set(name, value)
		}
	}
	if q.Limit > 0 {
		values.Set("limit", strconv.Itoa(q.Limit))
	}
	return do[UsageWindowPage](ctx, c, call{method: http.MethodGet, path: "/api/v1/usage/windows", query: values})
}
