package procapi

import "s0.run/internal/warm"

// PathWarm streams how the warm processes are, for noded alone: one [WarmStatus]
// as a line of JSON at once, then one for each change.
const PathWarm = "/warm" // GET → WarmStatus lines

// MaxWarmReason bounds the reasons of a WarmStatus, in bytes.
const MaxWarmReason = 512

// WarmStatus is how a sandbox's warm processes are together.
type WarmStatus struct {
	Ready bool `json:"ready"` // each has started and passes its readiness probe
	// Reason says why they are not ready, or what failed. A failure is final: procd
	// exits after it.
	Reason string `json:"reason,omitempty"`
	Failed bool   `json:"failed,omitempty"`
}

// WarmProcess is a process that [Init] starts.
type WarmProcess = warm.Process
