// Package store keeps what volumes are: which layers make each version, and the layers.
//
// It is a directory of the durable tier, which nodes may share:
//
//	layers/<id>                     an image; complete once a version names it
//	volumes/<id>/log/<seq>          a version; the one with the highest number is the volume
//	volumes/<id>/snapshots/<id>     a version that somebody wants kept
//	volumes/<id>/holds/<id>         a version whose layers somebody has mounted
//	volumes/<id>/.<random>          being written
//	removed/<id>.<random>           a volume that was removed and goes
//
// A version is a file that is written aside and given its name by a hard link: of several
// writers one gets the next number, and what a reader sees is whole or not there. Every
// entry says at which epoch it was written. Who begins a later epoch writes an entry of
// its own first, so that whoever wrote before has lost the next number: that is the
// fence, and no clock or lease is needed for it. A layer that no version names is nobody's
// after a while. The package mounts nothing and knows no node.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"crypto/rand"

	"s0.run/internal/errdefs"
)

const (
	// keptEntries of a volume's log stay behind its head: a reader that found a head has
	// time to read it.
	keptEntries = 8
	// maxVersion bounds what is read of a version.
	maxVersion = 1 << 20
	// layerGrace is how long a layer may be nobody's yet: a commit is under way.
	layerGrace = 6 * time.Hour
	seqDigits  = 16
)

// CodeFenced marks the error of a writer that another one has replaced.
const CodeFenced = "volume_fenced"

// Layer is one of a version's.
type Layer struct {
	ID    string `json:"id"`
	Size  int64  `json:"size"`  // of its image
	Bytes int64  `json:"bytes"` // of the data in it
	Files int64  `json:"files"`
}

// Version is what a volume is at one time.
type Version struct {
	Seq    uint64    `json:"seq"`
	Epoch  uint64    `json:"epoch"` // of who wrote it
	Team   string    `json:"team"`
	Layers []Layer   `json:"layers"` // the topmost first; there is one at least
	Bytes  int64     `json:"bytes"`  // what its files hold
	Files  int64     `json:"files"`
	Time   time.Time `json:"time"`
}

// Store is safe for concurrent use, also by several nodes.
type Store struct{ dir string }

