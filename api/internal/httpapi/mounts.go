package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
)

// mountsOf checks the volumes that a claim asks for.
func mountsOf(list []openapi.ClaimMount) ([]store.MountWant, error) {
	if len(list) > volumes.MaxMounts {
		return nil, errdefs.New(errdefs.InvalidArgument, "mounts: at most %d", volumes.MaxMounts)
	}
	seen := map[uuid.UUID]bool{}
	var wants []store.MountWant
	for _, m := range list {
		if err := volumes.CheckPoint(m.MountPoint); err != nil {
			return nil, err
		}
		id, err := volumeID(m.SandboxvolumeID)
		if err != nil {
			return nil, err
		}
		if seen[id] {
			return nil, errdefs.New(errdefs.InvalidArgument, "mounts: volume %s is there twice", id)
		}
		seen[id] = true
		wants = append(wants, store.MountWant{Volume: id, Point: m.MountPoint})
	}
	return wants, nil
}

// bootstrapMounts shows what a sandbox was claimed with.
func (a *API) bootstrapMounts(r *http.Request, sb store.Sandbox) []openapi.MountStatus {
	mounts, err := a.cfg.Store.Mounts(r.Context(), sb.TeamID, sb.ID)
	if err != nil { // the sandbox has them; that they can't be shown is no failure of the claim
		a.cfg.Log.Warn("could not read a sandbox's mounts", "sandbox", sb.ID, "gen", sb.Generation, "err", err)
	}
	var out []openapi.MountStatus
	for _, m := range mounts {
		out = append(out, openapi.MountStatus{
			SandboxvolumeID: m.VolumeID.String(), MountPoint: m.Point, State: openapi.MountStatusStateMounted,
			MountedAt: new(m.CreatedAt), MountedDurationSec: new(seconds(m.CreatedAt)),
		})
	}
	return out
}

func seconds(since time.Time) int64 { return int64(max(0, time.Since(since)).Seconds()) }

// withMounts adds to a sandbox what it has mounted.
func (a *API) withMounts(ctx context.Context, sb store.Sandbox, out openapi.Sandbox) (openapi.Sandbox, error) {
	mounts, err := a.cfg.Store.Mounts(ctx, sb.TeamID, sb.ID)
	for _, m := range mounts {
		out.Mounts = append(out.Mounts, openapi.ClaimMount{SandboxvolumeID: m.VolumeID.String(), MountPoint: m.Point})
	}
	return out, err
}

// MountVolume implements POST /api/v1/sandboxes/{id}/sandboxvolumes/mount.
func (a *API) MountVolume(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.MountVolumeRequest
	err := decode(w, r, controlBytes, &req, "sandboxvolume_id", "mount_point")
	var want []store.MountWant
	if err == nil {
		want, err = mountsOf([]openapi.ClaimMount{{SandboxvolumeID: req.SandboxvolumeID, MountPoint: req.MountPoint}})
	}
	var sb store.Sandbox
	if err == nil {
		sb, err = a.storedSandbox(r, id)
	}
	var m store.Mount
	if err == nil {
		m, err = a.cfg.Volumes.Mount(r.Context(), sb, want[0])
	}
	a.answer(w, r, http.StatusOK, openapi.VolumeMount{
		SandboxID: string(sb.ID), SandboxvolumeID: m.VolumeID.String(), MountPoint: m.Point, ReadOnly: new(m.ReadOnly),
		MountedAt: m.CreatedAt, MountSessionID: m.ID.String(),
	}, err)
}

// UnmountVolume implements POST /api/v1/sandboxes/{id}/sandboxvolumes/unmount.
func (a *API) UnmountVolume(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.UnmountVolumeRequest
	err := decode(w, r, controlBytes, &req, "sandboxvolume_id", "mount_session_id")
	var sb store.Sandbox
	if err == nil {
		sb, err = a.storedSandbox(r, id)
	}
	if err == nil {
		err = a.cfg.Volumes.Unmount(r.Context(), sb, first(volumeID(req.SandboxvolumeID)), first(volumeID(req.MountSessionID)))
	}
	a.answer(w, r, http.StatusOK, openapi.Unmounted{Unmounted: true}, err)
}

// ListMounts implements GET /api/v1/sandboxes/{id}/sandboxvolumes/status.
func (a *API) ListMounts(w http.ResponseWriter, r *http.Request, id string) {
	sb, err := a.storedSandbox(r, id)
	var mounts []store.Mount
	if err == nil {
		mounts, err = a.cfg.Store.Mounts(r.Context(), sb.TeamID, sb.ID)
	}
	out := openapi.MountList{Mounts: []openapi.SandboxMount{}}
	for _, m := range mounts {
		out.Mounts = append(out.Mounts, openapi.SandboxMount{
			SandboxvolumeID: m.VolumeID.String(), MountPoint: m.Point, ReadOnly: new(m.ReadOnly), State: openapi.SandboxMountStateMounted,
			MountedAt: m.CreatedAt, MountedDurationSec: new(seconds(m.CreatedAt)), MountSessionID: m.ID.String(),
		})
	}
	a.answer(w, r, http.StatusOK, out, err)
}
