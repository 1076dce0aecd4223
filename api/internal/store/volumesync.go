package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
)

// Bounds of what is kept of a volume with replicas.
const (
	maxSyncReplicas  = 64
	maxSyncConflicts = 10_000
	keptSyncRequests = 128 // answers, of each replica

	// forgottenReplica is the silence after which a replica makes room for another.
	forgottenReplica = 30 * 24 * time.Hour
)

// Sync is the journal of a volume's files; see migrations/0026_volume_sync.sql.
type Sync struct {
	VolumeID uuid.UUID
	Head     int64  // the latest entry's number
	Floor    int64  // entries up to this one are forgotten
	Looked   []byte // which tree the journal is true of; nil: it may have changed
	Fresh    bool   // somebody has looked a moment ago
}

const syncColumns = `volume_id, head_seq, retained_after_seq, looked, coalesce(looked_at > now() - interval '1 second', false)`

// SyncReplica is a directory that is kept alike with a volume.
type SyncReplica struct {
	ID          string
	DisplayName string
	Platform    string
	RootPath    string
	SyncNames
	LastApplied int64
	LastSeenAt  time.Time
	LeaseUntil  time.Time
	Leased      bool // by the database's clock
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// SyncNames says which names a replica's file system tells apart.
type SyncNames struct {
	CaseSensitive      bool
	UnicodeInsensitive bool // to it, two forms of a character are one
	Windows            bool // only names that Windows takes
}

const syncReplicaColumns = `id, display_name, platform, root_path, case_sensitive, unicode_insensitive, windows_compatible_paths,
	last_applied_seq, last_seen_at, lease_until, lease_until > now(), created_at, updated_at`

// SyncEntry is an entry of a journal.
type SyncEntry struct {
	Seq       int64
	Source    string
	Replica   string // empty: no replica's
	Event     string
	Path      string
	Kind      string
	Mode      int32
	SHA256    string
	Size      int64
	Metadata  json.RawMessage `json:",omitempty"`
	CreatedAt time.Time
}

const syncEntryColumns = `seq, source, replica_id, event, path, kind, mode, sha256, size_bytes, metadata, created_at`

// SyncPath is what the journal says of a path.
type SyncPath struct {
	Path    string
	Seq     int64
	Source  string
	Replica string
	Gone    bool
	Kind    string
	Mode    int32
	SHA256  string
	Size    int64
	Stamp   string
}

const syncPathColumns = `path, seq, source, replica_id, gone, kind, mode, sha256, size_bytes, stamp`

// Sources and kinds of entries.
const (
	SyncByReplica, SyncBySandbox = "replica", "sandbox"
	SyncFile, SyncDirectory      = "file", "directory"
)

// ErrSyncLocked says that somebody else looks at the volume, or changes it.
var ErrSyncLocked = errors.New("somebody else has the journal's lock")

// errSyncLost ends the work of who has had the lock too long.
var errSyncLost = errdefs.New(errdefs.Unavailable, "the volume's journal is in use").WithRetryAfter(retryAfter)

// BeginSync gives a volume of a team its journal, unless it has one.
func (s *Store) BeginSync(ctx context.Context, team, volume uuid.UUID) error {
	tag, err := s.pool.Exec(ctx, `INSERT INTO volume_syncs (volume_id, team_id)
		SELECT id, team_id FROM volumes WHERE id = $2 AND team_id = $1 AND state = 'ready' FOR KEY SHARE ON CONFLICT DO NOTHING`, team, volume)
	if err == nil && tag.RowsAffected() == 0 {
		_, err = s.Sync(ctx, team, volume)
	}
	return classify(err, "beginning a volume's journal")
}

// Sync reads the journal of a volume of a team. One that has none has nothing in it.
func (s *Store) Sync(ctx context.Context, team, volume uuid.UUID) (Sync, error) {
	rows, _ := s.pool.Query(ctx, `SELECT v.id, coalesce(head_seq, 0), coalesce(retained_after_seq, 0), looked,
			coalesce(looked_at > now() - interval '1 second', s.volume_id IS NULL)
		FROM volumes v LEFT JOIN volume_syncs s ON s.volume_id = v.id
		WHERE v.team_id = $1 AND v.id = $2 AND v.state = 'ready'`, team, volume)
	found1, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sync])
	return found1, found(err, "reading a volume's journal", "volume")
}

