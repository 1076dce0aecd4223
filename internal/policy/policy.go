// Package policy is what a sandbox may reach, and with whose credentials: the
// wire's types, what makes them valid, how a claim's lie over a template's, and
// the one judge of packets, names and requests.
//
// A [Policy] is data; [Policy.Validate] says in the tenant's words what is wrong
// with it, [Compile] makes of a valid one what netd asks: which packets pass by
// address and port alone ([Compiled.L4]), and what the proxy and the resolver
// answer for names and requests. All of it is pure and bounded, deny is the answer
// to whatever is not understood, and names have one canonical form ([Name]) for
// matching, resolving and logging. The package keeps nothing, resolves nothing,
// and never sees a secret: bindings name sources, they do not hold them.
package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// What a policy's fields may say.
const (
	AllowAll = "allow-all"
	BlockAll = "block-all"

	Enforce   = "enforce"
	AuditOnly = "audit-only" // what the policy denies passes, and is told; not to what is private or always denied

	ActionAllow = "allow"
	ActionDeny  = "deny"

	TCP = "tcp"
	UDP = "udp"

	Passthrough = "passthrough"
	Terminate   = "terminate-reoriginate"

	Enabled    = "enabled"
	Disabled   = "disabled"
	FailClosed = "fail-closed"

	HTTP = "http" // a protocol rule's
	MCP  = "mcp"
)

// Policy is a sandbox's network policy as the wire has it.
type Policy struct {
	Mode string `json:"mode"`
	// Enforcement is [Enforce] when it is empty.
	Enforcement string  `json:"enforcement,omitempty"`
	Egress      *Egress `json:"egress,omitempty"`
	// CredentialBindings that are nil are kept by a change; empty ones clear.
	CredentialBindings []Binding `json:"credentialBindings,omitzero"`
}

// Egress is what may leave. The allowed lists belong to [BlockAll] and narrow each
// other: a packet passes when its destination is in one of the first two (or both
// are empty) and its port in the third (or that is empty). The denied lists belong
// to [AllowAll], and each denies by itself.
type Egress struct {
	AllowedCIDRs    []string         `json:"allowedCidrs,omitempty"`
	AllowedDomains  []string         `json:"allowedDomains,omitempty"`
	AllowedPorts    []Port           `json:"allowedPorts,omitempty"`
	DeniedCIDRs     []string         `json:"deniedCidrs,omitempty"`
	DeniedDomains   []string         `json:"deniedDomains,omitempty"`
	DeniedPorts     []Port           `json:"deniedPorts,omitempty"`
	TrafficRules    []TrafficRule    `json:"trafficRules,omitempty"`
	ProtocolRules   []ProtocolRule   `json:"protocolRules,omitempty"`
	CredentialRules []CredentialRule `json:"credentialRules,omitempty"`
	Proxy           *Proxy           `json:"proxy,omitempty"`
}

// Port is a range of ports of a protocol; EndPort 0 is Port, no Protocol is TCP.
type Port struct {
	Port     int    `json:"port"`
	Protocol string `json:"protocol,omitempty"`
	EndPort  int    `json:"endPort,omitempty"`
}

// TrafficRule decides what it matches: a destination in CIDRs or Domains, a port,
// and an application protocol. What it leaves empty matches everything; the first
// rule that matches decides.
type TrafficRule struct {
	Name         string   `json:"name,omitempty"`
	Action       string   `json:"action"`
	CIDRs        []string `json:"cidrs,omitempty"`
	Domains      []string `json:"domains,omitempty"`
	Ports        []Port   `json:"ports,omitempty"`
	AppProtocols []string `json:"appProtocols,omitempty"`
}

// ProtocolRule restricts what was allowed: every rule whose domains, ports and
// match fit a request has to let it pass. No TLSMode is [Terminate], for a rule
// that can't see what it is about would restrict nothing.
type ProtocolRule struct {
	Name      string     `json:"name,omitempty"`
	Protocol  string     `json:"protocol"`
	Domains   []string   `json:"domains,omitempty"`
	Ports     []Port     `json:"ports,omitempty"`
	TLSMode   string     `json:"tlsMode,omitempty"`
	HTTPMatch *HTTPMatch `json:"httpMatch,omitempty"`
	HTTP      *HTTPRule  `json:"http,omitempty"`
	MCP       *MCPRule   `json:"mcp,omitempty"`
}

