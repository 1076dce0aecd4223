package engine

import (
	"context"
	"io"
	"io/fs"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/sync/tree"
)

// Remote is a volume behind the API, as one replica of it sees it.
type Remote struct {
	// Client is asked for each call, for a session's token is renewed meanwhile.
	Client            func(context.Context) (*client.Client, error)
	VolumeID, Replica string
}

var _ Server = (*Remote)(nil)

func (c Capabilities) wire() *client.VolumeSyncCapabilities {
	return &client.VolumeSyncCapabilities{
		CaseSensitive: c.CaseSensitive, UnicodeNormalizationInsensitive: !c.CaseSensitive, WindowsCompatiblePaths: c.Windows,
	}
}

// Register says that the replica is there.
func (r *Remote) Register(ctx context.Context, is Replica) (int64, error) {
	c, err := r.Client(ctx)
	if err != nil {
		return 0, err
	}
	state, err := c.PutVolumeSyncReplica(ctx, r.VolumeID, r.Replica, client.PutVolumeSyncReplicaRequest{
		DisplayName: &is.Name, Platform: &is.Platform, RootPath: &is.Root, Capabilities: is.Capabilities.wire(),
	})
	if err != nil {
		return 0, err
	}
	return state.HeadSeq, nil
}

// Bootstrap keeps what the volume is now.
func (r *Remote) Bootstrap(ctx context.Context, name string, is Capabilities) (*Seed, error) {
	c, err := r.Client(ctx)
	if err != nil {
		return nil, err
	}
	b, err := c.BootstrapVolumeSync(ctx, r.VolumeID, client.BootstrapVolumeSyncRequest{SnapshotName: &name, Capabilities: is.wire()})
	if err != nil {
		return nil, err
	}
	return &Seed{SnapshotID: b.Snapshot.ID, Cursor: b.ReplayAfterSeq}, nil
}

// Archive is a snapshot.
func (r *Remote) Archive(ctx context.Context, snapshot string) (io.ReadCloser, error) {
	c, err := r.Client(ctx)
	if err != nil {
		return nil, err
	}
	return c.ReadVolumeSyncArchive(ctx, r.VolumeID, snapshot)
}

// Release deletes a snapshot.
func (r *Remote) Release(ctx context.Context, snapshot string) error {
	c, err := r.Client(ctx)
	if err != nil {
		return err
	}
	return c.DeleteVolumeSnapshot(ctx, r.VolumeID, snapshot)
}

// Changes is the journal behind a number.
func (r *Remote) Changes(ctx context.Context, after int64, limit int) (*Page, error) {
	c, err := r.Client(ctx)
	if err != nil {
		return nil, err
	}
	list, err := c.ListVolumeSyncChanges(ctx, r.VolumeID, after, limit)
	if err != nil {
		return nil, err
	}
	return &Page{Head: list.HeadSeq, Changes: entries(list.Changes)}, nil
}

func entries(list []client.VolumeSyncEntry) (all []JournalEntry) {
	for _, e := range list {
		all = append(all, JournalEntry{
			Seq: e.Seq, ReplicaID: deref(e.ReplicaID), Event: string(e.EventType), Path: e.Path, OldPath: deref(e.OldPath), Kind: tree.Kind(e.EntryKind),
			Mode: fs.FileMode(deref(e.Mode)) & fs.ModePerm, Ref: deref(e.ContentRef), Sum: deref(e.ContentSha256), Size: deref(e.SizeBytes), Tombstone: e.Tombstone,
		})
	}
	return all
}

// Payload is a content of the journal.
func (r *Remote) Payload(ctx context.Context, ref string) (io.ReadCloser, error) {
	c, err := r.Client(ctx)
	if err != nil {
		return nil, err
	}
	return c.ReadVolumeSyncPayload(ctx, r.VolumeID, ref)
}

// Push sends changes.
func (r *Remote) Push(ctx context.Context, req Request) (*Pushed, error) {
	c, err := r.Client(ctx)
	if err != nil {
		return nil, err
	}
	wire := client.VolumeSyncChangesRequest{RequestID: req.ID, BaseSeq: req.Base}
	for _, change := range req.Changes {
		wire.Changes = append(wire.Changes, change.wire())
	}
	answer, err := c.SendVolumeSyncChanges(ctx, r.VolumeID, r.Replica, wire)
	if err != nil {
		return nil, err
	}
	return &Pushed{Head: answer.HeadSeq, Accepted: entries(answer.Accepted), Conflicts: conflicts(answer.Conflicts)}, nil
}

func (c Change) wire() client.VolumeSyncChange {
	w := client.VolumeSyncChange{EventType: client.VolumeSyncEventType(c.Event), Path: c.Path, ContentBase64: c.Content}
	if c.Kind != tree.None {
		w.EntryKind = new(client.VolumeSyncEntryKind(c.Kind))
	}
	if c.Mode != 0 {
		w.Mode = new(int32(c.Mode))
	}
	if c.Event == eventWrite {
		w.SizeBytes, w.ContentSha256 = &c.Size, &c.Sum
	}
	return w
}

// SetCursor says how far the journal is applied.
func (r *Remote) SetCursor(ctx context.Context, seq int64) error {
	c, err := r.Client(ctx)
	if err != nil {
		return err
	}
	_, err = c.PutVolumeSyncCursor(ctx, r.VolumeID, r.Replica, seq)
	return err
}

// maxConflicts bounds how many open conflicts are asked for.
const maxConflicts = 200

// Conflicts are those that are open.
func (r *Remote) Conflicts(ctx context.Context) ([]Conflict, error) {
	c, err := r.Client(ctx)
	if err != nil {
		return nil, err
	}
	list, err := c.ListVolumeSyncConflicts(ctx, r.VolumeID, "open", maxConflicts)
	if err != nil {
		return nil, err
	}
	return conflicts(list.Conflicts), nil
}

func conflicts(list []client.VolumeSyncConflict) (all []Conflict) {
	for _, c := range list {
		all = append(all, Conflict{ID: c.ID, ReplicaID: c.ReplicaID, Path: c.Path, Artifact: deref(c.ArtifactPath), Reason: c.Reason})
	}
	return all
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