// LockSync takes a journal for as long as lease. It fails with [ErrSyncLocked] while
// somebody else has it.
func (s *Store) LockSync(ctx context.Context, team, volume, token uuid.UUID, lease time.Duration) (Sync, error) {
	rows, _ := s.pool.Query(ctx, `UPDATE volume_syncs s SET lock_token = $3, lock_until = now() + $4::interval FROM volumes v
		WHERE v.id = s.volume_id AND v.state = 'ready' AND v.team_id = $1 AND v.id = $2 AND (lock_until IS NULL OR lock_until <= now())
		RETURNING `+syncColumns, team, volume, token, lease)
	locked, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sync])
	if errors.Is(err, pgx.ErrNoRows) {
		return locked, ErrSyncLocked
	}
	return locked, classify(err, "taking a volume's journal")
}

// UnlockSync gives a journal back.
func (s *Store) UnlockSync(ctx context.Context, volume, token uuid.UUID) error {
	_, err := s.pool.Exec(ctx, "UPDATE volume_syncs SET lock_token = NULL, lock_until = NULL WHERE volume_id = $1 AND lock_token = $2", volume, token)
	return classify(err, "giving back a volume's journal")
}

// SyncPaths reads all that a journal says of paths.
func (s *Store) SyncPaths(ctx context.Context, volume uuid.UUID) ([]SyncPath, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+syncPathColumns+" FROM volume_sync_paths WHERE volume_id = $1", volume)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[SyncPath])
	return list, classify(err, "reading a journal's paths")
}

// SyncPathsWith reads a few paths of a team's volume that have a content.
func (s *Store) SyncPathsWith(ctx context.Context, team, volume uuid.UUID, sha256 string) ([]SyncPath, error) {
	rows, _ := s.pool.Query(ctx, `SELECT `+syncPathColumns+` FROM volume_sync_paths
		WHERE volume_id = (SELECT id FROM volumes WHERE team_id = $1 AND id = $2 AND state = 'ready') AND sha256 = $3 AND NOT gone AND sha256 <> ''
		ORDER BY seq DESC LIMIT 8`, team, volume, sha256)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[SyncPath])
	return list, classify(err, "reading a journal's paths")
}

// SyncEntries reads at most limit entries of a team's volume behind a number.
func (s *Store) SyncEntries(ctx context.Context, team, volume uuid.UUID, after int64, limit int) ([]SyncEntry, error) {
	rows, _ := s.pool.Query(ctx, `SELECT `+syncEntryColumns+` FROM volume_sync_entries
		WHERE volume_id = (SELECT id FROM volumes WHERE team_id = $1 AND id = $2 AND state = 'ready') AND seq > $3 ORDER BY seq LIMIT $4`, team, volume, after, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[SyncEntry])
	return list, classify(err, "reading a journal")
}

// SyncWrite is what one transaction adds to a journal.
type SyncWrite struct {
	Volume, Token uuid.UUID
	Head          int64 // before it
	Entries       []SyncEntry
	Paths         []SyncPath
	Conflicts     []SyncConflict
	Looked        []byte        // the tree of which the journal is true now; nil: who knows
	Done          bool          // nothing is left of a look
	Keep          int64         // entries at most
	Lease         time.Duration // for which the lock is kept

	Request *SyncRequest // that it carries out; nil: none
}

// SyncRequest is a replica's request, and what is answered to it.
type SyncRequest struct {
	Replica, ID string
	Hash        []byte
	Answer      json.RawMessage
	Lease       time.Duration // the replica's
}

// WriteSync adds to a journal, all or nothing, if the lock is still its caller's.
func (s *Store) WriteSync(ctx context.Context, w SyncWrite) error {
	return s.inTx(ctx, "writing a volume's journal", func(ctx context.Context, tx pgx.Tx) error {
		head := w.Head + int64(len(w.Entries))
		floor := max(0, head-w.Keep)
		tag, err := tx.Exec(ctx, `UPDATE volume_syncs SET head_seq = $4, retained_after_seq = greatest(retained_after_seq, $5),
				looked = $6, looked_at = CASE WHEN $7 THEN now() ELSE looked_at END, lock_until = now() + $8::interval
			WHERE volume_id = $1 AND lock_token = $2 AND lock_until > now() AND head_seq = $3`,
			w.Volume, w.Token, w.Head, head, floor, w.Looked, w.Done, w.Lease)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errSyncLost
		}
		b := &pgx.Batch{}
		w.queue(b, floor)
		return tx.SendBatch(ctx, b).Close()
	})
}

