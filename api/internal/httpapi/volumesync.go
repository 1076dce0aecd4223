package httpapi

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumesync"
	"s0.run/internal/errdefs"
)

const (
	// changesBytes is for volumesync.MaxContent in base64, with what is said about it.
	changesBytes = volumesync.MaxContent*4/3 + 2<<20

	// changesTimeout is for that over a slow line, and changesTogether, of a team and of
	// all, for the memory that it takes.
	changesTimeout                 = 5 * time.Minute
	changesOfTeam, changesTogether = 2, 8

	maxSyncText  = 1024 // characters of a name or a path on somebody's machine
	maxRequestID = 128  // characters
	maxConflicts = 1000
	conflicts    = 100
)

// syncOf is the volume that a call is about.
func syncOf(r *http.Request, id string) (volumesync.Of, error) {
	parsed, err := volumeID(id)
	return volumesync.Of{Team: principalOf(r).TeamID, Volume: parsed}, err
}

// PutVolumeSyncReplica implements PUT /api/v1/sandboxvolumes/{id}/sync/replicas/{replica_id}.
func (a *API) PutVolumeSyncReplica(w http.ResponseWriter, r *http.Request, id, replica string) {
	of, err := syncOf(r, id)
	var req openapi.PutVolumeSyncReplicaRequest
	if err == nil {
		err = decodeOptional(w, r, &req)
	}
	if err == nil {
		err = syncTexts(map[string]*string{"display_name": req.DisplayName, "platform": req.Platform, "root_path": req.RootPath})
	}
	var stored store.SyncReplica
	var head int64
	if err == nil {
		stored, head, err = a.cfg.Sync.Register(r.Context(), of, store.SyncReplica{
			ID: replica, DisplayName: value(req.DisplayName), Platform: value(req.Platform), RootPath: value(req.RootPath),
			SyncNames: syncNames(req.Capabilities, req.CaseSensitive),
		})
	}
	a.answer(w, r, http.StatusOK, replicaOut(of, stored, head), err)
}

// syncTexts checks what is kept for people to read.
func syncTexts(fields map[string]*string) error {
	for name, text := range fields {
		if text != nil && (utf8.RuneCountInString(*text) > maxSyncText || !plain(*text)) {
			return errdefs.New(errdefs.InvalidArgument, "%s: want printable text of at most %d characters", name, maxSyncText)
		}
	}
	return nil
}

// syncNames says which names a file system tells apart; one of which nothing is said, all.
func syncNames(c *openapi.VolumeSyncCapabilities, caseSensitive *bool) store.SyncNames {
	if c == nil {
		return store.SyncNames{CaseSensitive: caseSensitive == nil || *caseSensitive}
	}
	return store.SyncNames{CaseSensitive: c.CaseSensitive, UnicodeInsensitive: c.UnicodeNormalizationInsensitive, Windows: c.WindowsCompatiblePaths}
}

// GetVolumeSyncReplica implements GET /api/v1/sandboxvolumes/{id}/sync/replicas/{replica_id}.
func (a *API) GetVolumeSyncReplica(w http.ResponseWriter, r *http.Request, id, replica string) {
	of, err := syncOf(r, id)
	var stored store.SyncReplica
	var head int64
	if err == nil {
		stored, head, err = a.cfg.Sync.Replica(r.Context(), of, replica)
	}
	a.answer(w, r, http.StatusOK, replicaOut(of, stored, head), err)
}

// PutVolumeSyncCursor implements PUT /api/v1/sandboxvolumes/{id}/sync/replicas/{replica_id}/cursor.
func (a *API) PutVolumeSyncCursor(w http.ResponseWriter, r *http.Request, id, replica string) {
	of, err := syncOf(r, id)
	var req openapi.PutVolumeSyncCursorRequest
	if err == nil {
		err = decode(w, r, controlBytes, &req, "last_applied_seq")
	}
	if err == nil && req.LastAppliedSeq < 0 {
		err = errdefs.New(errdefs.InvalidArgument, "last_applied_seq: want 0 or more")
	}
	var stored store.SyncReplica
	var head int64
	if err == nil {
		stored, head, err = a.cfg.Sync.MoveCursor(r.Context(), of, replica, req.LastAppliedSeq)
	}
	a.answer(w, r, http.StatusOK, replicaOut(of, stored, head), err)
}

