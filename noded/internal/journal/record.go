package journal

import (
	"encoding/json"
	"net/netip"
	"time"

	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

// State is what the node has decided about a sandbox. What its processes do at
// this moment is for the runtime to say, not for the journal.
type State string

const (
	// Slot has no tenant. Whether it is still warming or free is not recorded:
	// after a restart its running task decides that.
	Slot State = "slot"
	// Claimed belongs to a tenant and never becomes a slot again.
	Claimed State = "claimed"
	// Pausing is claimed and being saved. Its image, once complete, decides what it is.
	Pausing State = "pausing"
	// Paused holds nothing but this record and its image.
	Paused State = "paused"
	// Resuming is paused and being started from its image, as this generation.
	Resuming State = "resuming"
	// Failed was claimed and ended by itself; it waits for its Delete and holds
	// nothing but this record.
	Failed State = "failed"
	// Terminating is being torn down; its record goes last.
	Terminating State = "terminating"
)

// Record is what the node remembers of one sandbox. Every path and name follows
// from the id; the address is kept because the node's range may be configured
// anew while the sandbox lives.
type Record struct {
	ID         sandbox.ID         `json:"id"`
	Generation sandbox.Generation `json:"generation"`
	State      State              `json:"state"`
	Reason     string             `json:"reason,omitempty"` // why it failed or ends
	Image      sandbox.Generation `json:"image,omitempty"`  // the generation that its image is of; 0: none; of a slot: it is begun with a team's files, and no free one
	Frozen     bool               `json:"frozen,omitempty"` // may stand still, for it was being forked: to be thawed before it is looked for
	Stored     sandbox.Generation `json:"stored,omitempty"` // the image that is in the object store, with this record; 0: none
	PoolKey    string             `json:"pool_key"`
	Pod        string             `json:"pod,omitempty"` // the UID of the pod that stands for it: Kubernetes decides how long it is a slot
	Spec       sandbox.Spec       `json:"spec"`
	NetIndex   uint32             `json:"net_index"` // 0: given back
	IP         netip.Addr         `json:"ip"`
	Created    time.Time          `json:"created"`
	Claim      *Claim             `json:"claim,omitempty"` // set once and for all by the claim
}

// Claim is whose a sandbox is and what it was given. It is immutable: an update
// of a sandbox replaces it.
type Claim struct {
	ClaimID     string            `json:"claim_id"`
	Team        string            `json:"team"`
	User        string            `json:"user,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	EnvReplaced bool              `json:"env_replaced,omitempty"` // since the claim: warm processes may have the older one
	MemoryBytes int64             `json:"memory_bytes"`
	CPUMillis   int64             `json:"cpu_millis"`
	Time        time.Time         `json:"time"`
	Events      *Events           `json:"events,omitempty"`  // absent: nobody wants to know what happens inside
	Network     *Network          `json:"network,omitempty"` // absent: the default policy
	Mounts      []Mount           `json:"mounts,omitempty"`
	// Former are mounts that it had when it was paused and has no more: its image, where its
	// places are what they were, knows them.
	Former []Mount `json:"former,omitempty"`
}

// Mount is a volume at a place of a sandbox.
type Mount struct {
	ID         string    `json:"id"`
	Volume     Volume    `json:"volume"`
	MountPoint string    `json:"mount_point"`
	ReadOnly   bool      `json:"read_only,omitempty"`
	Time       time.Time `json:"time"`
}

// Volume is what has to be known of one to work on it.
type Volume struct {
	ID         string `json:"id"`
	Team       string `json:"team"`
	Epoch      uint64 `json:"epoch"`
	UID        uint32 `json:"uid"`
	GID        uint32 `json:"gid"`
	LimitBytes int64  `json:"limit_bytes,omitempty"`

	Bucket *Bucket `json:"bucket,omitempty"` // that it is; absent: it is in the store
}

// Bucket is a bucket that is a volume. Its credential is sealed, for volumed to open.
type Bucket struct {
	Provider   string            `json:"provider"`
	Name       string            `json:"name"`
	Prefix     string            `json:"prefix,omitempty"`
	Region     string            `json:"region,omitempty"`
	Endpoint   string            `json:"endpoint,omitempty"`
	Credential sealed.Credential `json:"credential"`
}

// Network is what a sandbox may reach, and what its rules carry: sealed, for netd
// alone to open.
type Network struct {
	Policy      json.RawMessage     `json:"policy"` // of package policy
	Credentials []sealed.Credential `json:"credentials,omitempty"`
}

// Events is what a claim wants to know of what happens inside its sandbox.
type Events struct {
	WatchDir string `json:"watch_dir,omitempty"`
}