func (w *SyncWrite) queue(b *pgx.Batch, floor int64) {
	if len(w.Entries) > 0 {
		w.queueEntries(b)
	}
	if len(w.Paths) > 0 {
		w.queuePaths(b)
	}
	for _, c := range w.Conflicts {
		b.Queue(`INSERT INTO volume_sync_conflicts (id, volume_id, replica_id, event, path, old_path, artifact_path, existing_seq, base_seq, reason)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			c.ID, w.Volume, c.Replica, c.Event, c.Path, c.OldPath, c.ArtifactPath, c.ExistingSeq, c.BaseSeq, c.Reason)
	}
	if floor > 0 {
		b.Queue("DELETE FROM volume_sync_entries WHERE volume_id = $1 AND seq <= $2", w.Volume, floor)
		b.Queue("DELETE FROM volume_sync_paths WHERE volume_id = $1 AND gone AND seq <= $2", w.Volume, floor)
	}
	if r := w.Request; r != nil {
		b.Queue(`INSERT INTO volume_sync_requests (volume_id, replica_id, id, hash, answer) VALUES ($1, $2, $3, $4, $5)`,
			w.Volume, r.Replica, r.ID, r.Hash, r.Answer)
		b.Queue(`DELETE FROM volume_sync_requests WHERE volume_id = $1 AND replica_id = $2 AND id IN (
			SELECT id FROM volume_sync_requests WHERE volume_id = $1 AND replica_id = $2 ORDER BY created_at DESC, id OFFSET $3)`,
			w.Volume, r.Replica, keptSyncRequests)
		b.Queue(`UPDATE volume_sync_replicas SET last_seen_at = now(), lease_until = now() + $3::interval
			WHERE volume_id = $1 AND id = $2`, w.Volume, r.Replica, r.Lease)
	}
}

func (w *SyncWrite) queueEntries(b *pgx.Batch) {
	e := w.Entries
	b.Queue(`INSERT INTO volume_sync_entries (volume_id, seq, source, replica_id, event, path, kind, mode, sha256, size_bytes, metadata)
		SELECT $1, seq, source, replica_id, event, path, kind, mode, sha256, size_bytes, metadata::json
		FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::integer[], $9::text[], $10::bigint[], $11::text[])
			u (seq, source, replica_id, event, path, kind, mode, sha256, size_bytes, metadata)`,
		w.Volume, column(e, func(e SyncEntry) int64 { return e.Seq }), column(e, func(e SyncEntry) string { return e.Source }),
		column(e, func(e SyncEntry) string { return e.Replica }), column(e, func(e SyncEntry) string { return e.Event }),
		column(e, func(e SyncEntry) string { return e.Path }),
		column(e, func(e SyncEntry) string { return e.Kind }), column(e, func(e SyncEntry) int32 { return e.Mode }),
		column(e, func(e SyncEntry) string { return e.SHA256 }), column(e, func(e SyncEntry) int64 { return e.Size }),
		column(e, func(e SyncEntry) *string {
			if e.Metadata == nil {
				return nil
			}
			return new(string(e.Metadata))
		}))
}

func (w *SyncWrite) queuePaths(b *pgx.Batch) {
	p := w.Paths
	b.Queue(`INSERT INTO volume_sync_paths (volume_id, `+syncPathColumns+`)
		SELECT $1, `+syncPathColumns+`
		FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::boolean[], $7::text[], $8::integer[], $9::text[], $10::bigint[], $11::text[])
			u (`+syncPathColumns+`)
		ON CONFLICT (volume_id, path) DO UPDATE SET seq = excluded.seq, source = excluded.source, replica_id = excluded.replica_id, gone = excluded.gone,
			kind = excluded.kind, mode = excluded.mode, sha256 = excluded.sha256, size_bytes = excluded.size_bytes, stamp = excluded.stamp`,
		w.Volume, column(p, func(p SyncPath) string { return p.Path }), column(p, func(p SyncPath) int64 { return p.Seq }),
		column(p, func(p SyncPath) string { return p.Source }), column(p, func(p SyncPath) string { return p.Replica }),
		column(p, func(p SyncPath) bool { return p.Gone }), column(p, func(p SyncPath) string { return p.Kind }),
		column(p, func(p SyncPath) int32 { return p.Mode }), column(p, func(p SyncPath) string { return p.SHA256 }),
		column(p, func(p SyncPath) int64 { return p.Size }), column(p, func(p SyncPath) string { return p.Stamp }))
}

// SyncAnswer reads what was answered to a request of a replica; nil: it is a new one. It
// is a conflict when the request was another one.
func (s *Store) SyncAnswer(ctx context.Context, volume uuid.UUID, replica, request string, hash []byte) (answer json.RawMessage, err error) {
	var same bool
	err = s.pool.QueryRow(ctx, `SELECT hash = $4, answer FROM volume_sync_requests WHERE volume_id = $1 AND replica_id = $2 AND id = $3`,
		volume, replica, request, hash).Scan(&same, &answer)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err == nil && !same:
		return nil, errdefs.New(errdefs.Conflict, "request_id was used for other changes").WithDetails(map[string]any{"reason": "request_id_reused"})
	}
	return answer, classify(err, "reading what was answered to a replica")
}