// Open opens the store in a directory, and makes it where there is none.
func Open(dir string) (*Store, error) {
	for _, sub := range []string{"layers", "volumes", "removed"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	return &Store{dir: dir}, nil
}

// ids are those that may name a file.
var ids = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$`)

// CheckID refuses what is no id of a volume or snapshot.
func CheckID(what, id string) error {
	if !ids.MatchString(id) {
		return errdefs.New(errdefs.InvalidArgument, "%s id %.80q", what, id)
	}
	return nil
}

func (s *Store) volume(id string) string         { return filepath.Join(s.dir, "volumes", id) }
func (s *Store) log(id string) string            { return filepath.Join(s.volume(id), "log") }
func (s *Store) snapshots(id string) string      { return filepath.Join(s.volume(id), "snapshots") }
func (s *Store) holds(id string) string          { return filepath.Join(s.volume(id), "holds") }
func (s *Store) snapshot(id, snap string) string { return filepath.Join(s.snapshots(id), snap) }
func (s *Store) entry(id string, seq uint64) string {
	return filepath.Join(s.log(id), fmt.Sprintf("%0*d", seqDigits, seq))
}

// LayerPath is where a layer's image is, or shall be.
func (s *Store) LayerPath(id string) string { return filepath.Join(s.dir, "layers", id) }

// NewLayerID makes one that nobody has.
func NewLayerID() string { return rand.Text()[:16] }

func notFound(id string) error {
	return errdefs.New(errdefs.NotFound, "volume %s not found", id)
}

// Head is what a volume is.
func (s *Store) Head(id string) (Version, error) {
	if err := CheckID("volume", id); err != nil {
		return Version{}, err
	}
	for range 3 {
		seqs, err := s.seqs(id)
		if err != nil {
			return Version{}, err
		}
		if len(seqs) == 0 {
			return Version{}, notFound(id)
		}
		v, err := s.read(s.entry(id, seqs[len(seqs)-1]))
		if !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
	}
	return Version{}, fmt.Errorf("volume %s: its head keeps changing", id)
}

// seqs lists a log, the head last.
func (s *Store) seqs(id string) (all []uint64, err error) {
	entries, err := os.ReadDir(s.log(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, fmt.Errorf("log of volume %s: %w", id, err)
	}
	for _, e := range entries {
		if seq, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && len(e.Name()) == seqDigits {
			all = append(all, seq)
		}
	}
	slices.Sort(all)
	return all, nil
}

func (s *Store) read(path string) (v Version, err error) {
	f, err := os.Open(path)
	if err != nil {
		return v, err
	}
	defer f.Close()
	b := make([]byte, maxVersion)
	n, err := readFull(f, b)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b[:n], &v); err != nil {
		return v, fmt.Errorf("version %s: %w", filepath.Base(path), err)
	}
	return v, nil
}

// Create makes a volume that begins as v is. One that is there already stays as it is,
// if it is of the same team.
func (s *Store) Create(id string, v Version) (Version, error) {
	if err := CheckID("volume", id); err != nil {
		return Version{}, err
	}
	if head, err := s.Head(id); !errdefs.Is(err, errdefs.NotFound) {
		if err == nil && head.Team != v.Team {
			return Version{}, errdefs.New(errdefs.Conflict, "volume %s is there already", id)
		}
		return head, err
	}
	for _, dir := range []string{s.volume(id), s.log(id), s.snapshots(id)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return Version{}, err
		}
	}
	v.Seq = 1
	if err := s.publish(id, s.entry(id, 1), v); err != nil && !errors.Is(err, fs.ErrExist) {
		return Version{}, err
	}
	return s.Head(id)
}

// Begin makes epoch the volume's: whoever wrote at an earlier one has lost.
func (s *Store) Begin(id string, epoch uint64) (Version, error) {
	head, err := s.Head(id)
	if err != nil {
		return Version{}, err
	}
	switch {
	case head.Epoch > epoch:
		return Version{}, fenced(id, epoch, head.Epoch)
	case head.Epoch == epoch:
		return head, nil
	}
	next := head
	next.Epoch = epoch
	return s.Advance(id, head.Seq, next)
}

func fenced(id string, epoch, latest uint64) error {
	return errdefs.WithCode(errdefs.Conflict, CodeFenced, "volume %s is at epoch %d: epoch %d may not write any more", id, latest, epoch)
}

// Advance makes v the version that follows expected, or fails because another one does.
func (s *Store) Advance(id string, expected uint64, v Version) (Version, error) {
	v.Seq = expected + 1
	if err := s.publish(id, s.entry(id, v.Seq), v); errors.Is(err, fs.ErrExist) {
		return s.lost(id, v)
	} else if err != nil {
		return Version{}, err
	}
	// An entry far behind the head is one that nobody sees: the log was cut meanwhile.
	seqs, err := s.seqs(id)
	if err != nil {
		return Version{}, err
	}
	if seqs[len(seqs)-1] != v.Seq {
		return s.lost(id, v)
	}
	for _, old := range seqs[:max(0, len(seqs)-keptEntries)] {
		_ = os.Remove(s.entry(id, old)) // or the next time
	}
	return v, nil
}

func (s *Store) lost(id string, v Version) (Version, error) {
	head, err := s.Head(id)
	if err != nil {
		return Version{}, err
	}
	return Version{}, fenced(id, v.Epoch, head.Epoch)
}

// publish writes a version aside, durably, and links it to a name that must be free.
func (s *Store) publish(id, name string, v Version) error {
	v.Time = time.Now().UTC()
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	aside := filepath.Join(s.volume(id), "."+rand.Text())
	f, err := os.OpenFile(aside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound(id)
	}
	if err != nil {
		return err
	}
	defer os.Remove(aside)
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("version of volume %s: %w", id, err)
	}
	if err := os.Link(aside, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}

// Remove removes a volume with its snapshots; one that is not there is removed already.
func (s *Store) Remove(id string) error {
	if err := CheckID("volume", id); err != nil {
		return err
	}
	err := os.Rename(s.volume(id), filepath.Join(s.dir, "removed", id+"."+rand.Text()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Join(s.dir, "volumes"))
}
