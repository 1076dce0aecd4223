// Package state is what a replica remembers between two runs, in one SQLite database: what
// it is attached to, what both sides agreed on last (the base), the request that is on its
// way, and how it fares.
//
// Changes are transactions, durable when they return; one process writes (the worker, or
// the command that holds the replica's lock), others read beside it. The database and its
// directory are the user's alone. The package decides nothing.
package state

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver

	"s0.run/cmd/s0/internal/sync/tree"
)

// version of the schema; another is refused.
const version = 1

const schema = `
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE base (
	path TEXT PRIMARY KEY, kind TEXT NOT NULL, mode INTEGER NOT NULL, size INTEGER NOT NULL, sum TEXT NOT NULL,
	stamp_size INTEGER NOT NULL, stamp_time INTEGER NOT NULL, stamp_inode INTEGER NOT NULL, settled INTEGER NOT NULL,
	held TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE intents (path TEXT PRIMARY KEY, kind TEXT NOT NULL, sum TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sent (path TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE contested (path TEXT PRIMARY KEY, artifact TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;`

// Attachment is what a replica is of what, and as whom it syncs.
type Attachment struct {
	ID        string    `json:"id"`
	VolumeID  string    `json:"volume_id"`
	Root      string    `json:"path"`
	Name      string    `json:"name"`
	InitFrom  string    `json:"init_from"`
	Detached  bool      `json:"detached,omitempty"` // by the user; the rest is kept for another time
	CreatedAt time.Time `json:"created_at"`
}

// Progress is how far a replica is.
type Progress struct {
	Seeded bool  `json:"seeded"` // the two sides have been one
	Reseed bool  `json:"reseed"` // the journal does not lead on from Cursor
	Cursor int64 `json:"cursor"` // up to here the journal is applied
}

// Status is how a replica fares.
type Status struct {
	State     string      `json:"state"`
	Head      int64       `json:"head_seq"`
	Pending   int         `json:"pending_changes"`
	Conflicts int         `json:"open_conflicts"`
	Error     string      `json:"last_error,omitempty"`
	ErrorAt   time.Time   `json:"last_error_at,omitzero"`
	SyncedAt  time.Time   `json:"synced_at,omitzero"`
	Skipped   []tree.Skip `json:"skipped"`
}

// Row is what both sides agreed on at a path.
type Row struct {
	tree.Seen
	Held string // why what the volume has is not here; empty when it is
}

// Outbox is the request that is on its way, and what is agreed on once it is accepted.
type Outbox struct {
	Request json.RawMessage `json:"request"`
	Rows    map[string]*Row `json:"rows"` // nil where nothing is left
}

// Intent is what is being put at a path.
type Intent struct {
	Kind tree.Kind
	Sum  string
}

// Memory is all that the engine works with, read at once.
type Memory struct {
	Progress  Progress
	Base      map[string]Row
	Intents   map[string]Intent
	Sent      map[string]int64
	Contested map[string]string
	Outbox    *Outbox
}

// Store is a replica's database.
type Store struct{ db *sql.DB }

// File is the database's name in a replica's directory.
const File = "state.db"

// ErrNone is returned when there is no database.
var ErrNone = errors.New("there is no such replica")

// Open opens the database in dir, which it makes if create is said.
func Open(dir string, create bool) (*Store, error) {
	path := filepath.Join(dir, File)
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // SQLite would ask the umask
		if err != nil {
			return nil, err
		}
		f.Close()
	} else if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	pragmas := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)",
	}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: url.PathEscape(filepath.ToSlash(path)), RawQuery: pragmas.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	s := &Store{db}
	if err := s.prepare(); err != nil {
		db.Close()
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return s, nil
}

func (s *Store) prepare() error {
	tx, err := s.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // nothing is left to undo after a commit
	var have int
	if err := tx.QueryRow("PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	switch have {
	case version:
		return nil
	case 0:
		if _, err := tx.Exec(schema); err != nil {
			return err
		}
		return tx.Commit()
	}
	return fmt.Errorf("it is of another s0 (version %d)", have)
}

// Close lets go of the database.
func (s *Store) Close() error { return s.db.Close() }

const factAttachment, factProgress, factStatus, factOutbox = "attachment", "progress", "status", "outbox"

