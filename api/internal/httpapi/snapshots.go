package httpapi

import (
	"net/http"
	"unicode/utf8"

	"github.com/google/uuid"

	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// Bounds of what a snapshot is called, in characters.
const maxSnapshotName, maxSnapshotDescription = 256, 4096

// CreateSandboxSnapshot implements POST /api/v1/sandboxes/{id}/snapshots.
func (a *API) CreateSandboxSnapshot(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.CreateSandboxRootFSSnapshotRequest
	err := decodeOptional(w, r, &req)
	if err == nil {
		err = checkSnapshot(req)
	}
	var snap store.Snapshot
	if err == nil {
		snap, err = a.createSnapshot(r, id, req)
	}
	a.answer(w, r, http.StatusCreated, snapshotOut(snap), err)
}

func checkSnapshot(req openapi.CreateSandboxRootFSSnapshotRequest) error {
	for name, f := range map[string]struct {
		value string
		most  int
	}{"name": {value(req.Name), maxSnapshotName}, "description": {value(req.Description), maxSnapshotDescription}} {
		if utf8.RuneCountInString(f.value) > f.most || !plain(f.value) {
			return errdefs.New(errdefs.InvalidArgument, "%s: want printable text of at most %d characters", name, f.most)
		}
	}
	return nil
}

func (a *API) createSnapshot(r *http.Request, id string, req openapi.CreateSandboxRootFSSnapshotRequest) (store.Snapshot, error) {
	parsed, err := sandboxID(id)
	if err != nil {
		return store.Snapshot{}, err
	}
	p := principalOf(r)
	return a.cfg.Lifecycle.Snapshot(r.Context(), lifecycle.SnapshotRequest{
		TeamID: p.TeamID, UserID: p.UserID, SandboxID: parsed, Name: value(req.Name), Description: value(req.Description), ExpiresAt: req.ExpiresAt,
	})
}

// ListSandboxSnapshots implements GET /api/v1/sandboxes/{id}/snapshots. A sandbox that has
// ended is known by what is left of it.
func (a *API) ListSandboxSnapshots(w http.ResponseWriter, r *http.Request, id string) {
	team := principalOf(r).TeamID
	parsed, err := sandboxID(id)
	var list []store.Snapshot
	if err == nil {
		list, err = a.cfg.Store.Snapshots(r.Context(), team, parsed)
	}
	if err == nil && len(list) == 0 {
		_, err = a.cfg.Store.Sandbox(r.Context(), team, parsed)
	}
	out := openapi.SandboxRootFSSnapshotList{Snapshots: []openapi.SandboxRootFSSnapshot{}, Count: len(list)}
	for _, snap := range list {
		out.Snapshots = append(out.Snapshots, snapshotOut(snap))
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// GetSandboxSnapshot implements GET /api/v1/sandbox-rootfs-snapshots/{snapshot_id}.
func (a *API) GetSandboxSnapshot(w http.ResponseWriter, r *http.Request, id string) {
	parsed, err := snapshotID(id)
	var snap store.Snapshot
	if err == nil {
		snap, err = a.cfg.Store.Snapshot(r.Context(), principalOf(r).TeamID, parsed)
	}
	a.answer(w, r, http.StatusOK, snapshotOut(snap), err)
}

// DeleteSandboxSnapshot implements DELETE /api/v1/sandbox-rootfs-snapshots/{snapshot_id}.
func (a *API) DeleteSandboxSnapshot(w http.ResponseWriter, r *http.Request, id string) {
	parsed, err := snapshotID(id)
	if err == nil {
		err = a.cfg.Lifecycle.DeleteSnapshot(r.Context(), principalOf(r).TeamID, parsed)
	}
	a.answer(w, r, http.StatusOK, openapi.Deleted{Deleted: true}, err)
}

// RestoreSandboxRootFS implements POST /api/v1/sandboxes/{id}/rootfs/restore.
func (a *API) RestoreSandboxRootFS(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.RestoreSandboxRootFSRequest
	err := decode(w, r, controlBytes, &req, "snapshot_id")
	var sb store.Sandbox
	if err == nil {
		sb, err = a.restoreRootFS(r, id, req.SnapshotID)
	}
	a.answer(w, r, http.StatusOK, openapi.RestoreSandboxRootFSResponse{
		SandboxID: string(sb.ID), SnapshotID: req.SnapshotID, Status: openapi.SandboxState(sb.Status), RuntimeGeneration: int64(sb.Generation),
	}, err)
}

func (a *API) restoreRootFS(r *http.Request, id, snapshot string) (store.Sandbox, error) {
	parsed, err := sandboxID(id)
	if err != nil {
		return store.Sandbox{}, err
	}
	snap, err := snapshotID(snapshot)
	if err != nil {
		return store.Sandbox{}, err
	}
	return a.cfg.Lifecycle.RestoreSnapshot(r.Context(), principalOf(r).TeamID, parsed, snap)
}

// snapshotID is the gate for every id of a snapshot that a client names. One that can't
// be is answered like one that is not.
func snapshotID(id string) (uuid.UUID, error) {
	parsed, err := uuid.Parse(id)
	if err != nil || parsed == uuid.Nil || parsed.String() != id {
		return uuid.Nil, errdefs.New(errdefs.NotFound, "snapshot not found")
	}
	return parsed, nil
}

func snapshotOut(s store.Snapshot) openapi.SandboxRootFSSnapshot {
	out := openapi.SandboxRootFSSnapshot{
		ID: s.ID.String(), SandboxID: string(s.SandboxID), TemplateID: s.TemplateID, ParentID: idOut(s.ParentID),
		SizeBytes: s.SizeBytes, CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt,
	}
	if s.Name != "" {
		out.Name = &s.Name
	}
	if s.Description != "" {
		out.Description = &s.Description
	}
	return out
}
