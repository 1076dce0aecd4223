package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Request is one HTTP request as the proxy parsed it. Path is as it was sent,
// escapes and all; Query and Headers are net/url's and net/http's maps.
type Request struct {
	Name    string // canonical, of the URL that is asked for; empty: an address
	Addr    netip.Addr
	Port    uint16
	TLS     bool
	GRPC    bool
	Method  string
	Path    string
	Query   map[string][]string
	Headers map[string][]string
}

type protocolRule struct {
	ProtocolRule
	label   string
	domains []pattern
	ports   []portRange
}

// Credential is what a request or a connection has to carry.
type Credential struct {
	Rule    string
	Binding Binding
}

type credentialRule struct {
	CredentialRule
	label   string
	domains []pattern
	ports   []portRange
	binding Binding
}

func (c *Compiled) compileL7() error {
	e := c.policy.egress()
	for i, r := range e.ProtocolRules {
		domains, err := patterns(r.Domains)
		if err != nil {
			return err
		}
		c.protocols = append(c.protocols, protocolRule{ProtocolRule: r, label: label(r.Name, "protocolRules", i), domains: domains, ports: ranges(r.Ports)})
	}
	for i, r := range e.CredentialRules {
		if r.Rollout == Disabled {
			continue
		}
		domains, err := patterns(r.Domains)
		if err != nil {
			return err
		}
		b, ok := c.policy.Binding(r.CredentialRef)
		if !ok {
			return fmt.Errorf("no binding %q", r.CredentialRef)
		}
		c.credentials = append(c.credentials, credentialRule{CredentialRule: r, label: label(r.Name, "credentialRules", i), domains: domains, ports: ranges(r.Ports), binding: b})
	}
	return nil
}

func label(name, list string, i int) string {
	if name != "" {
		return name
	}
	return fmt.Sprintf("%s[%d]", list, i)
}

// about says whether a rule's scope has a destination in it: its domains, or with
// none every one.
func about(domains []pattern, ports []portRange, name string, port uint16) bool {
	return onPort(ports, ProtoTCP, port) && (len(domains) == 0 || named(domains, name))
}

// NeedsInterception says whether TLS to a name has to be terminated: a protocol
// rule or a credential is to look inside or to change what is there.
func (c *Compiled) NeedsInterception(name string, port uint16) bool {
	return c.Inspects(name, port) || c.ConnectionCredential(name, port, TLS) != nil
}

// Inspects says whether something other than a client certificate has TLS to a name
// terminated: requests have to be seen.
func (c *Compiled) Inspects(name string, port uint16) bool {
	return slices.ContainsFunc(c.protocols, func(r protocolRule) bool {
		return r.TLSMode != Passthrough && about(r.domains, r.ports, name, port)
	}) || slices.ContainsFunc(c.credentials, func(r credentialRule) bool {
		return r.Protocol != TLS && r.terminates() && about(r.domains, r.ports, name, port)
	})
}

// InterceptsPort says whether TLS to some name on a port has to be terminated: who
// gives no name could mean that one.
func (c *Compiled) InterceptsPort(port uint16) bool {
	return slices.ContainsFunc(c.protocols, func(r protocolRule) bool {
		return r.TLSMode != Passthrough && onPort(r.ports, ProtoTCP, port)
	}) || slices.ContainsFunc(c.credentials, func(r credentialRule) bool {
		return r.terminates() && onPort(r.ports, ProtoTCP, port)
	})
}

// Unseen judges a TCP connection whose first bytes are no protocol's that is known,
// and which may yet become any: what a rule denies to one protocol, and what may not
// leave without a login of its own, it may not be. [Compiled.Judge] has allowed it.
func (c *Compiled) Unseen(f Flow) Verdict {
	within := netip.Prefix{}
	if f.Addr.IsValid() {
		within = host(f.Addr)
	}
	for i := range c.rules {
		r := &c.rules[i]
		if !onPort(r.ports, ProtoTCP, f.Port) || !r.reaches(f.Name, within) {
			continue
		}
		if !r.allow && r.mayBeApp(ProtoTCP) {
			return c.deny(r.label, "it may be of a protocol that is denied, and nothing is said that is understood")
		}
		if len(r.apps) == 0 {
			break // it decides about all that has not been decided
		}
	}
	for i := range c.credentials {
		if r := &c.credentials[i]; !httpFamily(r.Protocol) && about(r.domains, r.ports, f.Name, f.Port) {
			return c.deny(r.label, "a credential has to go with it, and nothing is said that is understood")
		}
	}
	return Verdict{Allow: true}
}

