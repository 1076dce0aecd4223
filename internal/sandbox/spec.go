package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"s0.run/internal/warm"
)

// Spec is everything about a slot that is known before its tenant: two slots of
// equal specs are interchangeable. It is immutable once a slot was warmed from it.
type Spec struct {
	Image        string            `json:"image"`         // an OCI reference, by digest once resolved
	Env          map[string]string `json:"env,omitempty"` // seen by every process, under the claim's own
	MemoryBytes  int64             `json:"memory_bytes"`
	CPUMillis    int64             `json:"cpu_millis"`
	DiskBytes    int64             `json:"disk_bytes,omitempty"` // limit of the rootfs' upper layer; 0: as much as the node's disk has
	PidsLimit    int64             `json:"pids_limit,omitempty"` // 0 is the node's default
	RuntimeClass RuntimeClass      `json:"runtime_class"`
	Warm         []warm.Process    `json:"warm,omitempty"` // run before anybody claims the slot
}

// Validate checks the bounds that a node relies on.
func (s Spec) Validate() error {
	switch {
	case s.Image == "":
		return fmt.Errorf("spec: image is required")
	case s.MemoryBytes < MinMemoryBytes || s.MemoryBytes > MaxMemoryBytes:
		return fmt.Errorf("spec: memory of %d bytes: want %d to %d", s.MemoryBytes, MinMemoryBytes, MaxMemoryBytes)
	case s.CPUMillis <= 0 || s.CPUMillis > MaxCPUMillis:
		return fmt.Errorf("spec: cpu of %d millicores: want 1 to %d", s.CPUMillis, MaxCPUMillis)
	case s.DiskBytes < 0 || s.PidsLimit < 0:
		return fmt.Errorf("spec: negative limit")
	}
	if err := warm.Validate(s.Warm); err != nil {
		return fmt.Errorf("spec: warm processes: %w", err)
	}
	switch s.RuntimeClass {
	case GVisor, Kata, Runc:
		return nil
	}
	return fmt.Errorf("spec: runtime class %q: want gvisor, kata or runc", s.RuntimeClass)
}

// Bounds of what a sandbox may ask for: memory is the contract's, in bytes; no machine
// has as many cores, in thousandths, and what is computed from them can't overflow.
const (
	MinMemoryBytes = 128 << 20
	MaxMemoryBytes = 32 << 30
	MaxCPUMillis   = 4096 * 1000
)

// Hash identifies the spec: 16 hex digits over its canonical JSON. Slots of
// another hash than their pool's drain.
func (s Spec) Hash() string {
	b, err := json.Marshal(s) // map keys are sorted, so this is canonical
	if err != nil {
		panic("sandbox.Spec must marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
