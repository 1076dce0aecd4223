package client

import (
	"context"
	"net/http"
	"net/url"
)

// ListVolumes lists the team's volumes, newest first.
func (c *Client) ListVolumes(ctx context.Context) ([]SandboxVolume, error) {
	return values(do[[]SandboxVolume](ctx, c, call{method: http.MethodGet, path: volumePath()}))
}

// CreateVolume makes a volume. Repeating it with the same key, unless that is empty,
// makes no other.
func (c *Client) CreateVolume(ctx context.Context, key string, req CreateSandboxVolumeRequest) (*SandboxVolume, error) {
	return do[SandboxVolume](ctx, c, call{method: http.MethodPost, path: volumePath(), header: keyHeader(key), body: req})
}

// GetVolume returns a volume.
func (c *Client) GetVolume(ctx context.Context, id string) (*SandboxVolume, error) {
	return do[SandboxVolume](ctx, c, call{method: http.MethodGet, path: volumePath(id)})
}

// DeleteVolume deletes a volume with its snapshots; with force also one that sandboxes
// have mounted.
func (c *Client) DeleteVolume(ctx context.Context, id string, force bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "true")
	}
	return exec(ctx, c, call{method: http.MethodDelete, path: volumePath(id), query: q})
}

// ForkVolume makes a volume that is what another one is now.
func (c *Client) ForkVolume(ctx context.Context, id, key string, req ForkVolumeRequest) (*SandboxVolume, error) {
	return do[SandboxVolume](ctx, c, call{method: http.MethodPost, path: volumePath(id, "fork"), header: keyHeader(key), body: req})
}

// ListVolumeSnapshots lists a volume's snapshots, newest first.
func (c *Client) ListVolumeSnapshots(ctx context.Context, id string) ([]VolumeSnapshot, error) {
	return values(do[[]VolumeSnapshot](ctx, c, call{method: http.MethodGet, path: volumePath(id, "snapshots")}))
}

// CreateVolumeSnapshot keeps what a volume is now.
func (c *Client) CreateVolumeSnapshot(ctx context.Context, id string, req CreateVolumeSnapshotRequest) (*VolumeSnapshot, error) {
	return do[VolumeSnapshot](ctx, c, call{method: http.MethodPost, path: volumePath(id, "snapshots"), body: req})
}

// GetVolumeSnapshot returns a snapshot of a volume.
func (c *Client) GetVolumeSnapshot(ctx context.Context, id, snapshot string) (*VolumeSnapshot, error) {
	return do[VolumeSnapshot](ctx, c, call{method: http.MethodGet, path: volumePath(id, "snapshots", snapshot)})
}

// DeleteVolumeSnapshot deletes a snapshot; volumes that began as it keep what they have.
func (c *Client) DeleteVolumeSnapshot(ctx context.Context, id, snapshot string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: volumePath(id, "snapshots", snapshot)})
}

// RestoreVolumeSnapshot makes a volume what one of its snapshots is.
func (c *Client) RestoreVolumeSnapshot(ctx context.Context, id, snapshot string) error {
	return exec(ctx, c, call{method: http.MethodPost, path: volumePath(id, "snapshots", snapshot, "restore")})
}

// MountVolume mounts a volume into a running sandbox.
func (c *Client) MountVolume(ctx context.Context, sandboxID, volumeID, point string) (*VolumeMount, error) {
	body := MountVolumeRequest{SandboxvolumeID: volumeID, MountPoint: point}
	return do[VolumeMount](ctx, c, call{method: http.MethodPost, path: sandboxPath(sandboxID, "sandboxvolumes", "mount"), body: body})
}

// UnmountVolume takes a volume away from a sandbox; mount is its MountSessionID.
func (c *Client) UnmountVolume(ctx context.Context, sandboxID, volumeID, mount string) error {
	body := UnmountVolumeRequest{SandboxvolumeID: volumeID, MountSessionID: mount}
	return exec(ctx, c, call{method: http.MethodPost, path: sandboxPath(sandboxID, "sandboxvolumes", "unmount"), body: body})
}

// ListMounts lists what a sandbox has mounted.
func (c *Client) ListMounts(ctx context.Context, sandboxID string) (*MountList, error) {
	return do[MountList](ctx, c, call{method: http.MethodGet, path: sandboxPath(sandboxID, "sandboxvolumes", "status")})
}

// values are an answer that is an array.
func values[T any](list *[]T, err error) ([]T, error) {
	if err != nil {
		return nil, err
	}
	return *list, nil
}

// keyHeader names a call, so that it can be repeated.
func keyHeader(key string) http.Header {
	if key == "" {
		return nil
	}
	return http.Header{"Idempotency-Key": {key}}
}

func volumePath(rest ...string) string { return "/api/v1/sandboxvolumes" + escape(rest...) }