// NeedsHTTP says whether plain HTTP to a name has to be parsed and not only passed.
func (c *Compiled) NeedsHTTP(name string, port uint16) bool {
	return slices.ContainsFunc(c.protocols, func(r protocolRule) bool { return about(r.domains, r.ports, name, port) }) ||
		slices.ContainsFunc(c.credentials, func(r credentialRule) bool {
			return httpFamily(r.Protocol) && about(r.domains, r.ports, name, port)
		})
}

// HTTP judges one request by the protocol rules for it. Its connection was judged
// before; MCP rules have a judge of their own.
func (c *Compiled) HTTP(r Request) Verdict {
	path, pathErr := cleanPath(r.Path)
	for i := range c.protocols {
		rule := &c.protocols[i]
		if rule.Protocol != HTTP || !about(rule.domains, rule.ports, r.Name, r.Port) || rule.HTTP == nil {
			continue
		}
		if pathErr != nil && (rule.HTTP.Paths != nil || rule.HTTPMatch.onPaths()) {
			return c.deny(rule.label, "the path can be read in more than one way")
		}
		if !rule.HTTPMatch.matches(r, path) {
			continue
		}
		switch {
		case !rule.HTTP.Methods.passes(r.Method):
			return c.deny(rule.label, "the method is not allowed")
		case !rule.HTTP.Paths.passes(path):
			return c.deny(rule.label, "the path is not allowed")
		}
	}
	return Verdict{Allow: true}
}

// Tools are the MCP rules for one request, nil where none is about it.
func (c *Compiled) Tools(r Request) *Tools {
	path, pathErr := cleanPath(r.Path)
	t := &Tools{compiled: c}
	for i := range c.protocols {
		rule := &c.protocols[i]
		if rule.Protocol != MCP || !about(rule.domains, rule.ports, r.Name, r.Port) {
			continue
		}
		if pathErr != nil && rule.HTTPMatch.onPaths() || rule.HTTPMatch.matches(r, path) {
			t.rules = append(t.rules, rule)
		}
	}
	if len(t.rules) == 0 {
		return nil
	}
	return t
}

// Tools judges calls of tools in one request.
type Tools struct {
	compiled *Compiled
	rules    []*protocolRule
}

// Tool judges a call by the tool's name.
func (t *Tools) Tool(name string) Verdict {
	for _, r := range t.rules {
		if r.MCP != nil && !r.MCP.Tools.passes(name) {
			return t.compiled.deny(r.label, "the tool is not allowed")
		}
	}
	return Verdict{Allow: true}
}

// Unreadable judges a request that has MCP rules and is no MCP that is understood.
func (t *Tools) Unreadable() Verdict {
	return t.compiled.deny(t.rules[0].label, "the request is not MCP that is understood")
}

// Credential finds the credential that a request has to carry, the first rule's
// that is about it; nil: none. Where a path could be read in more than one way, a
// rule by paths is taken to be about it, and ambiguous says that it must not pass.
func (c *Compiled) Credential(r Request) (found *Credential, ambiguous bool) {
	path, pathErr := cleanPath(r.Path)
	for i := range c.credentials {
		rule := &c.credentials[i]
		if !about(rule.domains, rule.ports, r.Name, r.Port) || !rule.forHTTP(r) {
			continue
		}
		unclear := pathErr != nil && rule.HTTPMatch.onPaths()
		if unclear || rule.HTTPMatch.matches(r, path) {
			return &Credential{Rule: rule.label, Binding: rule.binding}, unclear
		}
	}
	return nil, false
}

func (r *credentialRule) forHTTP(req Request) bool {
	switch r.Protocol {
	case HTTP:
		return !req.TLS
	case "", "https":
		return req.TLS || r.Protocol == ""
	case "grpc":
		return req.GRPC
	}
	return false
}

