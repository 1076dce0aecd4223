package httpapi

import (
	"net/http"
	"unicode/utf8"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
)

// ListVolumes implements GET /api/v1/sandboxvolumes.
func (a *API) ListVolumes(w http.ResponseWriter, r *http.Request) {
	list, err := a.cfg.Store.Volumes(r.Context(), principalOf(r).TeamID)
	out := make([]openapi.SandboxVolume, len(list))
	for i, v := range list {
		out[i] = volumeOut(v)
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// CreateVolume implements POST /api/v1/sandboxvolumes.
func (a *API) CreateVolume(w http.ResponseWriter, r *http.Request, params openapi.CreateVolumeParams) {
	var req openapi.CreateSandboxVolumeRequest
	err := decodeOptional(w, r, &req)
	var want volumes.CreateRequest
	if err == nil {
		want, err = newVolume(req)
	}
	a.makeVolume(w, r, want, value(params.IdempotencyKey), err)
}

// ForkVolume implements POST /api/v1/sandboxvolumes/{id}/fork.
func (a *API) ForkVolume(w http.ResponseWriter, r *http.Request, id string, params openapi.ForkVolumeParams) {
	source, err := volumeID(id)
	var req openapi.ForkVolumeRequest
	if err == nil {
		err = decodeOptional(w, r, &req)
	}
	want := volumes.CreateRequest{Source: source, AccessMode: string(value(req.AccessMode))}
	if err == nil {
		err = checkMode(want.AccessMode)
	}
	if err == nil {
		want.Owner, err = ownerOf(req.DefaultPosixUID, req.DefaultPosixGID)
	}
	a.makeVolume(w, r, want, value(params.IdempotencyKey), err)
}

func (a *API) makeVolume(w http.ResponseWriter, r *http.Request, want volumes.CreateRequest, key string, err error) {
	if err == nil {
		err = checkKey(key)
	}
	var v store.Volume
	if err == nil {
		p := principalOf(r)
		want.TeamID, want.UserID, want.Key = p.TeamID, p.UserID, key
		v, err = a.cfg.Volumes.Create(r.Context(), want)
	}
	a.answer(w, r, http.StatusCreated, volumeOut(v), err)
}

// newVolume checks what a client asks for.
func newVolume(req openapi.CreateSandboxVolumeRequest) (want volumes.CreateRequest, err error) {
	want = volumes.CreateRequest{Backend: string(value(req.Backend)), AccessMode: string(value(req.AccessMode))}
	if want.Backend == "" {
		want.Backend = nodeapi.BackendS0FS
	}
	if err := checkMode(want.AccessMode); err != nil {
		return want, err
	}
	if want.Owner, err = ownerOf(req.DefaultPosixUID, req.DefaultPosixGID); err != nil {
		return want, err
	}
	if id := value(req.SnapshotID); id != "" {
		if want.Snapshot, err = snapshotID(id); err != nil {
			return want, err
		}
	}
	switch {
	case want.Backend != nodeapi.BackendS0FS && want.Backend != nodeapi.BackendS3:
		return want, errdefs.New(errdefs.InvalidArgument, "backend must be s0fs or s3")
	case (want.Backend == nodeapi.BackendS3) != (req.S3 != nil):
		return want, errdefs.New(errdefs.InvalidArgument, "want s3 with backend s3, and with no other")
	case req.S3 == nil:
		return want, nil
	case want.Snapshot != uuid.Nil:
		return want, errdefs.New(errdefs.InvalidArgument, "volume backend does not support snapshots: no snapshot_id")
	case want.AccessMode == "":
		want.AccessMode = store.ReadOnlyMany // a bucket is to be read alone
	case want.AccessMode != store.ReadOnlyMany:
		return want, errdefs.New(errdefs.InvalidArgument, "volume backend does not support access_mode %s: a bucket is read-only, %s", want.AccessMode, store.ReadOnlyMany)
	}
	want.Bucket, want.Secret, err = bucketOf(*req.S3)
	return want, err
}

func checkMode(mode string) error {
	if mode == "" {
		return nil
	}
	return volumes.CheckAccessMode(mode)
}

func bucketOf(s3 openapi.CreateSandboxVolumeS3Config) (*volumes.Bucket, volumes.Secret, error) {
	b := &volumes.Bucket{
		Provider: string(value(s3.Provider)), Bucket: s3.Bucket, Prefix: value(s3.Prefix),
		Region: value(s3.Region), Endpoint: value(s3.EndpointURL),
	}
	secret, err := b.Check(s3.AccessKey, s3.SecretKey, value(s3.SessionToken))
	return b, secret, err
}

// maxPosixID bounds user and group ids: the largest stands for none.
const maxPosixID = 1<<31 - 2

func ownerOf(uid, gid *int64) (*volumes.Owner, error) {
	switch {
	case uid == nil && gid == nil:
		return nil, nil
	case uid == nil || gid == nil:
		return nil, errdefs.New(errdefs.InvalidArgument, "default_posix_uid and default_posix_gid must be set together")
	case *uid < 0 || *gid < 0 || *uid > maxPosixID || *gid > maxPosixID:
		return nil, errdefs.New(errdefs.InvalidArgument, "default_posix_uid and default_posix_gid: want 0 to %d", maxPosixID)
	}
	return &volumes.Owner{UID: int32(*uid), GID: int32(*gid)}, nil
}

// GetVolume implements GET /api/v1/sandboxvolumes/{id}.
func (a *API) GetVolume(w http.ResponseWriter, r *http.Request, id string) {
	parsed, err := volumeID(id)
	var v store.Volume
	if err == nil {
		v, err = a.cfg.Store.Volume(r.Context(), principalOf(r).TeamID, parsed)
	}
	a.answer(w, r, http.StatusOK, volumeOut(v), err)
}

// DeleteVolume implements DELETE /api/v1/sandboxvolumes/{id}.
func (a *API) DeleteVolume(w http.ResponseWriter, r *http.Request, id string, params openapi.DeleteVolumeParams) {
	parsed, err := volumeID(id)
	if err == nil {
		err = a.cfg.Volumes.Delete(r.Context(), principalOf(r).TeamID, parsed, value(params.Force))
	}
	a.answer(w, r, http.StatusOK, openapi.Deleted{Deleted: true}, err)
}

// CreateVolumeSnapshot implements POST /api/v1/sandboxvolumes/{id}/snapshots.
func (a *API) CreateVolumeSnapshot(w http.ResponseWriter, r *http.Request, id string) {
	parsed, err := volumeID(id)
	var req openapi.CreateVolumeSnapshotRequest
	if err == nil {
		err = decode(w, r, controlBytes, &req, "name")
	}
	if err == nil && (req.Name == "" || utf8.RuneCountInString(req.Name) > maxSnapshotName || !plain(req.Name)) {
		err = errdefs.New(errdefs.InvalidArgument, "name: want printable text of 1 to %d characters", maxSnapshotName)
	}
	if err == nil {
		err = checkSnapshot(openapi.CreateSandboxRootFSSnapshotRequest{Description: req.Description})
	}
	var snap store.VolumeSnapshot
	if err == nil {
		p := principalOf(r)
		snap, err = a.cfg.Volumes.Snapshot(r.Context(), volumes.SnapshotRequest{
			TeamID: p.TeamID, UserID: p.UserID, Volume: parsed, Name: req.Name, Description: value(req.Description), ExpiresAt: req.ExpiresAt,
		})
	}
	a.answer(w, r, http.StatusCreated, volumeSnapshotOut(snap), err)
}

// ListVolumeSnapshots implements GET /api/v1/sandboxvolumes/{id}/snapshots.
func (a *API) ListVolumeSnapshots(w http.ResponseWriter, r *http.Request, id string) {
	team := principalOf(r).TeamID
	parsed, err := volumeID(id)
	var list []store.VolumeSnapshot
	if err == nil {
		list, err = a.cfg.Store.VolumeSnapshots(r.Context(), team, parsed)
	}
	if err == nil && len(list) == 0 {
		_, err = a.cfg.Store.Volume(r.Context(), team, parsed)
	}
	out := make([]openapi.VolumeSnapshot, len(list))
	for i, snap := range list {
		out[i] = volumeSnapshotOut(snap)
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// GetVolumeSnapshot implements GET /api/v1/sandboxvolumes/{id}/snapshots/{snapshot_id}.
func (a *API) GetVolumeSnapshot(w http.ResponseWriter, r *http.Request, id, snapshot string) {
	volume, snap, err := volumeSnapshotID(id, snapshot)
	var found store.VolumeSnapshot
	if err == nil {
		found, err = a.cfg.Store.VolumeSnapshot(r.Context(), principalOf(r).TeamID, volume, snap)
	}
	a.answer(w, r, http.StatusOK, volumeSnapshotOut(found), err)
}

// DeleteVolumeSnapshot implements DELETE /api/v1/sandboxvolumes/{id}/snapshots/{snapshot_id}.
func (a *API) DeleteVolumeSnapshot(w http.ResponseWriter, r *http.Request, id, snapshot string) {
	volume, snap, err := volumeSnapshotID(id, snapshot)
	if err == nil {
		err = a.cfg.Volumes.DeleteSnapshot(r.Context(), principalOf(r).TeamID, volume, snap)
	}
	a.answer(w, r, http.StatusOK, openapi.Deleted{Deleted: true}, err)
}

// RestoreVolumeSnapshot implements POST /api/v1/sandboxvolumes/{id}/snapshots/{snapshot_id}/restore.
func (a *API) RestoreVolumeSnapshot(w http.ResponseWriter, r *http.Request, id, snapshot string) {
	volume, snap, err := volumeSnapshotID(id, snapshot)
	if err == nil {
		p := principalOf(r)
		err = a.cfg.Volumes.Restore(r.Context(), p.TeamID, p.UserID, volume, snap)
	}
	a.answer(w, r, http.StatusOK, openapi.RestoreVolumeResponse{Status: openapi.RestoreVolumeResponseStatusRestored}, err)
}

// volumeID is the gate for every id of a volume that a client names. One that can't be is
// answered like one that is not.
func volumeID(id string) (uuid.UUID, error) {
	parsed, err := uuid.Parse(id)
	if err != nil || parsed == uuid.Nil || parsed.String() != id {
		return uuid.Nil, errdefs.New(errdefs.NotFound, "volume not found")
	}
	return parsed, nil
}

// volumeSnapshotID reads both ids. Whichever is none, the answer is that of a snapshot that
// is not there.
func volumeSnapshotID(id, snapshot string) (volume, snap uuid.UUID, err error) {
	if snap, err = snapshotID(snapshot); err != nil {
		return volume, snap, err
	}
	return first(volumeID(id)), snap, nil
}

// first is what a gate lets through; uuid.Nil, which nothing has, when it lets nothing.
func first(id uuid.UUID, _ error) uuid.UUID { return id }

func volumeOut(v store.Volume) openapi.SandboxVolume {
	out := openapi.SandboxVolume{
		ID: v.ID.String(), TeamID: v.TeamID.String(), UserID: v.UserID.String(), SourceVolumeID: idOut(v.SourceID),
		DefaultPosixUID: int64(v.UID), DefaultPosixGID: int64(v.GID), AccessMode: openapi.VolumeAccessMode(v.AccessMode),
		Backend: openapi.VolumeBackend(v.Backend), MeteredStorageBytes: new(v.Bytes), CreatedAt: v.CreatedAt, UpdatedAt: v.UpdatedAt,
	}
	if b, err := volumes.BucketOf(v); err == nil && b != nil { // it was written by us
		out.S3 = &openapi.SandboxVolumeS3Config{
			Provider: openapi.VolumeS3Provider(b.Provider), Bucket: b.Bucket, Prefix: optional(b.Prefix), Region: optional(b.Region), EndpointURL: optional(b.Endpoint),
		}
	}
	return out
}

func volumeSnapshotOut(s store.VolumeSnapshot) openapi.VolumeSnapshot {
	return openapi.VolumeSnapshot{
		ID: s.ID.String(), VolumeID: s.VolumeID.String(), Name: s.Name, Description: optional(s.Description),
		SizeBytes: s.SizeBytes, CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt,
	}
}

// optional leaves out what is empty.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