// SendVolumeSyncChanges implements POST /api/v1/sandboxvolumes/{id}/sync/replicas/{replica_id}/changes.
func (a *API) SendVolumeSyncChanges(w http.ResponseWriter, r *http.Request, id, replica string) {
	of, err := syncOf(r, id)
	var done volumesync.Pushed
	if err == nil {
		done, err = a.push(w, r, of, replica)
	}
	out := openapi.VolumeSyncChangesResult{
		HeadSeq: done.Head, Accepted: entriesOut(of, done.Accepted), Conflicts: []openapi.VolumeSyncConflict{},
	}
	for _, c := range done.Conflicts {
		out.Conflicts = append(out.Conflicts, conflictOut(of, c))
	}
	a.answer(w, r, http.StatusOK, out, err)
}

var errChanges = errdefs.New(errdefs.Exhausted, "too many replicas send changes").WithRetryAfter(time.Second)

func (a *API) push(w http.ResponseWriter, r *http.Request, of volumesync.Of, replica string) (done volumesync.Pushed, err error) {
	leave, ok := a.pushes.Enter(of.Team)
	if !ok {
		return done, errChanges
	}
	defer leave()
	select {
	case a.pushing <- struct{}{}:
		defer func() { <-a.pushing }()
	default:
		return done, errChanges
	}
	push, err := readPush(w, r, replica)
	if err != nil {
		return done, err
	}
	return a.cfg.Sync.Push(r.Context(), of, push)
}

func readPush(w http.ResponseWriter, r *http.Request, replica string) (push volumesync.Push, err error) {
	var req openapi.VolumeSyncChangesRequest
	b, err := bodyWithin(w, r, changesBytes, changesTimeout)
	if err == nil {
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(replyTimeout))
		err = decoded(b, &req, "request_id", "base_seq", "changes")
	}
	if err != nil {
		return push, err
	}
	switch {
	case req.RequestID == "" || utf8.RuneCountInString(req.RequestID) > maxRequestID || !plain(req.RequestID):
		return push, errdefs.New(errdefs.InvalidArgument, "request_id: want printable text of 1 to %d characters", maxRequestID)
	case req.BaseSeq < 0:
		return push, errdefs.New(errdefs.InvalidArgument, "base_seq: want 0 or more")
	}
	push = volumesync.Push{Replica: replica, Request: req.RequestID, Base: req.BaseSeq}
	for _, c := range req.Changes {
		change, err := changeIn(c)
		if err != nil {
			return push, err
		}
		push.Changes = append(push.Changes, change)
	}
	return push, nil
}

func changeIn(c openapi.VolumeSyncChange) (volumesync.Change, error) {
	change := volumesync.Change{
		Event: string(c.EventType), Path: c.Path, OldPath: value(c.OldPath), Kind: string(value(c.EntryKind)),
		Content: c.ContentBase64, HasContent: c.ContentBase64 != nil, Mode: c.Mode, SHA256: value(c.ContentSha256), Size: c.SizeBytes,
	}
	if !c.EventType.Valid() || c.EntryKind != nil && !c.EntryKind.Valid() {
		return change, errdefs.New(errdefs.InvalidArgument, "changes: an event_type or entry_kind is none")
	}
	if c.Metadata == nil {
		return change, nil
	}
	b, err := json.Marshal(c.Metadata)
	if err != nil || len(b) > volumesync.MaxMetadata || bytes.Contains(b, []byte(`\u0000`)) {
		return change, errdefs.New(errdefs.InvalidArgument, "changes: want metadata of at most %d bytes, without NUL", volumesync.MaxMetadata)
	}
	change.Metadata = b
	return change, nil
}

// ListVolumeSyncChanges implements GET /api/v1/sandboxvolumes/{id}/sync/changes.
func (a *API) ListVolumeSyncChanges(w http.ResponseWriter, r *http.Request, id string, params openapi.ListVolumeSyncChangesParams) {
	of, err := syncOf(r, id)
	limit := volumesync.DefaultLimit
	if params.Limit != nil {
		limit = *params.Limit
	}
	if err == nil && (limit < 1 || limit > volumesync.MaxLimit || value(params.After) < 0) {
		err = errdefs.New(errdefs.InvalidArgument, "want after of 0 or more, and limit of 1 to %d", volumesync.MaxLimit)
	}
	var sync store.Sync
	var list []store.SyncEntry
	if err == nil {
		sync, list, err = a.cfg.Sync.Changes(r.Context(), of, value(params.After), limit)
	}
	a.answer(w, r, http.StatusOK, openapi.VolumeSyncChanges{HeadSeq: sync.Head, RetainedAfterSeq: sync.Floor, Changes: entriesOut(of, list)}, err)
}

