package nodeapi

import "strings"

// States of a PodSlot.
const (
	PodSlotWarming = "warming"
	PodSlotFree    = "free"
	PodSlotClaimed = "claimed"
	PodSlotEnded   = "ended"
)

// podClaim begins the ids of claims that are made for pods.
const podClaim = "pod/"

// PodClaim is the claim of a pod that is no slot of a pool: a sandbox that belongs to
// Kubernetes, of which the API server knows nothing and which it leaves alone.
func PodClaim(uid string) string { return podClaim + uid }

// ClaimedPod is the UID of the pod that a claim was made for, if it was made for one.
func ClaimedPod(claimID string) (uid string, ok bool) { return strings.CutPrefix(claimID, podClaim) }
