// Package snapshots knows what lies on the node's disk of sandboxes that were saved.
//
// An image is a directory with the runtime's images of one instant and, beside them,
// a [Manifest]: whose it is and what it needs to be started from. What is in an image
// never changes once it is complete, so images share it by hard links ([Clone]) and
// each owner removes its own names. The package keeps no state and decides about no
// sandbox: who may have an image is for its callers to ask before.
package snapshots

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

// FileName is the manifest's name in the directory of its image.
const FileName = "image.json"

// version is raised when an older reader would misunderstand a manifest. A new field
// is optional, with a useful zero value, and raises nothing.
const version = 1

// Bounds of what a reader takes for a manifest: the largest of ours is a fraction.
const (
	// MaxFileBytes is that of the file.
	MaxFileBytes = 64<<10 + procapi.MaxKeptBytes

	maxName     = 512
	maxFeatures = 512
	maxFeature  = 32
)

// Manifest says what an image is. It is durable before its image can be complete, and
// does not say by itself that it is.
type Manifest struct {
	Version    int                `json:"version"`
	Sandbox    sandbox.ID         `json:"sandbox"`    // that was saved; a clone of the image keeps it
	Generation sandbox.Generation `json:"generation"` // of the instance that was saved
	Team       string             `json:"team"`
	Template   string             `json:"template,omitempty"` // the pool key
	Memory     bool               `json:"memory"`             // processes and memory, beside the files
	Created    time.Time          `json:"created"`
	Origin

	// Kept are the contexts that a sandbox which starts from the files alone has again.
	Kept []procapi.KeptContext `json:"kept,omitempty"`
}

// ErrNone is returned where a directory has no manifest: it holds no image, or one that
// was made before there were manifests.
var ErrNone = errors.New("no manifest")

// Write makes the manifest of the image in dir durable, whole or not at all.
func Write(dir string, m Manifest) error {
	m.Version = version
	if err := m.validate(); err != nil {
		return fmt.Errorf("manifest of %s: %w", dir, err)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("manifest of %s: %w", dir, err)
	}
	whole := filepath.Join(dir, FileName)
	if err := writeSynced(whole+aside, append(b, '\n')); err != nil {
		return err
	}
	if err := os.Rename(whole+aside, whole); err != nil {
		return err
	}
	return syncDir(dir)
}

// Read reads the manifest of the image in dir and checks it, for what is on a disk may
// be half of something. It follows no link.
func Read(dir string) (Manifest, error) {
	f, err := os.OpenFile(filepath.Join(dir, FileName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return Manifest{}, fmt.Errorf("%w in %s", ErrNone, dir)
	}
	if err != nil {
		return Manifest{}, err
	}
	defer f.Close()
	m, err := read(f)
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest of %s: %w", dir, err)
	}
	return m, nil
}

func read(f *os.File) (Manifest, error) {
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return Manifest{}, errors.Join(errors.New("no regular file"), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return Manifest{}, err
	}
	return Parse(b)
}

// Parse checks what a manifest's file holds.
func Parse(b []byte) (Manifest, error) {
	if len(b) > MaxFileBytes {
		return Manifest{}, fmt.Errorf("more than %d bytes", MaxFileBytes)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Manifest{}, err
	}
	return m, m.validate()
}

func (m Manifest) validate() error {
	if m.Version != version {
		return fmt.Errorf("version %d: this one reads %d", m.Version, version)
	}
	if _, err := sandbox.ParseID(string(m.Sandbox)); err != nil {
		return err
	}
	if m.Generation == 0 || m.Team == "" || m.Image == "" || m.Created.IsZero() {
		return errors.New("want a generation, a team, a container image and a time")
	}
	for _, s := range []string{m.Team, m.Template, m.Image, m.Runtime, m.Spec, m.CPU.Arch} {
		if len(s) > maxName {
			return fmt.Errorf("a name of more than %d bytes", maxName)
		}
	}
	return m.CPU.validate()
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
