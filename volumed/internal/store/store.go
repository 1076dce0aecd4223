// Package store keeps what volumes are: which layers make each version, and the layers.
//
// It is a directory of the durable tier, which nodes may share:
//
//	store                           which store this is
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
// fence, and no clock or lease is needed for it. (A node whose own epoch is followed by the
// next has nobody to fence, and need not: see internal/work.) An entry also says which attempt wrote
// it, so that who lost the answer can ask again. A layer that no version names is nobody's
// after a while.
//
// That something is not there is said by the store alone, never by a directory that it was
// to be mounted on: every call begins with the proof that this is the store (see tier.go).
// The package mounts nothing and knows no node.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"crypto/rand"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
)

const (
	// keptEntries of a volume's log stay behind its head: a reader that found a head has
	// time to read it.
	keptEntries = 8
	// maxVersion bounds what is read of a version.
	maxVersion = 1 << 20
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
	ID     string    `json:"id"` // of the attempt to write it: see Advance
	Seq    uint64    `json:"seq"`
	Epoch  uint64    `json:"epoch"` // of who wrote it
	Team   string    `json:"team"`
	Layers []Layer   `json:"layers"` // the topmost first; there is one at least
	Bytes  int64     `json:"bytes"`  // what its files hold
	Files  int64     `json:"files"`
	Time   time.Time `json:"time"`
}

// Store is safe for concurrent use, also by several nodes.
type Store struct {
	cfg Config
	id  string // of the store

	mu      sync.Mutex
	suspect map[string]time.Time // layers that a look found to be nobody's: since when
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

func volumeDir(id string) string          { return path.Join("volumes", id) }
func logDir(id string) string             { return path.Join(volumeDir(id), "log") }
func snapshotsDir(id string) string       { return path.Join(volumeDir(id), "snapshots") }
func holdsDir(id string) string           { return path.Join(volumeDir(id), "holds") }
func snapshotFile(id, snap string) string { return path.Join(snapshotsDir(id), snap) }
func layerFile(id string) string          { return path.Join("layers", id) }
func entryFile(id string, seq uint64) string {
	return path.Join(logDir(id), fmt.Sprintf("%0*d", seqDigits, seq))
}

// NewLayerID makes one that nobody has.
func NewLayerID() string { return rand.Text()[:16] }

func notFound(id string) error {
	return errdefs.New(errdefs.NotFound, "volume %s not found", id)
}

// Head is what a volume is.
func (s *Store) Head(id string) (v Version, err error) {
	if err := CheckID("volume", id); err != nil {
		return Version{}, err
	}
	err = s.in(func(t *tier) error {
		v, err = t.head(id)
		return err
	})
	return v, err
}

func (t *tier) head(id string) (Version, error) {
	for range 3 {
		seqs, err := t.seqs(id)
		if err != nil {
			return Version{}, err
		}
		if len(seqs) == 0 {
			return Version{}, notFound(id)
		}
		v, err := t.read(entryFile(id, seqs[len(seqs)-1]))
		if !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
	}
	return Version{}, fmt.Errorf("volume %s: its head keeps changing", id)
}

// seqs lists a log, the head last.
func (t *tier) seqs(id string) (all []uint64, err error) {
	names, err := t.names(logDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, fmt.Errorf("log of volume %s: %w", id, err)
	}
	for _, name := range names {
		if seq, err := strconv.ParseUint(name, 10, 64); err == nil && len(name) == seqDigits {
			all = append(all, seq)
		}
	}
	slices.Sort(all)
	return all, nil
}

func (t *tier) read(name string) (v Version, err error) {
	f, err := t.Open(name)
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
		return v, fmt.Errorf("version %s: %w", path.Base(name), err)
	}
	return v, nil
}

// Create makes a volume that begins as v is. One that is there already stays as it is,
// if it is of the same team.
func (s *Store) Create(id string, v Version) (head Version, err error) {
	if err := CheckID("volume", id); err != nil {
		return Version{}, err
	}
	err = s.in(func(t *tier) error {
		head, err = t.create(id, v)
		return err
	})
	return head, err
}

func (t *tier) create(id string, v Version) (Version, error) {
	if head, err := t.head(id); !errdefs.Is(err, errdefs.NotFound) {
		if err == nil && head.Team != v.Team {
			return Version{}, errdefs.New(errdefs.Conflict, "volume %s is there already", id)
		}
		return head, err
	}
	for _, dir := range []string{logDir(id), snapshotsDir(id)} {
		if err := t.MkdirAll(dir, 0o700); err != nil {
			return Version{}, err
		}
	}
	v.ID, v.Seq = rand.Text(), 1
	if err := t.publish(id, entryFile(id, 1), v, t.Link); err != nil && !errors.Is(err, fs.ErrExist) {
		return Version{}, err
	}
	return t.head(id)
}

// Begin makes epoch the volume's: whoever wrote at an earlier one has lost. It may be
// repeated.
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
	next.ID, next.Epoch = rand.Text(), epoch
	return s.Advance(id, head.Seq, next)
}

func fenced(id string, epoch, latest uint64) error {
	return errdefs.WithCode(errdefs.Conflict, CodeFenced, "volume %s is at epoch %d: epoch %d may not write any more", id, latest, epoch)
}

// Advance makes v the version that follows expected, or fails with a Conflict because
// another one does. Any other error leaves open whether it has; the same v, with the same
// ID, may be tried again, and is found where it is there already.
func (s *Store) Advance(id string, expected uint64, v Version) (Version, error) {
	v.Seq = expected + 1
	err := s.in(func(t *tier) error { return t.advance(id, v) })
	if err != nil {
		return Version{}, err
	}
	return v, nil
}

func (t *tier) advance(id string, v Version) error {
	err := t.publish(id, entryFile(id, v.Seq), v, t.Link)
	if errors.Is(err, fs.ErrExist) {
		there, rerr := t.read(entryFile(id, v.Seq))
		if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return rerr
		}
		if rerr == nil && v.ID != "" && there.ID == v.ID {
			err = nil
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return t.lost(id, v)
	}
	if err := errors.Join(err, failpoint.Hit("volume.after-link")); err != nil {
		return err
	}
	// An entry far behind the head is one that nobody sees: the log was cut meanwhile.
	seqs, err := t.seqs(id)
	if err != nil {
		return err
	}
	if len(seqs) == 0 || seqs[len(seqs)-1] != v.Seq {
		return t.lost(id, v)
	}
	for _, old := range seqs[:max(0, len(seqs)-keptEntries)] {
		_ = t.Remove(entryFile(id, old)) // or the next time
	}
	return nil
}

func (t *tier) lost(id string, v Version) error {
	head, err := t.head(id)
	if err != nil {
		return err
	}
	return fenced(id, v.Epoch, head.Epoch)
}

// publish writes a version aside, durably, and gives it its name.
func (t *tier) publish(id, name string, v Version, give func(old, new string) error) error {
	v.Time = time.Now().UTC()
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	aside := path.Join(volumeDir(id), "."+rand.Text())
	f, err := t.OpenFile(aside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound(id)
	}
	if err != nil {
		return err
	}
	defer t.Remove(aside)
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("version of volume %s: %w", id, err)
	}
	if err := give(aside, name); err != nil {
		return err
	}
	return t.sync(path.Dir(name))
}

// Remove removes a volume with its snapshots; one that is not there is removed already.
func (s *Store) Remove(id string) error {
	if err := CheckID("volume", id); err != nil {
		return err
	}
	return s.in(func(t *tier) error {
		err := t.Rename(volumeDir(id), path.Join("removed", id+"."+rand.Text()))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return t.sync("volumes")
	})
}