// ConnectionCredential finds the credential that a connection of a protocol which
// is not HTTP has to carry ([TLS], [SSH], [SOCKS5], [MQTT], [Redis]); nil: none.
func (c *Compiled) ConnectionCredential(name string, port uint16, protocol string) *Credential {
	for i := range c.credentials {
		if r := &c.credentials[i]; r.Protocol == protocol && about(r.domains, r.ports, name, port) {
			return &Credential{Rule: r.label, Binding: r.binding}
		}
	}
	return nil
}

// terminates says that a rule's credential goes into TLS, which therefore ends at
// the proxy.
func (r *credentialRule) terminates() bool {
	return r.TLSMode != Passthrough && slices.Contains([]string{"", "https", "grpc", TLS}, r.Protocol)
}

func httpFamily(protocol string) bool {
	return slices.Contains([]string{"", HTTP, "https", "grpc"}, protocol)
}

// passes says whether an [AllowDeny] lets a value pass; one that ends in * stands
// for all that begin so.
func (a *AllowDeny) passes(value string) bool {
	if a == nil {
		return true
	}
	is := func(p string) bool {
		start, wild := strings.CutSuffix(p, "*")
		return p == value || wild && strings.HasPrefix(value, start)
	}
	return !slices.ContainsFunc(a.Denied, is) && (len(a.Allowed) == 0 || slices.ContainsFunc(a.Allowed, is))
}

func (p *PathAllowDeny) passes(path string) bool {
	if p == nil {
		return true
	}
	below := func(prefix string) bool { return pathBelow(path, prefix) }
	if slices.Contains(p.Denied, path) || slices.ContainsFunc(p.DeniedPrefixes, below) {
		return false
	}
	return len(p.Allowed)+len(p.AllowedPrefixes) == 0 || slices.Contains(p.Allowed, path) || slices.ContainsFunc(p.AllowedPrefixes, below)
}

// pathBelow says whether a path is a prefix's or lies below it: /a has /a and /a/b
// below it, not /ab.
func pathBelow(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || strings.HasSuffix(prefix, "/") || rest[0] == '/')
}

func (m *HTTPMatch) onPaths() bool { return m != nil && len(m.Paths)+len(m.PathPrefixes) > 0 }

func (m *HTTPMatch) matches(r Request, path string) bool {
	if m == nil {
		return true
	}
	if len(m.Methods) > 0 && !slices.Contains(m.Methods, r.Method) {
		return false
	}
	if m.onPaths() && !slices.Contains(m.Paths, path) &&
		!slices.ContainsFunc(m.PathPrefixes, func(prefix string) bool { return pathBelow(path, prefix) }) {
		return false
	}
	return all(m.Query, r.Query, func(a, b string) bool { return a == b }) && all(m.Headers, r.Headers, strings.EqualFold)
}

func all(matches []ValueMatch, got map[string][]string, same func(a, b string) bool) bool {
	return !slices.ContainsFunc(matches, func(m ValueMatch) bool {
		var values []string
		for name, v := range got {
			if same(name, m.Name) {
				values = append(values, v...)
			}
		}
		return !m.matches(values)
	})
}

func (m *ValueMatch) matches(values []string) bool {
	if m.Present != nil && *m.Present != (len(values) > 0) {
		return false
	}
	if len(m.Values) == 0 {
		return m.Present != nil || len(values) > 0
	}
	return slices.ContainsFunc(values, func(v string) bool { return slices.Contains(m.Values, v) })
}

var errPath = errors.New("a path that can be read in more than one way")

// cleanPath is a path as every server reads it, or an error: dots, empty segments,
// encoded separators, backslashes and control characters are read differently.
func cleanPath(escaped string) (string, error) {
	path, err := url.PathUnescape(escaped)
	if err != nil || !strings.HasPrefix(path, "/") {
		return "", errPath
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == ';' || r == '%' }) ||
		strings.Count(path, "/") != strings.Count(escaped, "/") {
		return "", errPath
	}
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		if s == "." || s == ".." || s == "" && i < len(segments)-1 {
			return "", errPath
		}
	}
	return path, nil
}
