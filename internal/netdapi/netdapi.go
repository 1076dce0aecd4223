// Package netdapi is what noded says to netd, over a unix socket: HTTP with JSON
// bodies that are decoded strictly and bounded on both sides.
//
// noded owns what it tells: a sandbox's place in the network ([Slot]), its policy
// ([Policy]), its end. Every call is a statement about the desired state and may be
// repeated; an older generation than the known one is refused. The package holds the
// words, the client and the frame of the server ([Handler]); what the words do is
// netd's, when they are said is noded's. No secret but a credential's value on its
// way to netd's memory ever belongs in here, and those have calls of their own.
package netdapi

import (
	"encoding/json"
	"net"
	"net/netip"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

// Slot is where a sandbox is in the network.
type Slot struct {
	ID         sandbox.ID         `json:"id"`
	Generation sandbox.Generation `json:"generation"`
	Ifindex    int                `json:"ifindex"` // of the veth's end in the data plane
	IPv4       netip.Addr         `json:"ipv4"`
	IPv6       netip.Addr         `json:"ipv6"`
	MAC        string             `json:"mac"` // that its frames come from
}

// Validate refuses what no slot is.
func (s Slot) Validate() error {
	mac, err := net.ParseMAC(s.MAC)
	switch {
	case err != nil || len(mac) != 6:
		return errdefs.New(errdefs.InvalidArgument, "slot: MAC %.32q", s.MAC)
	case s.Ifindex <= 0:
		return errdefs.New(errdefs.InvalidArgument, "slot: ifindex %d", s.Ifindex)
	case !s.IPv4.Is4() || !s.IPv6.Is6() || s.IPv6.Is4In6():
		return errdefs.New(errdefs.InvalidArgument, "slot: addresses %v and %v: want one of each family", s.IPv4, s.IPv6)
	}
	return validIdentity(s.ID, s.Generation)
}

func validIdentity(id sandbox.ID, gen sandbox.Generation) error {
	if _, err := sandbox.ParseID(string(id)); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "sandbox id: %v", err)
	}
	if gen == 0 {
		return errdefs.New(errdefs.InvalidArgument, "sandbox %s: no generation", id)
	}
	return nil
}

// Policy is what a sandbox may reach. Until a sandbox has one it reaches nothing.
type Policy struct {
	ID         sandbox.ID         `json:"id"`
	Generation sandbox.Generation `json:"generation"`
	Team       string             `json:"team"`
	Policy     json.RawMessage    `json:"policy,omitempty"` // of package policy; its default when it is empty
	// Credentials are the sources that the policy's bindings name, for netd to open.
	Credentials []sealed.Credential `json:"credentials,omitempty"`
	// SandboxBandwidth is the sandbox's own. A team's is shared by its sandboxes on the
	// node, and the one told last counts.
	SandboxBandwidth Bandwidth `json:"sandbox_bandwidth,omitzero"`
	TeamBandwidth    Bandwidth `json:"team_bandwidth,omitzero"`
}

// Bandwidth is what may pass in each direction. The zero one is no limit.
type Bandwidth struct {
	Egress  Rate `json:"egress,omitzero"`
	Ingress Rate `json:"ingress,omitzero"`
}

// Rate is so many bytes a second, and how many at once when none have passed for a
// while.
type Rate struct {
	Bytes uint64 `json:"bytes,omitempty"` // 0: no limit
	Burst uint64 `json:"burst,omitempty"` // 0: what suits the rate
}

// maxTeam bounds a team's id, which others chose.
const maxTeam = 256

// Validate refuses what no policy is; the policy's own JSON is package policy's.
func (p Policy) Validate() error {
	if len(p.Team) > maxTeam {
		return errdefs.New(errdefs.InvalidArgument, "policy of %.64s: a team of more than %d bytes", p.ID, maxTeam)
	}
	return validIdentity(p.ID, p.Generation)
}

