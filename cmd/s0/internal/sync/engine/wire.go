package engine

import (
	"context"
	"io"
	"io/fs"
	"strings"

	"s0.run/cmd/s0/internal/sync/tree"
)

// Server is the volume's side: a journal of what changed in it, numbered. Its no is a
// *client.APIError.
type Server interface {
	// Register says that the replica is there, which it stays for five minutes. It returns
	// the journal's head.
	Register(ctx context.Context, r Replica) (head int64, err error)
	// Bootstrap keeps what the volume is now as a snapshot.
	Bootstrap(ctx context.Context, name string, c Capabilities) (*Seed, error)
	// Archive is a snapshot as a tar.gz.
	Archive(ctx context.Context, snapshot string) (io.ReadCloser, error)
	// Release deletes a snapshot.
	Release(ctx context.Context, snapshot string) error
	// Changes is the journal behind a number.
	Changes(ctx context.Context, after int64, limit int) (*Page, error)
	// Payload is the content that an entry of the journal refers to.
	Payload(ctx context.Context, ref string) (io.ReadCloser, error)
	// Push sends changes. The same request again is answered the same and done once.
	Push(ctx context.Context, r Request) (*Pushed, error)
	// SetCursor says up to which number the journal is applied here.
	SetCursor(ctx context.Context, seq int64) error
	// Conflicts are those that are open.
	Conflicts(ctx context.Context) ([]Conflict, error)
}

// Capabilities are what the file system below a replica can tell apart.
type Capabilities struct {
	CaseSensitive bool // names that differ in case
	Windows       bool // it is Windows', which lacks some names
}

// Replica is what the server knows of a replica.
type Replica struct {
	Name, Platform, Root string
	Capabilities         Capabilities
}

// Seed is a snapshot and where the journal leads on from it.
type Seed struct {
	SnapshotID string
	Cursor     int64
}

// Page is a part of the journal.
type Page struct {
	Head    int64
	Changes []JournalEntry
}

// The events of the journal.
const (
	eventCreate     = "create"
	eventWrite      = "write"
	eventRemove     = "remove"
	eventRename     = "rename"
	eventChmod      = "chmod"
	eventInvalidate = "invalidate"
)

// JournalEntry is one change of the volume.
type JournalEntry struct {
	Seq       int64
	ReplicaID string // whose change it is; empty for a sandbox's
	Event     string
	Path      string
	OldPath   string // of a rename
	Kind      tree.Kind
	Mode      fs.FileMode // 0 when it is not said
	Ref       string      // of the content
	Sum       string
	Size      int64
	Tombstone bool // nothing is left at Path
}

// Request are changes that are sent together.
type Request struct {
	ID      string   `json:"request_id"`
	Base    int64    `json:"base_seq"`
	Changes []Change `json:"changes"`
}

// Change is one change of the replica.
type Change struct {
	Event   string      `json:"event_type"`
	Path    string      `json:"path"`
	Kind    tree.Kind   `json:"entry_kind,omitempty"`
	Mode    fs.FileMode `json:"mode,omitempty"`
	Content []byte      `json:"content_base64,omitempty"`
	Sum     string      `json:"content_sha256,omitempty"`
	Size    int64       `json:"size_bytes,omitempty"`
}

// Pushed is what became of a request.
type Pushed struct {
	Head      int64
	Accepted  []JournalEntry
	Conflicts []Conflict
}

// Conflict is a change that was not taken because the volume has another one.
type Conflict struct {
	ID        string
	ReplicaID string // whose change it was
	Path      string // of the change
	Artifact  string // where its content is; empty when it had none
	Reason    string
}

// sum is a checksum without the name of its kind.
func sum(s string) string { return strings.ToLower(strings.TrimPrefix(s, "sha256:")) }
