package client

import (
	"context"
	"net/http"
	"net/url"
)

// CreateSandboxSnapshot keeps what a running or paused sandbox has written to its root
// filesystem, and returns when that is durable. A ClaimRequest's SnapshotID begins with it.
func (c *Client) CreateSandboxSnapshot(ctx context.Context, id string, req CreateSandboxRootFSSnapshotRequest) (*SandboxRootFSSnapshot, error) {
	return do[SandboxRootFSSnapshot](ctx, c, call{method: http.MethodPost, path: sandboxPath(id, "snapshots"), body: req})
}

// ListSandboxSnapshots lists a sandbox's snapshots, newest first. They may outlive it.
func (c *Client) ListSandboxSnapshots(ctx context.Context, id string) (*SandboxRootFSSnapshotList, error) {
	return do[SandboxRootFSSnapshotList](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "snapshots")})
}

// GetSandboxSnapshot returns a snapshot.
func (c *Client) GetSandboxSnapshot(ctx context.Context, snapshot string) (*SandboxRootFSSnapshot, error) {
	return do[SandboxRootFSSnapshot](ctx, c, call{method: http.MethodGet, path: snapshotPath(snapshot)})
}

// DeleteSandboxSnapshot deletes a snapshot; sandboxes that began with it go on.
func (c *Client) DeleteSandboxSnapshot(ctx context.Context, snapshot string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: snapshotPath(snapshot)})
}

// RestoreSandboxRootFS makes a paused sandbox's files what a snapshot has kept; its
// processes and memory are dropped.
func (c *Client) RestoreSandboxRootFS(ctx context.Context, id, snapshot string) (*RestoreSandboxRootFSResponse, error) {
	body := RestoreSandboxRootFSRequest{SnapshotID: snapshot}
	return do[RestoreSandboxRootFSResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(id, "rootfs", "restore"), body: body})
}

func snapshotPath(id string) string { return "/api/v1/sandbox-rootfs-snapshots/" + url.PathEscape(id) }
