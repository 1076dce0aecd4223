package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"
)

func (s *Store) link(repo, hex string, size int64) error {
	s.gc.RLock()
	defer s.gc.RUnlock()
	if _, err := os.Stat(s.blobPath(hex)); err != nil {
		return err
	}
	return s.db.Update(func(tx *bolt.Tx) error { return s.linkTx(tx, repo, hex, size) })
}

// PutManifest stores a manifest, all of whose children the repository must have,
// and names it by a tag if one is given. All of it is there, or nothing.
func (s *Store) PutManifest(repo, tag, mediaType string, raw []byte, children []string) (digest string, err error) {
	sum := sha256.Sum256(raw)
	digest = hex.EncodeToString(sum[:])
	if err := s.has(repo, children); err != nil {
		return "", err
	}
	if err := s.addBytes(repo, digest, raw); err != nil {
		return "", err
	}
	s.gc.RLock()
	defer s.gc.RUnlock()
	err = s.db.Update(func(tx *bolt.Tx) error {
		if err := hasTx(tx, repo, children); err != nil { // again: a collection may have come between
			return err
		}
		manifests, err := within(tx, repo, bucketManifests)
		if err != nil {
			return err
		}
		m := Manifest{Type: mediaType, Size: int64(len(raw)), Children: children, At: s.now()}
		if err := put(manifests, digest, m); err != nil || tag == "" {
			return err
		}
		tags, err := within(tx, repo, bucketTags)
		if err != nil {
			return err
		}
		return tags.Put([]byte(tag), []byte(digest))
	})
	return digest, err
}

func (s *Store) has(repo string, children []string) error {
	return s.db.View(func(tx *bolt.Tx) error { return hasTx(tx, repo, children) })
}

func hasTx(tx *bolt.Tx, repo string, children []string) error {
	r := tx.Bucket(bucketRepos).Bucket([]byte(repo))
	for _, c := range children {
		if r == nil || get(r, bucketBlobs, c) == nil {
			return ErrMissing
		}
	}
	return nil
}

// Manifest finds a manifest by a tag, or by a digest in hex when tag is empty: a
// tag may look like one.
func (s *Store) Manifest(repo, tag, digest string) (_ string, m Manifest, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		r := tx.Bucket(bucketRepos).Bucket([]byte(repo))
		if r == nil {
			return ErrNotFound
		}
		if tag != "" {
			digest = string(get(r, bucketTags, tag))
		}
		return decode(get(r, bucketManifests, digest), &m)
	})
	return digest, m, err
}

// Content reads a manifest's bytes.
func (s *Store) Content(repo, digest string, most int64) ([]byte, error) {
	f, _, err := s.Blob(repo, digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// Untag forgets a tag.
func (s *Store) Untag(repo, tag string) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		r := tx.Bucket(bucketRepos).Bucket([]byte(repo))
		if r == nil || get(r, bucketTags, tag) == nil {
			return ErrNotFound
		}
		return r.Bucket(bucketTags).Delete([]byte(tag))
	})
}

// Remove forgets a manifest and the tags that name it. What it was made of goes
// with a collection.
func (s *Store) Remove(repo, digest string) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		r := tx.Bucket(bucketRepos).Bucket([]byte(repo))
		if r == nil || get(r, bucketManifests, digest) == nil {
			return ErrNotFound
		}
		return removeTx(r, digest)
	})
}

func removeTx(r *bolt.Bucket, digest string) error {
	if tags := r.Bucket(bucketTags); tags != nil {
		for _, tag := range keys(tags, func(v []byte) bool { return string(v) == digest }) {
			if err := tags.Delete(tag); err != nil {
				return err
			}
		}
	}
	return r.Bucket(bucketManifests).Delete([]byte(digest))
}

func keys(b *bolt.Bucket, which func(v []byte) bool) (found [][]byte) {
	_ = b.ForEach(func(k, v []byte) error { // it returns what we return
		if which(v) {
			found = append(found, slices.Clone(k))
		}
		return nil
	})
	return found
}

// Tags lists a repository's tags after one, in order, at most n.
func (s *Store) Tags(repo, after string, n int) (tags []string, err error) {
	tags = []string{}
	err = s.db.View(func(tx *bolt.Tx) error {
		r := tx.Bucket(bucketRepos).Bucket([]byte(repo))
		if r == nil {
			return ErrNotFound
		}
		b := r.Bucket(bucketTags)
		if b == nil {
			return nil
		}
		c := b.Cursor()
		for k, _ := c.Seek([]byte(after)); k != nil && len(tags) < n; k, _ = c.Next() {
			if string(k) != after {
				tags = append(tags, string(k))
			}
		}
		return nil
	})
	return tags, err
}

// Usage is what something takes.
type Usage struct {
	Repositories, Manifests int
	Blobs                   int   // of all repositories, those of several as often
	Bytes                   int64 // on disk, each content once
}

// Of sums up the repositories below a prefix; "" is all of them.
func (s *Store) Of(prefix string) (u Usage, err error) {
	seen := map[string]bool{}
	err = s.db.View(func(tx *bolt.Tx) error {
		all, repos := tx.Bucket(bucketBlobs), tx.Bucket(bucketRepos)
		c := repos.Cursor()
		for k, _ := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, _ = c.Next() {
			u.Repositories++
			r := repos.Bucket(k)
			if b := r.Bucket(bucketManifests); b != nil {
				u.Manifests += b.Stats().KeyN
			}
			if err := u.add(r.Bucket(bucketBlobs), all, seen); err != nil {
				return err
			}
		}
		return nil
	})
	return u, err
}

func (u *Usage) add(blobs, all *bolt.Bucket, seen map[string]bool) error {
	if blobs == nil {
		return nil
	}
	return blobs.ForEach(func(k, _ []byte) error {
		u.Blobs++
		if seen[string(k)] {
			return nil
		}
		seen[string(k)] = true
		var rec blobRecord
		if err := decode(all.Get(k), &rec); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		u.Bytes += rec.Size
		return nil
	})
}

func decodeManifest(raw []byte) (m Manifest, err error) {
	err = json.Unmarshal(raw, &m)
	return m, err
}
