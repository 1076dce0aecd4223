// Package volumeapi is what noded says to volumed, over a unix socket: HTTP with JSON
// bodies that are decoded strictly and bounded on both sides.
//
// noded decides who uses which volume, where and until when; volumed has the volumes and
// says where they are mounted on this machine. Every call may be repeated. A use has the
// id of a mount: who restarts says his uses again. The package holds the words, the client
// and the frame of the server; it knows no file system.
package volumeapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"

	"s0.run/internal/errdefs"
)

// CodeFenced marks the error of a caller at an epoch that a later one has replaced.
const CodeFenced = "volume_fenced"

// File calls are procd's, below PathCalls and with procd's requests, answers and errors;
// VolumeHeader names the volume. Errors of volumes have the node API's codes.
const (
	PathCalls    = "/v1/volume"
	VolumeHeader = "S0-Volume"
	CodeStale    = "stale_epoch"
	CodeFull     = "volume_full"
)

// Header is the volume as VolumeHeader has it.
func (v Volume) Header() string {
	b, err := json.Marshal(v)
	if err != nil { // it has strings and numbers
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseVolume reads a volume's Header.
func ParseVolume(header string) (v Volume, err error) {
	b, err := base64.RawURLEncoding.DecodeString(header)
	if err == nil {
		err = decode(bytes.NewReader(b), &v)
	}
	if err != nil {
		return Volume{}, errdefs.New(errdefs.InvalidArgument, "%s: not a volume", VolumeHeader)
	}
	return v, v.Validate()
}

// CodeWritten marks the error of a caller who wants one instant of what is written to all
// the time.
const CodeWritten = "volume_written"

// Volume is what has to be known of one to work on it.
type Volume struct {
	ID    string `json:"id"`
	Team  string `json:"team"`
	Epoch uint64 `json:"epoch"`
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	Limit int64  `json:"limit"` // bytes; 0: none

	Bucket *Bucket `json:"bucket,omitempty"` // that it is; nil: it is in the store
}

// Bucket is a bucket that is a volume, to be read alone: there are no commits, snapshots
// and forks of it, and its epoch is nobody's. What opens it is sealed (package sealed), for
// its volume as the source.
type Bucket struct {
	Provider string `json:"provider"`
	Name     string `json:"name"`
	Prefix   string `json:"prefix,omitempty"`
	Region   string `json:"region,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Kind     string `json:"kind"`
	Version  int64  `json:"version"`
	Key      string `json:"key"`
	Sealed   []byte `json:"sealed"`
}

const maxName = 256

// Validate refuses what no volume is; its id is judged by who makes paths of it.
func (v Volume) Validate() error {
	if v.ID == "" || len(v.ID) > maxName || v.Team == "" || len(v.Team) > maxName || v.Limit < 0 {
		return errdefs.New(errdefs.InvalidArgument, "volume %.64q of team %.64q", v.ID, v.Team)
	}
	return nil
}

// State is what is known of a volume.
type State struct {
	ID          string `json:"id"`
	Epoch       uint64 `json:"epoch"`
	Bytes       int64  `json:"bytes"` // what its files hold
	Files       int64  `json:"files"`
	Uncommitted bool   `json:"uncommitted"` // something was written that is on this machine alone
	Lost        string `json:"lost"`        // why nothing is committed any more
}

// The calls.
type (
	// Create makes a volume that is empty, or what a snapshot is.
	Create struct {
		Volume         Volume `json:"volume"`
		SnapshotVolume string `json:"snapshot_volume,omitempty"`
		Snapshot       string `json:"snapshot,omitempty"`
	}
	// Fork makes Volume what Source is, or was when it was captured.
	Fork struct {
		Source   Volume `json:"source"`
		Volume   Volume `json:"volume"`
		Captured string `json:"captured,omitempty"`
	}
	// Use has a volume mounted, until Leave.
	Use struct {
		Volume   Volume `json:"volume"`
		Use      string `json:"use"`
		ReadOnly bool   `json:"read_only"`
	}
	// Mounted says where.
	Mounted struct {
		Path string `json:"path"`
	}
	// Leave ends a use, when what was written is committed.
	Leave struct {
		ID  string `json:"id"`
		Use string `json:"use"`
	}
	// One names a volume.
	One struct {
		ID string `json:"id"`
	}
	// Committed is a commit's answer; Clean: it is the volume at one instant.
	Committed struct {
		State State `json:"state"`
		Clean bool  `json:"clean"`
	}
	// Captured names what a volume was at one instant.
	Captured struct {
		Token string `json:"token"`
	}
	// Snapshot names one of a volume; one that is made is what it is, or was when it was
	// captured.
	Snapshot struct {
		Volume   Volume `json:"volume"`
		Snapshot string `json:"snapshot"`
		Captured string `json:"captured,omitempty"`
	}
	// Some are the volumes that a list is to have; none: all.
	Some struct {
		IDs []string `json:"ids"`
	}
	// States are a list's.
	States struct {
		States []State `json:"states"`
	}
	// Info says who answers.
	Info struct {
		Version string `json:"version"`
		Store   string `json:"store"`   // which store the volumes are in
		Buckets bool   `json:"buckets"` // can be volumes
	}
)

// The calls' paths.
const (
	PathInfo     = "/v1/info"
	PathCreate   = "/v1/create"
	PathFork     = "/v1/fork"
	PathUse      = "/v1/use"
	PathLeave    = "/v1/leave"
	PathCommit   = "/v1/commit"
	PathCapture  = "/v1/capture"
	PathSnapshot = "/v1/snapshot"
	PathDrop     = "/v1/drop"
	PathRestore  = "/v1/restore"
	PathRelease  = "/v1/release"
	PathRemove   = "/v1/remove"
	PathList     = "/v1/list"
)