// HTTPRule is which methods and paths pass.
type HTTPRule struct {
	Methods *AllowDeny     `json:"methods,omitempty"`
	Paths   *PathAllowDeny `json:"paths,omitempty"`
}

// MCPRule is which tools may be called.
type MCPRule struct {
	Tools *AllowDeny `json:"tools,omitempty"`
}

// AllowDeny lets pass what is not denied and, unless nothing is allowed by name,
// is allowed.
type AllowDeny struct {
	Allowed []string `json:"allowed,omitempty"`
	Denied  []string `json:"denied,omitempty"`
}

// PathAllowDeny is an [AllowDeny] of paths, whole or by their first segments.
type PathAllowDeny struct {
	Allowed         []string `json:"allowed,omitempty"`
	Denied          []string `json:"denied,omitempty"`
	AllowedPrefixes []string `json:"allowedPrefixes,omitempty"`
	DeniedPrefixes  []string `json:"deniedPrefixes,omitempty"`
}

// HTTPMatch is which requests a rule is about; what is empty matches all.
type HTTPMatch struct {
	Methods      []string     `json:"methods,omitempty"`
	Paths        []string     `json:"paths,omitempty"`
	PathPrefixes []string     `json:"pathPrefixes,omitempty"`
	Query        []ValueMatch `json:"query,omitempty"`
	Headers      []ValueMatch `json:"headers,omitempty"`
}

// ValueMatch is which values a header or a query parameter has: one of Values, or
// with Present any or none.
type ValueMatch struct {
	Name    string   `json:"name"`
	Values  []string `json:"values,omitempty"`
	Present *bool    `json:"present,omitempty"`
}

// CredentialRule says which requests carry which credential. A request that it
// matches never leaves without.
type CredentialRule struct {
	Name          string     `json:"name,omitempty"`
	CredentialRef string     `json:"credentialRef"`
	Rollout       string     `json:"rollout,omitempty"`
	Protocol      string     `json:"protocol,omitempty"`
	TLSMode       string     `json:"tlsMode,omitempty"`
	FailurePolicy string     `json:"failurePolicy,omitempty"`
	Domains       []string   `json:"domains,omitempty"`
	Ports         []Port     `json:"ports,omitempty"`
	HTTPMatch     *HTTPMatch `json:"httpMatch,omitempty"`
}

// Proxy is the tenant's SOCKS5 proxy, through which all allowed TCP leaves; no
// UDP leaves beside it.
type Proxy struct {
	Type          string `json:"type"`
	Address       string `json:"address"`
	CredentialRef string `json:"credentialRef,omitempty"`
}

// maxBytes bounds a policy's JSON.
const maxBytes = 256 << 10

// Parse reads a policy's JSON and refuses what it does not know. It does not
// validate.
func Parse(data []byte) (*Policy, error) {
	if len(data) > maxBytes {
		return nil, fmt.Errorf("the network policy is larger than %d KiB", maxBytes>>10)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var p Policy
	if err := dec.Decode(&p); err != nil {
		return nil, fmt.Errorf("reading a network policy: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("reading a network policy: something follows it")
	}
	return &p, nil
}

// JSON is the policy's one form at rest and between processes. [Parse] reads it.
func (p *Policy) JSON() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return nil, fmt.Errorf("writing a network policy: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// Default is the policy of who asks for none.
func Default() *Policy { return &Policy{Mode: AllowAll} }

func (p *Policy) egress() *Egress {
	if p.Egress == nil {
		return &Egress{}
	}
	return p.Egress
}

// Binding finds a binding by the name that rules call it.
func (p *Policy) Binding(ref string) (Binding, bool) {
	for _, b := range p.CredentialBindings {
		if b.Ref == ref {
			return b, true
		}
	}
	return Binding{}, false
}
