package store

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// maxShare is how much of its manifests, one at least, a collection removes: 1/n.
// What looks unused by a mistake is not all gone at once.
const maxShare = 10

// Used is one image that is in use, by tag or by digest in hex.
type Used struct{ Repo, Tag, Digest string }

// Mark notes which manifests are not among those in use, and since when: that is
// what a later collection goes by. An image is in use with everything that it names.
// An empty list says nothing.
func (s *Store) Mark(used []Used) error {
	if len(used) == 0 {
		return nil
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		repos := tx.Bucket(bucketRepos)
		kept := keepers(repos, used)
		return repos.ForEachBucket(func(repo []byte) error {
			manifests := repos.Bucket(repo).Bucket(bucketManifests)
			if manifests == nil {
				return nil
			}
			return s.markRepo(manifests, kept[string(repo)])
		})
	})
}

// keepers are the manifests in use, by repository: those that were told, those
// that a tag names, and those that these name.
func keepers(repos *bolt.Bucket, used []Used) map[string]map[string]bool {
	kept := map[string]map[string]bool{}
	keep := func(repo, digest string) {
		if kept[repo] == nil {
			kept[repo] = map[string]bool{}
		}
		kept[repo][digest] = true
	}
	for _, u := range used {
		keep(u.Repo, u.Digest)
	}
	_ = repos.ForEachBucket(func(repo []byte) error { // it returns what we return
		r := repos.Bucket(repo)
		if tags := r.Bucket(bucketTags); tags != nil {
			_ = tags.ForEach(func(_, digest []byte) error {
				keep(string(repo), string(digest))
				return nil
			})
		}
		for changed := true; changed; {
			changed = false
			for digest := range kept[string(repo)] {
				m, err := decodeManifest(get(r, bucketManifests, digest))
				if err != nil {
					continue
				}
				for _, c := range m.Children {
					if !kept[string(repo)][c] && get(r, bucketManifests, c) != nil {
						keep(string(repo), c)
						changed = true
					}
				}
			}
		}
		return nil
	})
	return kept
}

func (s *Store) markRepo(manifests *bolt.Bucket, kept map[string]bool) error {
	changed := map[string]Manifest{}
	err := manifests.ForEach(func(k, v []byte) error {
		m, err := decodeManifest(v)
		if err != nil {
			return err
		}
		if used := kept[string(k)]; used == m.Absent.IsZero() {
			return nil
		} else if used {
			m.Absent = time.Time{}
		} else {
			m.Absent = s.now()
		}
		changed[string(k)] = m
		return nil
	})
	for digest, m := range changed {
		if err == nil {
			err = put(manifests, digest, m)
		}
	}
	return err
}

// Collect removes the manifests that have been marked for grace, and from each
// repository the content that none of its manifests names and nobody has wanted
// for grace. Tagged ones stay: a push meant them to.
func (s *Store) Collect(grace time.Duration) (removed int, err error) {
	err = s.db.Update(func(tx *bolt.Tx) error {
		repos := tx.Bucket(bucketRepos)
		tagged := keepers(repos, nil)
		due, all := s.due(repos, tagged, grace)
		for _, d := range due[:min(len(due), max(1, all/maxShare))] {
			if err := removeTx(repos.Bucket([]byte(d[0])), d[1]); err != nil {
				return err
			}
			removed++
		}
		var names [][]byte
		_ = repos.ForEachBucket(func(repo []byte) error {
			names = append(names, slices.Clone(repo))
			return nil
		})
		for _, repo := range names {
			if err := s.unlinkOld(tx, repo, grace); err != nil {
				return err
			}
		}
		return nil
	})
	return removed, err
}

func (s *Store) due(repos *bolt.Bucket, tagged map[string]map[string]bool, grace time.Duration) (due [][2]string, all int) {
	_ = repos.ForEachBucket(func(repo []byte) error {
		manifests := repos.Bucket(repo).Bucket(bucketManifests)
		if manifests == nil {
			return nil
		}
		return manifests.ForEach(func(k, v []byte) error {
			all++
			m, err := decodeManifest(v)
			old := !m.Absent.IsZero() && s.now().Sub(m.Absent) >= grace && s.now().Sub(m.At) >= grace
			if err == nil && old && !tagged[string(repo)][string(k)] {
				due = append(due, [2]string{string(repo), string(k)})
			}
			return nil
		})
	})
	return due, all
}

// unlinkOld takes from a repository what no manifest of it names, and forgets the
// repository when nothing is left.
func (s *Store) unlinkOld(tx *bolt.Tx, repo []byte, grace time.Duration) error {
	r := tx.Bucket(bucketRepos).Bucket(repo)
	named := map[string]bool{}
	if manifests := r.Bucket(bucketManifests); manifests != nil {
		err := manifests.ForEach(func(k, v []byte) error {
			named[string(k)] = true
			m, err := decodeManifest(v)
			for _, c := range m.Children {
				named[c] = true
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	blobs := r.Bucket(bucketBlobs)
	if blobs == nil {
		return nil
	}
	for _, k := range keys(blobs, func([]byte) bool { return true }) {
		var rec blobRecord
		err := decode(tx.Bucket(bucketBlobs).Get(k), &rec)
		if named[string(k)] || err == nil && s.now().Sub(rec.At) < grace {
			continue
		}
		if err := blobs.Delete(k); err != nil {
			return err
		}
	}
	if k, _ := blobs.Cursor().First(); k == nil && len(named) == 0 {
		return tx.Bucket(bucketRepos).DeleteBucket(repo)
	}
	return nil
}

// Sweep removes the files that no repository has and nobody has wanted for grace,
// and those that a crash left without a record.
func (s *Store) Sweep(grace time.Duration) (removed int, err error) {
	owned := map[string]bool{}
	err = s.db.View(func(tx *bolt.Tx) error {
		repos := tx.Bucket(bucketRepos)
		return repos.ForEachBucket(func(repo []byte) error {
			if b := repos.Bucket(repo).Bucket(bucketBlobs); b != nil {
				return b.ForEach(func(k, _ []byte) error { owned[string(k)] = true; return nil })
			}
			return nil
		})
	})
	if err != nil {
		return 0, err
	}
	err = filepath.WalkDir(filepath.Join(s.dir, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || owned[d.Name()] {
			return err
		}
		info, err := d.Info()
		if err != nil || s.now().Sub(info.ModTime()) < grace {
			return nil // it is gone, or new
		}
		gone, err := s.sweep(path, d.Name(), grace)
		if gone {
			removed++
		}
		return err
	})
	return removed, err
}

// sweep removes one file, unless somebody has come to own or want it.
func (s *Store) sweep(path, hex string, grace time.Duration) (gone bool, err error) {
	s.gc.Lock()
	defer s.gc.Unlock()
	err = s.db.Update(func(tx *bolt.Tx) error {
		var rec blobRecord
		if err := decode(tx.Bucket(bucketBlobs).Get([]byte(hex)), &rec); err == nil && s.now().Sub(rec.At) < grace {
			return nil
		}
		if owned(tx.Bucket(bucketRepos), hex) {
			return nil
		}
		gone = true
		return tx.Bucket(bucketBlobs).Delete([]byte(hex))
	})
	if err != nil || !gone {
		return false, err
	}
	return true, os.Remove(path)
}

func owned(repos *bolt.Bucket, hex string) (owned bool) {
	_ = repos.ForEachBucket(func(repo []byte) error {
		owned = owned || get(repos.Bucket(repo), bucketBlobs, hex) != nil
		return nil
	})
	return owned
}
