// Package bundle reads and writes what the shim keeps in a container's bundle,
// the directory that containerd makes for it and removes with it.
//
// containerd wrote the OCI spec there; the shim reads from it what it needs and
// adds a record, so that a later `shim delete` process, which starts knowing
// nothing, can finish what a killed shim left. The package owns no state but
// those files and starts no process.
package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"s0.run/internal/shimapi"
)

// Names inside the bundle.
const (
	specFile   = "config.json"
	recordFile = "s0-record.json"
	logFIFO    = "log" // made by containerd, which copies it to its own log
	rootfsDir  = "rootfs"
	socketFile = "s0-socket"
	pidFile    = "s0-init.pid"
	errorLog   = "s0-runsc.log"
)

// maxSpecBytes bounds the spec that is read into memory.
const maxSpecBytes = 4 << 20

// Bundle is one container's bundle directory.
type Bundle struct {
	Dir  string
	Spec Spec
}

// Spec is what the shim needs of the OCI spec.
type Spec struct {
	CgroupsPath string
	Group       string
	Runsc       string
	Root        string
	OverlayDir  string
	OverlaySize string
}

// Open reads the bundle's spec and checks that it names a runtime.
func Open(dir string) (*Bundle, error) {
	raw, err := readFile(filepath.Join(dir, specFile), maxSpecBytes)
	if err != nil {
		return nil, fmt.Errorf("reading spec: %w", err)
	}
	var oci struct {
		Annotations map[string]string `json:"annotations"`
		Linux       struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(raw, &oci); err != nil {
		return nil, fmt.Errorf("reading spec: %w", err)
	}
	b := &Bundle{Dir: dir, Spec: Spec{
		CgroupsPath: oci.Linux.CgroupsPath,
		Group:       oci.Annotations[shimapi.GroupAnnotation],
		Runsc:       oci.Annotations[shimapi.RunscAnnotation],
		Root:        oci.Annotations[shimapi.RootAnnotation],
		OverlayDir:  oci.Annotations[shimapi.OverlayDirAnnotation],
		OverlaySize: oci.Annotations[shimapi.OverlaySizeAnnotation],
	}}
	if !filepath.IsAbs(b.Spec.Runsc) || !filepath.IsAbs(b.Spec.Root) {
		return nil, fmt.Errorf("spec: annotations %s and %s must be absolute paths", shimapi.RunscAnnotation, shimapi.RootAnnotation)
	}
	return b, nil
}

// Rootfs is where the container's root filesystem is mounted.
func (b *Bundle) Rootfs() string { return filepath.Join(b.Dir, rootfsDir) }

// PidFile is where runsc writes the sentry's pid.
func (b *Bundle) PidFile() string { return filepath.Join(b.Dir, pidFile) }

// ErrorLog is where runsc writes why it failed.
func (b *Bundle) ErrorLog() string { return filepath.Join(b.Dir, errorLog) }

// WriteSocket notes the address of the shim that serves the container.
func (b *Bundle) WriteSocket(address string) error {
	return os.WriteFile(filepath.Join(b.Dir, socketFile), []byte(address), 0o600)
}

// Socket is the address that WriteSocket noted.
func (b *Bundle) Socket() (string, error) {
	raw, err := readFile(filepath.Join(b.Dir, socketFile), maxSpecBytes)
	return string(raw), err
}

// Record is what outlives the shim process.
type Record struct {
	Pid     int       `json:"pid"`
	Exited  bool      `json:"exited"` // the status is known
	Status  int       `json:"status"`
	At      time.Time `json:"at"`
	Deleted bool      `json:"deleted"` // nothing is left but the bundle itself
}

// WriteRecord replaces the record; a reader sees the old or the new one whole.
func (b *Bundle) WriteRecord(r Record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(b.Dir, recordFile+".new")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("writing record: %w", err)
	}
	return os.Rename(tmp, filepath.Join(b.Dir, recordFile))
}

// ReadRecord gives the last record; the zero Record when none was written.
func (b *Bundle) ReadRecord() (Record, error) {
	var r Record
	raw, err := readFile(filepath.Join(b.Dir, recordFile), maxSpecBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading record: %w", err)
	}
	return r, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > limit {
		return nil, fmt.Errorf("%s: %d bytes, more than %d", path, fi.Size(), limit)
	}
	return os.ReadFile(path)
}
