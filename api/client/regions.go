package client

import (
	"context"
	"net/http"
)

// ListRegions lists the regions that the server tells of, for its admins.
func (c *Client) ListRegions(ctx context.Context) (*RegionList, error) {
	return do[RegionList](ctx, c, call{method: http.MethodGet, path: "/regions"})
}

// GetRegion returns a region, for the server's admins.
func (c *Client) GetRegion(ctx context.Context, id string) (*Region, error) {
	return do[Region](ctx, c, call{method: http.MethodGet, path: escape("regions", id)})
}

// CreateRegion adds a region, for the server's admins.
func (c *Client) CreateRegion(ctx context.Context, req CreateRegionRequest) (*Region, error) {
	return do[Region](ctx, c, call{method: http.MethodPost, path: "/regions", body: req})
}

// UpdateRegion changes a region, for the server's admins. What is nil stays.
func (c *Client) UpdateRegion(ctx context.Context, id string, req UpdateRegionRequest) (*Region, error) {
	return do[Region](ctx, c, call{method: http.MethodPut, path: escape("regions", id), body: req})
}

// DeleteRegion deletes a region, for the server's admins. The server's own and the
// home of teams stay: 409.
func (c *Client) DeleteRegion(ctx context.Context, id string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: escape("regions", id)})
}
