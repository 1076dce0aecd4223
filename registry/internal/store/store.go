// Package store keeps the registry's images on disk.
//
// What an image is made of lies in files named by their digests, written aside,
// synced and renamed; which repository has which of them, under which tags, is
// in one bbolt database. A name is in the database only when its file is on disk,
// so that a crash leaves a file too many at most, which [Store.Sweep] removes. The
// store checks digests and sizes; who may do what is its caller's matter.
//
//	blobs/<hex>                  {size, at}: every file; at is when somebody last wanted it
//	repos/<repository>/blobs/<hex>      "": what the repository may name
//	                  /manifests/<hex>  {type, size, children, at, absent}
//	                  /tags/<tag>       <hex>
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// openTimeout bounds the wait for another process to let go of the database.
const openTimeout = 5 * time.Second

var (
	bucketBlobs     = []byte("blobs")
	bucketRepos     = []byte("repos")
	bucketManifests = []byte("manifests")
	bucketTags      = []byte("tags")
)

// Why a call fails that is nobody's defect.
var (
	ErrNotFound = errors.New("not found")
	ErrDigest   = errors.New("content does not match its digest")
	ErrMissing  = errors.New("manifest names content that the repository does not have")
	ErrTooLarge = errors.New("too large")
	ErrRange    = errors.New("upload does not go on where it was")
)

// Store is safe for concurrent use.
type Store struct {
	dir string
	db  *bolt.DB
	now func() time.Time

	mu      sync.Mutex
	uploads map[string]*Upload

	// gc keeps the removal of files from everything that finds a file and then
	// names it: those hold it for reading.
	gc sync.RWMutex
}

type blobRecord struct {
	Size int64     `json:"size"`
	At   time.Time `json:"at"`
}

// Manifest is one image, or an index of some.
type Manifest struct {
	Type     string    `json:"type"` // media type
	Size     int64     `json:"size"`
	Children []string  `json:"children,omitempty"` // hex digests of all that it names
	At       time.Time `json:"at"`                 // pushed
	Absent   time.Time `json:"absent,omitzero"`    // since when it has been told to be unused; zero: it is used, or nobody said
}

// Open opens the store below dir, which is made when it is missing. Ages are told by
// now.
func Open(dir string, now func() time.Time) (*Store, error) {
	for _, d := range []string{"blobs", "uploads"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	db, err := bolt.Open(filepath.Join(dir, "registry.db"), 0o600, &bolt.Options{Timeout: openTimeout})
	if err != nil {
		return nil, fmt.Errorf("opening the registry's database: %w", err)
	}
	s := &Store{dir: dir, db: db, now: now, uploads: map[string]*Upload{}}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketBlobs, bucketRepos} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = s.emptyUploads()
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the uploads under way and closes the database.
func (s *Store) Close() error {
	s.mu.Lock()
	for id, u := range s.uploads {
		u.abort()
		delete(s.uploads, id)
	}
	s.mu.Unlock()
	return s.db.Close()
}

func (s *Store) blobPath(hex string) string { return filepath.Join(s.dir, "blobs", hex[:2], hex) }

// Blob opens content that a repository has. Who reads it may finish, also when it
// is removed meanwhile.
func (s *Store) Blob(repo, hex string) (f *os.File, size int64, err error) {
	s.gc.RLock()
	defer s.gc.RUnlock()
	has := false
	err = s.db.View(func(tx *bolt.Tx) error {
		if r := tx.Bucket(bucketRepos).Bucket([]byte(repo)); r != nil {
			has = get(r, bucketBlobs, hex) != nil || get(r, bucketManifests, hex) != nil
		}
		return nil
	})
	if err != nil || !has {
		return nil, 0, errors.Join(err, errIf(!has, ErrNotFound))
	}
	f, err = os.Open(s.blobPath(hex))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func errIf(cond bool, err error) error {
	if cond {
		return err
	}
	return nil
}

func get(r *bolt.Bucket, name []byte, key string) []byte {
	if b := r.Bucket(name); b != nil {
		return b.Get([]byte(key))
	}
	return nil
}

func put(b *bolt.Bucket, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), raw)
}

// touchAfter is how old the note of a use may be before it is written anew.
const touchAfter = time.Hour

// Want notes that somebody is about to name content that a repository has, and
// says how large it is.
func (s *Store) Want(repo, hex string) (size int64, err error) {
	var rec blobRecord
	err = s.db.View(func(tx *bolt.Tx) (err error) {
		rec, err = record(tx, repo, hex)
		return err
	})
	if err != nil || s.now().Sub(rec.At) < touchAfter {
		return rec.Size, err
	}
	err = s.db.Update(func(tx *bolt.Tx) (err error) {
		if rec, err = record(tx, repo, hex); err != nil { // again: a collection may have come between
			return err
		}
		rec.At = s.now()
		return put(tx.Bucket(bucketBlobs), hex, rec)
	})
	return rec.Size, err
}

// record is that of content which a repository has.
func record(tx *bolt.Tx, repo, hex string) (rec blobRecord, err error) {
	r := tx.Bucket(bucketRepos).Bucket([]byte(repo))
	if r == nil || get(r, bucketBlobs, hex) == nil {
		return rec, ErrNotFound
	}
	err = decode(tx.Bucket(bucketBlobs).Get([]byte(hex)), &rec)
	return rec, err
}

func decode(raw []byte, v any) error {
	if raw == nil {
		return ErrNotFound
	}
	return json.Unmarshal(raw, v)
}

// Mount gives a repository content that another has.
func (s *Store) Mount(repo, from, hex string) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		if _, err := record(tx, from, hex); err != nil {
			return err
		}
		return s.linkTx(tx, repo, hex, -1)
	})
}

// linkTx gives a repository content that is on disk.
func (s *Store) linkTx(tx *bolt.Tx, repo, hex string, size int64) error {
	all := tx.Bucket(bucketBlobs)
	var rec blobRecord
	if err := decode(all.Get([]byte(hex)), &rec); err != nil && (size < 0 || !errors.Is(err, ErrNotFound)) {
		return err
	}
	if size >= 0 {
		rec.Size = size
	}
	rec.At = s.now()
	if err := put(all, hex, rec); err != nil {
		return err
	}
	b, err := within(tx, repo, bucketBlobs)
	if err != nil {
		return err
	}
	return b.Put([]byte(hex), []byte{})
}

func within(tx *bolt.Tx, repo string, name []byte) (*bolt.Bucket, error) {
	r, err := tx.Bucket(bucketRepos).CreateBucketIfNotExists([]byte(repo))
	if err != nil {
		return nil, err
	}
	return r.CreateBucketIfNotExists(name)
}

// syncDir makes a rename durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// copyAside copies into a new file among the uploads, synced.
func (s *Store) copyAside(r io.Reader) (path string, err error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "uploads"), "copy-")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// settle renames a whole, synced file to where content of that digest lies, and
// gives it to a repository.
func (s *Store) settle(path, repo, hex string, size int64) error {
	s.gc.RLock()
	defer s.gc.RUnlock()
	to := s.blobPath(hex)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Rename(path, to); err != nil {
		return err
	}
	if err := errors.Join(syncDir(filepath.Dir(to)), syncDir(filepath.Join(s.dir, "blobs"))); err != nil {
		return err
	}
	return s.db.Update(func(tx *bolt.Tx) error { return s.linkTx(tx, repo, hex, size) })
}
