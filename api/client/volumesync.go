package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// PutVolumeSyncReplica registers a directory that is kept alike with a volume, or renews
// its lease.
func (c *Client) PutVolumeSyncReplica(ctx context.Context, id, replica string, req PutVolumeSyncReplicaRequest) (*VolumeSyncReplicaState, error) {
	return do[VolumeSyncReplicaState](ctx, c, call{method: http.MethodPut, path: syncPath(id, "replicas", replica), body: req})
}

// GetVolumeSyncReplica describes a replica.
func (c *Client) GetVolumeSyncReplica(ctx context.Context, id, replica string) (*VolumeSyncReplicaState, error) {
	return do[VolumeSyncReplicaState](ctx, c, call{method: http.MethodGet, path: syncPath(id, "replicas", replica)})
}

// PutVolumeSyncCursor says how far a replica has applied the journal.
func (c *Client) PutVolumeSyncCursor(ctx context.Context, id, replica string, applied int64) (*VolumeSyncReplicaState, error) {
	return do[VolumeSyncReplicaState](ctx, c, call{
		method: http.MethodPut, path: syncPath(id, "replicas", replica, "cursor"), body: PutVolumeSyncCursorRequest{LastAppliedSeq: applied},
	})
}

// SendVolumeSyncChanges sends what has changed in a replica. It can be repeated as it was.
func (c *Client) SendVolumeSyncChanges(ctx context.Context, id, replica string, req VolumeSyncChangesRequest) (*VolumeSyncChangesResult, error) {
	return do[VolumeSyncChangesResult](ctx, c, call{method: http.MethodPost, path: syncPath(id, "replicas", replica, "changes"), body: req})
}

// ListVolumeSyncChanges reads at most limit entries of a volume's journal behind one; with
// limit 0 as many as the server gives.
func (c *Client) ListVolumeSyncChanges(ctx context.Context, id string, after int64, limit int) (*VolumeSyncChanges, error) {
	q := url.Values{"after": {strconv.FormatInt(after, 10)}}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return do[VolumeSyncChanges](ctx, c, call{method: http.MethodGet, path: syncPath(id, "changes"), query: q})
}

// ReadVolumeSyncPayload opens the content that an entry names; the caller closes it. An
// error may also come while reading.
func (c *Client) ReadVolumeSyncPayload(ctx context.Context, id, ref string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, call{method: http.MethodGet, path: syncPath(id, "replay-payload"), query: url.Values{"content_ref": {ref}}})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// BootstrapVolumeSync keeps what a volume is, for a new replica to begin with.
func (c *Client) BootstrapVolumeSync(ctx context.Context, id string, req BootstrapVolumeSyncRequest) (*VolumeSyncBootstrap, error) {
	return do[VolumeSyncBootstrap](ctx, c, call{method: http.MethodPost, path: syncPath(id, "bootstrap"), body: req})
}

// ReadVolumeSyncArchive opens the files of a snapshot as a compressed tar; the caller
// closes it. What was read before an error is not the whole of it.
func (c *Client) ReadVolumeSyncArchive(ctx context.Context, id, snapshot string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, call{method: http.MethodGet, path: syncPath(id, "bootstrap", "archive"), query: url.Values{"snapshot_id": {snapshot}}})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// ListVolumeSyncConflicts lists a volume's conflicts, newest first: those of a status, or
// with "" all.
func (c *Client) ListVolumeSyncConflicts(ctx context.Context, id string, status VolumeSyncConflictStatus, limit int) (*VolumeSyncConflictList, error) {
	q := url.Values{}
	if status != "" {
		q.Set("status", string(status))
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return do[VolumeSyncConflictList](ctx, c, call{method: http.MethodGet, path: syncPath(id, "conflicts"), query: q})
}

// UpdateVolumeSyncConflict marks a conflict as resolved, or to be ignored.
func (c *Client) UpdateVolumeSyncConflict(ctx context.Context, id, conflict string, req UpdateVolumeSyncConflictRequest) (*VolumeSyncConflict, error) {
	return do[VolumeSyncConflict](ctx, c, call{method: http.MethodPut, path: syncPath(id, "conflicts", conflict), body: req})
}

func syncPath(id string, rest ...string) string {
	return volumePath(append([]string{id, "sync"}, rest...)...)
}
