package store

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Upload is content that comes in, in one or more pieces. Its hash goes along: the
// content is read once. It is one caller's at a time.
type Upload struct {
	ID   string
	Repo string

	mu   sync.Mutex
	file *os.File // nil: it has ended
	hash hash.Hash
	size int64
	at   time.Time
}

// ErrUploads says that there are too many uploads under way.
var ErrUploads = fmt.Errorf("too many uploads are under way")

// Begin begins an upload; a repository's owner may have so many.
func (s *Store) Begin(repo string, owned func(repo string) bool, most int) (*Upload, error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "uploads"), "upload-")
	if err != nil {
		return nil, err
	}
	u := &Upload{ID: rand.Text(), Repo: repo, file: f, hash: sha256.New(), at: s.now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, other := range s.uploads {
		if owned(other.Repo) {
			n++
		}
	}
	if n >= most {
		u.abort()
		return nil, ErrUploads
	}
	s.uploads[u.ID] = u
	return u, nil
}

// Upload finds an upload of a repository.
func (s *Store) Upload(repo, id string) (*Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.uploads[id]; u != nil && u.Repo == repo {
		return u, nil
	}
	return nil, ErrNotFound
}

// Size is how much of it has come.
func (u *Upload) Size() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

// Append adds what comes, from an offset on if one is named (-1: none), and at most
// so that the upload has max bytes. What had come before an error stays.
func (s *Store) Append(u *Upload, r io.Reader, offset, max int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.file == nil:
		return ErrNotFound
	case offset >= 0 && offset != u.size:
		return ErrRange
	}
	w := writer(func(b []byte) (int, error) {
		if u.size+int64(len(b)) > max {
			return 0, ErrTooLarge
		}
		n, err := u.file.Write(b)
		u.hash.Write(b[:n])
		u.size += int64(n)
		u.at = s.now()
		return n, err
	})
	_, err := io.Copy(struct{ io.Writer }{w}, r)
	return err
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// Finish makes the upload content of its repository, if it is what digest says.
// Either way it has ended.
func (s *Store) Finish(u *Upload, digest string) error {
	s.forget(u)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.file == nil {
		return ErrNotFound
	}
	path := u.file.Name()
	defer os.Remove(path) // gone already when all is well
	if hex.EncodeToString(u.hash.Sum(nil)) != digest {
		u.endLocked()
		return ErrDigest
	}
	err := u.file.Sync()
	u.endLocked()
	if err != nil {
		return err
	}
	return s.settle(path, u.Repo, digest, u.size)
}

// Abort drops an upload.
func (s *Store) Abort(u *Upload) {
	s.forget(u)
	u.abort()
}

func (s *Store) forget(u *Upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, u.ID)
}

func (u *Upload) abort() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.file != nil {
		os.Remove(u.file.Name())
		u.endLocked()
	}
}

func (u *Upload) endLocked() {
	u.file.Close()
	u.file = nil
}

// SweepUploads drops the uploads to which nothing has come for so long.
func (s *Store) SweepUploads(idle time.Duration) (swept int) {
	s.mu.Lock()
	all := make([]*Upload, 0, len(s.uploads))
	for _, u := range s.uploads {
		all = append(all, u)
	}
	s.mu.Unlock()
	for _, u := range all {
		if !u.mu.TryLock() { // something comes just now
			continue
		}
		old := s.now().Sub(u.at) >= idle
		u.mu.Unlock()
		if old {
			s.Abort(u)
			swept++
		}
	}
	return swept
}

// emptyUploads removes what a former process had begun: its clients begin anew.
func (s *Store) emptyUploads() error {
	dir := filepath.Join(s.dir, "uploads")
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Add gives a repository content that is read from r, whose digest and size are
// checked. Content that is there already is not read.
func (s *Store) Add(repo, digest string, size int64, open func() (io.ReadCloser, error)) error {
	if info, err := os.Stat(s.blobPath(digest)); err == nil && info.Size() == size {
		return s.link(repo, digest, size)
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	path, err := s.copyAside(io.TeeReader(r, sum))
	if err != nil {
		return err
	}
	defer os.Remove(path)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest || info.Size() != size {
		return fmt.Errorf("%s: %w", digest, ErrDigest)
	}
	return s.settle(path, repo, digest, size)
}

// addBytes is Add for what is in memory.
func (s *Store) addBytes(repo, digest string, content []byte) error {
	return s.Add(repo, digest, int64(len(content)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
}