// fact reads one of the facts; what was never said is left as it is.
func (s *Store) fact(name string, into any) error {
	var b []byte
	err := s.db.QueryRow("SELECT value FROM facts WHERE name = ?", name).Scan(&b)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// Attachment is what the replica is of what.
func (s *Store) Attachment() (a Attachment, err error) {
	if err = s.fact(factAttachment, &a); err == nil && a.ID == "" {
		err = ErrNone
	}
	return a, err
}

// Status is how the replica fared last.
func (s *Store) Status() (st Status, err error) { return st, s.fact(factStatus, &st) }

// Progress is how far the replica was last.
func (s *Store) Progress() (p Progress, err error) { return p, s.fact(factProgress, &p) }

// Load reads all that the engine works with.
func (s *Store) Load() (*Memory, error) {
	m := &Memory{
		Base: map[string]Row{}, Intents: map[string]Intent{}, Sent: map[string]int64{},
		Contested: map[string]string{},
	}
	var base Row
	var intent Intent
	var path, text string
	var seq int64
	err := errors.Join(
		s.fact(factProgress, &m.Progress),
		s.fact(factOutbox, &m.Outbox),
		s.each("SELECT path, kind, mode, size, sum, stamp_size, stamp_time, stamp_inode, settled, held FROM base",
			func() { m.Base[path] = base },
			&path, &base.Kind, &base.Mode, &base.Size, &base.Sum, &base.Stamp.Size, &base.Stamp.Time, (*bits)(&base.Stamp.Inode), &base.Settled, &base.Held),
		s.each("SELECT path, kind, sum FROM intents", func() { m.Intents[path] = intent }, &path, &intent.Kind, &intent.Sum),
		s.each("SELECT path, seq FROM sent", func() { m.Sent[path] = seq }, &path, &seq),
		s.each("SELECT path, artifact FROM contested", func() { m.Contested[path] = text }, &path, &text),
	)
	if err != nil {
		return nil, fmt.Errorf("reading the replica's state: %w", err)
	}
	return m, nil
}

// each calls f for each row of a query, whose columns are in into then.
func (s *Store) each(query string, f func(), into ...any) error {
	rows, err := s.db.Query(query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		f()
	}
	return rows.Err()
}

// bits is a number of 64 bits in a column that has a sign.
type bits uint64

func (b *bits) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("%T is no number", v)
	}
	*b = bits(n)
	return nil
}

// Tx is a change of the state. What fails in it fails its Update.
type Tx struct {
	ctx context.Context
	tx  *sql.Tx
	err error
}

// Update makes a change whole and durable, or not at all.
func (s *Store) Update(ctx context.Context, change func(*Tx)) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("changing the replica's state: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // nothing is left to undo after a commit
	t := &Tx{ctx: ctx, tx: tx}
	if change(t); t.err == nil {
		t.err = tx.Commit()
	}
	if t.err != nil {
		return fmt.Errorf("changing the replica's state: %w", t.err)
	}
	return nil
}

func (t *Tx) exec(query string, args ...any) {
	if t.err == nil {
		_, t.err = t.tx.ExecContext(t.ctx, query, args...)
	}
}

func (t *Tx) setFact(name string, value any) {
	b, err := json.Marshal(value)
	t.err = errors.Join(t.err, err)
	t.exec("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", name, b)
}

// SetAttachment says what the replica is of what.
func (t *Tx) SetAttachment(a Attachment) { t.setFact(factAttachment, a) }

// SetProgress says how far the replica is.
func (t *Tx) SetProgress(p Progress) { t.setFact(factProgress, p) }

// SetStatus says how the replica fares.
func (t *Tx) SetStatus(s Status) { t.setFact(factStatus, s) }

// SetOutbox says what is on its way; nil is nothing.
func (t *Tx) SetOutbox(o *Outbox) { t.setFact(factOutbox, o) }

// SetRow says what both sides agree on at a path; nil is nothing.
func (t *Tx) SetRow(path string, r *Row) {
	if r == nil {
		t.exec("DELETE FROM base WHERE path = ?", path)
		return
	}
	t.exec("INSERT OR REPLACE INTO base VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", path, string(r.Kind), int64(r.Mode), r.Size, r.Sum,
		r.Stamp.Size, r.Stamp.Time, int64(r.Stamp.Inode), r.Settled, r.Held)
}

// AddIntent says what is about to be put at a path.
func (t *Tx) AddIntent(path string, i Intent) {
	t.exec("INSERT OR REPLACE INTO intents VALUES (?, ?, ?)", path, string(i.Kind), i.Sum)
}

// ClearIntents says that nothing is.
func (t *Tx) ClearIntents() { t.exec("DELETE FROM intents") }

// AddSent says under which number the journal has what was sent of a path.
func (t *Tx) AddSent(path string, seq int64) {
	t.exec("INSERT OR REPLACE INTO sent VALUES (?, ?)", path, seq)
}

// ForgetSent forgets the numbers up to one.
func (t *Tx) ForgetSent(seq int64) { t.exec("DELETE FROM sent WHERE seq <= ?", seq) }

// Contest says that the volume has something else at a path than what was sent, which it
// keeps as artifact.
func (t *Tx) Contest(path, artifact string) {
	t.exec("INSERT OR REPLACE INTO contested VALUES (?, ?)", path, artifact)
}

// Settle says that it is no longer so.
func (t *Tx) Settle(path string) { t.exec("DELETE FROM contested WHERE path = ?", path) }
