// Package journal is the node's durable memory of its sandboxes.
//
// It owns one file and is the only importer of the store behind it. The promise:
// when Put or Delete has returned nil, a crash of the process or the machine
// does not undo it; when it has returned an error, the outcome is unknown and
// the caller writes what shall be true again. One goroutine ([Journal.Run])
// commits everything that waits in one transaction, so that writers that come
// together share one pair of fdatasyncs. Beside its file lies a reserve of disk
// space, which it gives up when the disk is full. The package decides nothing about
// sandboxes and keeps no copy of the records in memory.
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
)

// The schema. A new field of Record is optional with a useful zero value, so
// that the versions before and after it read each other's files; anything else
// raises the format, and a file of a higher format is refused.
//
//	journal.db
//	├── "meta"
//	│   └── "format"  → "1"
//	└── "sandboxes"
//	    └── <id>      → JSON of Record
const format = "1"

var (
	metaBucket      = []byte("meta")
	sandboxesBucket = []byte("sandboxes")
	formatKey       = []byte("format")
)

const (
	// openTimeout waits for a predecessor that is still closing the file.
	openTimeout = 5 * time.Second
	// maxBatch bounds a transaction's size, and with it the longest commit.
	maxBatch = 1024
	// initialMmap keeps a node of some thousand sandboxes from ever remapping.
	initialMmap = 16 << 20
)

// reserveSuffix makes the reserve's name of the journal's.
const reserveSuffix = ".reserve"

// ErrClosed is returned for writes after the journal's Run has ended.
var ErrClosed = errors.New("journal is closed")

// Journal is safe for concurrent use.
type Journal struct {
	db      *bbolt.DB
	reserve reserve // Run's
	ops     chan op
	done    chan struct{} // closed when Run has ended
}

// op is what one caller wants written, whole or not at all.
type op struct {
	entries []entry
	result  chan error
}

type entry struct {
	key   []byte
	value []byte // nil deletes the key
}

// Open opens or creates the journal at path. A file that another process holds
// or that a newer format wrote is an error.
func Open(path string) (*Journal, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         openTimeout,
		NoFreelistSync:  true, // rebuilt at open; keeps every commit small
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: initialMmap,
	})
	if err != nil {
		return nil, fmt.Errorf("opening journal %s: %w", path, err)
	}
	if err := db.Update(initialise); err != nil {
		db.Close()
		return nil, fmt.Errorf("opening journal %s: %w", path, err)
	}
	j := &Journal{db: db, reserve: reserve{path: path + reserveSuffix}, ops: make(chan op), done: make(chan struct{})}
	j.reserve.hold(time.Now())
	return j, nil
}

func initialise(tx *bbolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	if _, err := tx.CreateBucketIfNotExists(sandboxesBucket); err != nil {
		return err
	}
	switch have := string(meta.Get(formatKey)); have {
	case format:
		return nil
	case "":
		return meta.Put(formatKey, []byte(format))
	default:
		return fmt.Errorf("format %q: this version reads %q", have, format)
	}
}

// Run commits what Put and Delete hand in until ctx ends, then closes the file.
// It must run exactly once, also for a journal that is only to be closed.
func (j *Journal) Run(ctx context.Context) error {
	defer close(j.done)
	for {
		select {
		case <-ctx.Done():
			return j.db.Close()
		case first := <-j.ops:
			j.commit(j.gather(first))
		}
	}
}

// gather takes everything that waits by now: what arrives during a commit makes
// up the next one.
func (j *Journal) gather(first op) []op {
	batch := []op{first}
	for len(batch) < maxBatch {
		select {
		case o := <-j.ops:
			batch = append(batch, o)
		default:
			return batch
		}
	}
	return batch
}

func (j *Journal) commit(batch []op) {
	err := j.write(batch)
	if noRoom(err) && j.reserve.release() {
		err = j.write(batch)
	}
	if err == nil {
		j.reserve.hold(time.Now())
	}
	for _, o := range batch {
		o.result <- err // buffered: nobody can hold up the writer
	}
}

func (j *Journal) write(batch []op) error {
	return j.db.Update(func(tx *bbolt.Tx) error {
		if err := failpoint.Hit("journal.commit"); err != nil {
			return err
		}
		b := tx.Bucket(sandboxesBucket)
		for _, o := range batch {
			for _, e := range o.entries {
				if err := e.apply(b); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (e entry) apply(b *bbolt.Bucket) error {
	if e.value == nil {
		return b.Delete(e.key)
	}
	return b.Put(e.key, e.value)
}

// Put makes the records durable, all of them or none. ctx bounds the wait for the
// writer alone: once handed in, the outcome is awaited, for an abandoned write would
// be unknown.
func (j *Journal) Put(ctx context.Context, records ...Record) error {
	entries := make([]entry, len(records))
	for i, r := range records {
		value, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("journal: encoding %s: %w", r.ID, err)
		}
		entries[i] = entry{key: []byte(r.ID), value: value}
	}
	return j.submit(ctx, entries)
}

// Delete forgets the record; an unknown one is no error.
func (j *Journal) Delete(ctx context.Context, id sandbox.ID) error {
	return j.submit(ctx, []entry{{key: []byte(id)}})
}

func (j *Journal) submit(ctx context.Context, entries []entry) error {
	if len(entries) == 0 {
		return nil
	}
	id, o := entries[0].key, op{entries: entries, result: make(chan error, 1)}
	select {
	case j.ops <- o:
	case <-j.done:
		return fmt.Errorf("journal: writing %s: %w", id, ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("journal: writing %s: %w", id, ctx.Err())
	}
	if err := <-o.result; err != nil {
		return fmt.Errorf("journal: writing %s: %w", id, err)
	}
	return nil
}

// All reads every record. One that can't be read fails the whole, for a sweep
// would take it for somebody's leftover.
func (j *Journal) All() ([]Record, error) {
	var all []Record
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(sandboxesBucket).ForEach(func(k, v []byte) error {
			var r Record
			if err := json.Unmarshal(v, &r); err != nil {
				return fmt.Errorf("record %q: %w", k, err)
			}
			if string(r.ID) != string(k) {
				return fmt.Errorf("record %q: it names %q", k, r.ID)
			}
			all = append(all, r)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading journal: %w", err)
	}
	return all, nil
}