// Known is what netd knows of a sandbox.
type Known struct {
	Slot
	Team   string `json:"team,omitempty"`
	Digest string `json:"digest,omitempty"` // of the policy in force, see [Policy.Digest]; empty: none is
}

// Counters are what the data plane counted for a sandbox since it was attached.
// Sent and received are the sandbox's views.
type Counters struct {
	SentPackets     uint64 `json:"sent_packets"`
	SentBytes       uint64 `json:"sent_bytes"`
	ReceivedPackets uint64 `json:"received_packets"`
	ReceivedBytes   uint64 `json:"received_bytes"`
	Denied          uint64 `json:"denied"`    // packets, by policy or because they are denied always
	Malformed       uint64 `json:"malformed"` // packets that were spoofed or not understood
	Throttled       uint64 `json:"throttled"` // packets beyond the bandwidth, either way
	Flows           uint64 `json:"flows"`     // that were let begin, queries for names apart
}

// Event is one record of the audit: a flow, in the contract's words, or with More
// those of a while that were too many.
type Event struct {
	Timestamp          time.Time  `json:"timestamp"`
	FlowID             string     `json:"flow_id"`
	SandboxID          string     `json:"sandbox_id"`
	Generation         uint64     `json:"generation"`
	TeamID             string     `json:"team_id"`
	SrcIP              netip.Addr `json:"src_ip"`
	DestIP             netip.Addr `json:"dest_ip"`
	DestPort           uint16     `json:"dest_port"`
	Transport          string     `json:"transport"`
	Protocol           string     `json:"protocol"`
	Host               string     `json:"host,omitempty"`
	ClassifierResult   string     `json:"classifier_result,omitempty"`
	Action             string     `json:"action"` // allow, deny, or would-deny of a policy that is not enforced
	Reason             string     `json:"reason,omitempty"`
	Outcome            string     `json:"outcome"` // completed, denied, error
	DurationMS         int64      `json:"duration_ms"`
	EgressBytes        int64      `json:"egress_bytes"`
	IngressBytes       int64      `json:"ingress_bytes"`
	Adapter            string     `json:"adapter,omitempty"` // kernel, splice, terminate, dns
	AuthRuleName       string     `json:"auth_rule_name,omitempty"`
	AuthRef            string     `json:"auth_ref,omitempty"`
	AuthFailurePolicy  string     `json:"auth_failure_policy,omitempty"`
	AuthBypassed       bool       `json:"auth_bypassed"`
	AuthResolved       bool       `json:"auth_resolved"`
	AuthCacheHit       bool       `json:"auth_cache_hit"`
	AuthResolveError   string     `json:"auth_resolve_error,omitempty"`
	ProtocolOperations []string   `json:"protocol_operations,omitempty"` // of HTTP the methods with their statuses
	Error              string     `json:"error,omitempty"`
	More               *More      `json:"more,omitempty"`
}

// More counts flows that were not told one by one. The record that has it holds their
// bytes, too.
type More struct {
	Flows     uint64 `json:"flows"`
	Denied    uint64 `json:"denied"`
	WouldDeny uint64 `json:"would_deny"`
}

// Mark is a place in the row of events of one netd. The zero one is the beginning.
type Mark struct {
	Run     string `json:"run"` // whose row; of another's netd knows nothing
	Through uint64 `json:"through"`
}

// Events are records that came together, oldest first.
type Events struct {
	Mark   Mark    `json:"mark"` // behind the last one
	Events []Event `json:"events"`
}

// MaxEvents is how many come together at most.
const MaxEvents = 100

// Info is who answers.
type Info struct {
	Version string `json:"version"`
	Run     string `json:"run"` // of this process; another one may have forgotten policies
}

// CA is the certificate with which a sandbox's intercepted connections are signed, and the
// public key with which it is answered over SSH, as a line of authorized_keys.
type CA struct {
	PEM     string `json:"pem"`
	SSHHost string `json:"ssh_host"`
}

type detachRequest struct {
	ID         sandbox.ID         `json:"id"`
	Generation sandbox.Generation `json:"generation"` // 0: any
}
