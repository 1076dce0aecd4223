// Package sandbox holds the words that every part of s0 shares about a sandbox:
// its id, its generation, its states and what a slot is made from.
//
// The types are plain values; nobody's state lives here and nothing in this
// package talks to anything. It imports package warm, a leaf as well, and the
// standard library.
package sandbox

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// ID names a sandbox from the moment its slot is warmed until the last trace of
// it is swept: container, netns, veth alias, cgroup, directories, pod and log
// field carry it. It is a DNS label `<cluster>-<26 base32 digits>`: the digits
// are 128 random bits, so that an id can't be guessed (it grants nothing by
// itself either), and the cluster lets a request be routed without a lookup.
// It is at most 55 bytes, so that `<id>--p<port>` still is a DNS label.
type ID string

const (
	randomDigits  = 26
	maxClusterLen = 55 - 1 - randomDigits
)

var (
	idPattern      = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,26}[a-z0-9])?-[a-z2-7]{26}$`)
	clusterPattern = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)
	digits         = base32.StdEncoding.WithPadding(base32.NoPadding)
)

// ErrInvalidID is returned for a string that can't be a sandbox's id.
var ErrInvalidID = errors.New("invalid sandbox id")

// NewID mints an id in a cluster. The cluster must satisfy [ValidCluster].
func NewID(cluster string) (ID, error) {
	if err := ValidCluster(cluster); err != nil {
		return "", err
	}
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the process instead
	return ID(cluster + "-" + strings.ToLower(digits.EncodeToString(b[:]))), nil
}

// ParseID checks that s has the form of an id. It is the gate for every id that
// comes from outside and ends in a path, a name or a query.
func ParseID(s string) (ID, error) {
	if len(s) > 55 || !idPattern.MatchString(s) {
		return "", ErrInvalidID
	}
	return ID(s), nil
}

// Cluster is the cluster that the id was minted in.
func (id ID) Cluster() string {
	if len(id) <= randomDigits+1 {
		return ""
	}
	return string(id[:len(id)-randomDigits-1])
}

// ValidCluster checks a cluster's name: a DNS label short enough to prefix ids.
func ValidCluster(name string) error {
	if len(name) > maxClusterLen || !clusterPattern.MatchString(name) {
		return fmt.Errorf("cluster name %q: want a DNS label of at most %d characters that starts with a letter", name, maxClusterLen)
	}
	return nil
}

// Generation counts the instances of one id: 1 for the first start, one more for
// each resume or restore. A writer that holds an old generation is refused.
type Generation uint64

// State is what the API shows of a sandbox.
type State string

// The states of the contract; [Unknown] is shown when its node can't be asked.
const (
	Starting    State = "starting"
	Running     State = "running"
	Paused      State = "paused"
	Terminating State = "terminating"
	Failed      State = "failed"
	Unknown     State = "unknown"
)

// RuntimeClass chooses what isolates a sandbox from its node.
type RuntimeClass string

// The runtime classes; runc shares the host's kernel and needs the operator's consent.
const (
	GVisor RuntimeClass = "gvisor"
	Kata   RuntimeClass = "kata"
	Runc   RuntimeClass = "runc"
)