// GetVolumeSyncPayload implements GET /api/v1/sandboxvolumes/{id}/sync/replay-payload.
func (a *API) GetVolumeSyncPayload(w http.ResponseWriter, r *http.Request, id string, params openapi.GetVolumeSyncPayloadParams) {
	of, err := syncOf(r, id)
	var size int64
	var content io.ReadCloser
	if err == nil {
		size, content, err = a.cfg.Sync.Content(r.Context(), of, params.ContentRef)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer content.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	w.WriteHeader(http.StatusOK)
	if err := copyPaced(w, w, content); err != nil {
		panic(http.ErrAbortHandler) // an end that looks clean would look complete
	}
}

// BootstrapVolumeSync implements POST /api/v1/sandboxvolumes/{id}/sync/bootstrap.
func (a *API) BootstrapVolumeSync(w http.ResponseWriter, r *http.Request, id string) {
	of, err := syncOf(r, id)
	var req openapi.BootstrapVolumeSyncRequest
	if err == nil {
		err = decodeOptional(w, r, &req)
	}
	if err == nil {
		err = checkSnapshot(openapi.CreateSandboxRootFSSnapshotRequest{Name: req.SnapshotName, Description: req.SnapshotDescription})
	}
	name := value(req.SnapshotName)
	if name == "" {
		name = "sync"
	}
	var begun volumesync.Begun
	if err == nil {
		begun, err = a.cfg.Sync.Bootstrap(r.Context(), of, volumesync.Begin{
			User: principalOf(r).UserID, Name: name, Description: value(req.SnapshotDescription), Names: syncNames(req.Capabilities, req.CaseSensitive),
		})
	}
	a.answer(w, r, http.StatusCreated, openapi.VolumeSyncBootstrap{
		Snapshot: volumeSnapshotOut(begun.Snapshot), ReplayAfterSeq: begun.After,
		ArchiveDownloadPath: "/api/v1/sandboxvolumes/" + of.Volume.String() + "/sync/bootstrap/archive?" + url.Values{"snapshot_id": {begun.Snapshot.ID.String()}}.Encode(),
	}, err)
}

// GetVolumeSyncArchive implements GET /api/v1/sandboxvolumes/{id}/sync/bootstrap/archive.
func (a *API) GetVolumeSyncArchive(w http.ResponseWriter, r *http.Request, id string, params openapi.GetVolumeSyncArchiveParams) {
	volume, snapshot, err := volumeSnapshotID(id, params.SnapshotID)
	started := false
	if err == nil {
		of := volumesync.Of{Team: principalOf(r).TeamID, Volume: volume}
		err = a.cfg.Sync.Archive(r.Context(), of, snapshot, pacedWriter{w}, func() {
			started = true
			w.Header().Set("Content-Type", "application/gzip")
			w.WriteHeader(http.StatusOK)
		})
	}
	switch {
	case err != nil && started:
		panic(http.ErrAbortHandler)
	case err != nil:
		a.fail(w, r, err)
	}
}

// pacedWriter writes to a client that has to take each piece in time (A09).
type pacedWriter struct{ w http.ResponseWriter }

// Write implements io.Writer.
func (p pacedWriter) Write(b []byte) (int, error) {
	http.NewResponseController(p.w).SetWriteDeadline(time.Now().Add(chunkTimeout))
	return p.w.Write(b)
}

// ListVolumeSyncConflicts implements GET /api/v1/sandboxvolumes/{id}/sync/conflicts.
func (a *API) ListVolumeSyncConflicts(w http.ResponseWriter, r *http.Request, id string, params openapi.ListVolumeSyncConflictsParams) {
	of, err := syncOf(r, id)
	limit := conflicts
	if params.Limit != nil {
		limit = *params.Limit
	}
	if err == nil && (limit < 1 || limit > maxConflicts || params.Status != nil && !params.Status.Valid()) {
		err = errdefs.New(errdefs.InvalidArgument, "want status open, resolved or ignored, and limit of 1 to %d", maxConflicts)
	}
	var list []store.SyncConflict
	if err == nil {
		list, err = a.cfg.Store.SyncConflicts(r.Context(), of.Team, of.Volume, string(value(params.Status)), limit)
	}
	out := openapi.VolumeSyncConflictList{Conflicts: make([]openapi.VolumeSyncConflict, len(list))}
	for i, c := range list {
		out.Conflicts[i] = conflictOut(of, c)
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// UpdateVolumeSyncConflict implements PUT /api/v1/sandboxvolumes/{id}/sync/conflicts/{conflict_id}.
func (a *API) UpdateVolumeSyncConflict(w http.ResponseWriter, r *http.Request, id, conflict string) {
	of, err := syncOf(r, id)
	parsed, notID := uuid.Parse(conflict)
	if err == nil && (notID != nil || parsed.String() != conflict) {
		err = errdefs.New(errdefs.NotFound, "conflict not found")
	}
	if of.Volume == uuid.Nil {
		err = errdefs.New(errdefs.NotFound, "conflict not found") // whichever id is none
	}
	var req openapi.UpdateVolumeSyncConflictRequest
	if err == nil {
		err = decode(w, r, controlBytes, &req, "status")
	}
	if err == nil && !req.Status.Valid() {
		err = errdefs.New(errdefs.InvalidArgument, "status must be resolved or ignored")
	}
	if err == nil {
		err = syncTexts(map[string]*string{"resolution": req.Resolution, "note": req.Note})
	}
	var c store.SyncConflict
	if err == nil {
		c, err = a.cfg.Store.EndSyncConflict(r.Context(), of.Team, of.Volume, parsed, string(req.Status), value(req.Resolution), value(req.Note))
	}
	a.answer(w, r, http.StatusOK, conflictOut(of, c), err)
}

func replicaOut(of volumesync.Of, r store.SyncReplica, head int64) openapi.VolumeSyncReplicaState {
	return openapi.VolumeSyncReplicaState{HeadSeq: head, Replica: openapi.VolumeSyncReplica{
		ID: r.ID, VolumeID: of.Volume.String(), TeamID: of.Team.String(), DisplayName: r.DisplayName, Platform: r.Platform, RootPath: r.RootPath,
		CaseSensitive: r.CaseSensitive, LastAppliedSeq: r.LastApplied, LastSeenAt: r.LastSeenAt, LeaseExpiresAt: r.LeaseUntil, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
		Capabilities: openapi.VolumeSyncCapabilities{
			CaseSensitive: r.CaseSensitive, UnicodeNormalizationInsensitive: r.UnicodeInsensitive, WindowsCompatiblePaths: r.Windows,
		},
	}}
}

func entriesOut(of volumesync.Of, list []store.SyncEntry) []openapi.VolumeSyncEntry {
	out := make([]openapi.VolumeSyncEntry, len(list))
	for i, e := range list {
		shown := volumesync.Shown(e.Path)
		out[i] = openapi.VolumeSyncEntry{
			Seq: e.Seq, VolumeID: of.Volume.String(), TeamID: of.Team.String(), Source: openapi.VolumeSyncEntrySource(e.Source), ReplicaID: optional(e.Replica),
			EventType: openapi.VolumeSyncEventType(e.Event), Path: shown, NormalizedPath: volumesync.Normalized(shown),
			Tombstone: e.Event == "remove", EntryKind: openapi.VolumeSyncEntryKind(e.Kind), CreatedAt: e.CreatedAt,
		}
		if e.Metadata != nil {
			_ = json.Unmarshal(e.Metadata, &out[i].Metadata) // it was written by us
		}
		if e.Event == "remove" {
			continue
		}
		out[i].Mode = &e.Mode
		if e.SHA256 != "" {
			out[i].ContentRef, out[i].ContentSha256, out[i].SizeBytes = new(volumesync.ContentRef(e.SHA256)), &e.SHA256, &e.Size
		}
	}
	return out
}

func conflictOut(of volumesync.Of, c store.SyncConflict) openapi.VolumeSyncConflict {
	shown := volumesync.Shown(c.Path)
	out := openapi.VolumeSyncConflict{
		ID: c.ID.String(), VolumeID: of.Volume.String(), TeamID: of.Team.String(), ReplicaID: c.Replica, EventType: openapi.VolumeSyncEventType(c.Event),
		Path: shown, NormalizedPath: volumesync.Normalized(shown), OldPath: optional(volumesync.Shown(c.OldPath)), ArtifactPath: optional(volumesync.Shown(c.ArtifactPath)),
		BaseSeq: c.BaseSeq, Reason: c.Reason, Status: openapi.VolumeSyncConflictStatus(c.Status), Resolution: optional(c.Resolution), Note: optional(c.Note),
		CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
	}
	if c.ExistingSeq > 0 {
		out.ExistingSeq = &c.ExistingSeq
	}
	return out
}
