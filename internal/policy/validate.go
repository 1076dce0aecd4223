package policy

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MaxBindings bounds the credentials of one sandbox.
const MaxBindings = 32

const (
	maxRules   = 256  // of a list
	maxValues  = 256  // of one rule's list
	maxCIDRs   = 1000 // of all lists together, like the next two
	maxDomains = 1000
	maxPorts   = 256
	maxName    = 128
	maxText    = 1024
	maxHeaders = 32
)

// refPattern is what sources, refs and rules may be called.
var refPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$`)

// ValidRef says whether a text may name a credential source or a binding.
func ValidRef(s string) bool { return refPattern.MatchString(s) }

// Validate says what is wrong with a policy, where, in words that are the
// tenant's to see: all they quote is his own.
func (p *Policy) Validate() error {
	err := p.validate()
	if err != nil {
		return err
	}
	if data, err := p.JSON(); err != nil || len(data) > maxBytes {
		return fmt.Errorf("the network policy is larger than %d KiB", maxBytes>>10)
	}
	c, err := Compile(p, Fixed{})
	if err != nil {
		return err
	}
	return c.validateTunnels()
}

func (p *Policy) validate() error {
	if err := oneOf("mode", p.Mode, AllowAll, BlockAll); err != nil {
		return err
	}
	if err := oneOf("enforcement", p.Enforcement, "", Enforce, AuditOnly); err != nil {
		return err
	}
	if len(p.CredentialBindings) > MaxBindings {
		return fmt.Errorf("credentialBindings: at most %d", MaxBindings)
	}
	if err := each("credentialBindings", p.CredentialBindings, func(b Binding) string { return b.Ref }, (*Binding).validate); err != nil {
		return err
	}
	e := p.egress()
	if err := e.validateLists(p.Mode); err != nil {
		return err
	}
	if err := each("egress.trafficRules", e.TrafficRules, func(r TrafficRule) string { return r.Name }, (*TrafficRule).validate); err != nil {
		return err
	}
	if err := each("egress.protocolRules", e.ProtocolRules, func(r ProtocolRule) string { return r.Name }, (*ProtocolRule).validate); err != nil {
		return err
	}
	if err := e.validateSize(); err != nil {
		return err
	}
	err := each("egress.credentialRules", e.CredentialRules, func(r CredentialRule) string { return r.Name }, func(r *CredentialRule) error { return r.validate(p) })
	if err != nil {
		return err
	}
	return at("egress.proxy", p.validateProxy())
}

// validateTunnels refuses that a connection has to present a client certificate, and
// has to be looked into by another rule as well: what is inside passes as it is.
func (c *Compiled) validateTunnels() error {
	for _, cert := range c.credentials {
		if cert.Protocol != TLS {
			continue
		}
		for _, r := range c.protocols {
			if r.TLSMode != Passthrough && meet(cert.domains, r.domains) && meetPorts(cert.ports, r.ports) {
				return fmt.Errorf("egress: what carries the client certificate of %s can't be looked into, which %s asks for", cert.label, r.label)
			}
		}
	}
	return nil
}

// meet says whether some name is in both of two lists of domains; an empty one has all.
func meet(a, b []pattern) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(p pattern) bool {
		return slices.ContainsFunc(b, func(q pattern) bool { return p.matches(q.name) || q.matches(p.name) })
	})
}

func meetPorts(a, b []portRange) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(p portRange) bool {
		return slices.ContainsFunc(b, func(q portRange) bool { return p.proto == q.proto && p.lo <= q.hi && q.lo <= p.hi })
	})
}

// at puts where before what.
func at(where string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", where, err)
}

func oneOf(where, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	said := strings.Join(slices.DeleteFunc(slices.Clone(allowed), func(s string) bool { return s == "" }), ", ")
	return fmt.Errorf("%s must be one of %s", where, said)
}

// each validates a list's members, and that those with a name have their own.
func each[T any](where string, list []T, name func(T) string, validate func(*T) error) error {
	if len(list) > maxRules {
		return fmt.Errorf("%s: at most %d", where, maxRules)
	}
	seen := map[string]bool{}
	for i := range list {
		here := fmt.Sprintf("%s[%d]", where, i)
		n := name(list[i])
		switch {
		case len(n) > maxName || strings.ContainsFunc(n, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return fmt.Errorf("%s.name: at most %d characters, all printable", here, maxName)
		case n != "" && seen[n]:
			return fmt.Errorf("%s: another of the list is called %q", here, n)
		}
		seen[n] = true
		if err := at(here, validate(&list[i])); err != nil {
			return err
		}
	}
	return nil
}

func (e *Egress) validateLists(mode string) error {
	allowed := len(e.AllowedCIDRs) + len(e.AllowedDomains) + len(e.AllowedPorts)
	denied := len(e.DeniedCIDRs) + len(e.DeniedDomains) + len(e.DeniedPorts)
	switch {
	case allowed > 0 && mode != BlockAll:
		return errors.New("egress: allowed lists go with mode block-all alone")
	case denied > 0 && mode != AllowAll:
		return errors.New("egress: denied lists go with mode allow-all alone")
	case allowed+denied > 0 && len(e.TrafficRules) > 0:
		return errors.New("egress: trafficRules do not go together with allowed or denied lists")
	}
	for _, err := range []error{
		validCIDRs("egress.allowedCidrs", e.AllowedCIDRs), validCIDRs("egress.deniedCidrs", e.DeniedCIDRs),
		validDomains("egress.allowedDomains", e.AllowedDomains), validDomains("egress.deniedDomains", e.DeniedDomains),
		validPorts("egress.allowedPorts", e.AllowedPorts), validPorts("egress.deniedPorts", e.DeniedPorts),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// validateSize bounds what compiling costs, whatever the rules are.
func (e *Egress) validateSize() error {
	cidrs, domains, ports := len(e.AllowedCIDRs)+len(e.DeniedCIDRs), len(e.AllowedDomains)+len(e.DeniedDomains), len(e.AllowedPorts)+len(e.DeniedPorts)
	for _, r := range e.TrafficRules {
		cidrs, domains, ports = cidrs+len(r.CIDRs), domains+len(r.Domains), ports+len(r.Ports)
	}
	for _, r := range e.ProtocolRules {
		domains, ports = domains+len(r.Domains), ports+len(r.Ports)
	}
	for _, r := range e.CredentialRules {
		domains, ports = domains+len(r.Domains), ports+len(r.Ports)
	}
	if cidrs > maxCIDRs || domains > maxDomains || ports > maxPorts {
		return fmt.Errorf("egress: at most %d CIDRs, %d domains and %d ranges of ports in all", maxCIDRs, maxDomains, maxPorts)
	}
	return nil
}

func validList[T any](where string, list []T, wrong func(T) string) error {
	if len(list) > maxValues {
		return fmt.Errorf("%s: at most %d", where, maxValues)
	}
	for i, v := range list {
		if text := wrong(v); text != "" {
			return fmt.Errorf("%s[%d]: %s", where, i, text)
		}
	}
	return nil
}

func validCIDRs(where string, list []string) error {
	return validList(where, list, func(s string) string {
		if _, err := cidr(s); err != nil {
			return fmt.Sprintf("%.64q is not a CIDR", s)
		}
		return ""
	})
}

func validDomains(where string, list []string) error {
	return validList(where, list, func(s string) string {
		if _, err := parsePattern(s); err != nil {
			return fmt.Sprintf("%.64q is not a domain: a name, or *. and a name, in ASCII", s)
		}
		return ""
	})
}

func validPorts(where string, list []Port) error {
	return validList(where, list, func(p Port) string {
		switch {
		case p.Port < 1 || p.Port > 65535:
			return "port must be from 1 to 65535"
		case p.EndPort != 0 && (p.EndPort < p.Port || p.EndPort > 65535):
			return "endPort must be from port to 65535"
		case p.Protocol != "" && p.Protocol != TCP && p.Protocol != UDP:
			return "protocol must be one of tcp, udp"
		}
		return ""
	})
}

func validTexts(where string, list []string) error {
	return validList(where, list, func(s string) string {
		if s == "" || len(s) > maxText || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Sprintf("must be from 1 to %d printable characters", maxText)
		}
		return ""
	})
}

func (r *TrafficRule) validate() error {
	if err := oneOf("action", r.Action, ActionAllow, ActionDeny); err != nil {
		return err
	}
	if len(r.CIDRs)+len(r.Domains)+len(r.Ports)+len(r.AppProtocols) == 0 {
		return errors.New("a rule needs at least one of cidrs, domains, ports and appProtocols")
	}
	for i, a := range r.AppProtocols {
		if err := oneOf(fmt.Sprintf("appProtocols[%d]", i), a, appProtocols...); err != nil {
			return err
		}
	}
	if err := validCIDRs("cidrs", r.CIDRs); err != nil {
		return err
	}
	return validScope(r.Domains, r.Ports)
}

// validScope answers the first of what is wrong.
func validScope(domains []string, ports []Port) error {
	if err := validDomains("domains", domains); err != nil {
		return err
	}
	return validPorts("ports", ports)
}

func (r *ProtocolRule) validate() error {
	if err := validScope(r.Domains, r.Ports); err != nil {
		return err
	}
	if err := oneOf("tlsMode", r.TLSMode, "", Passthrough, Terminate); err != nil {
		return err
	}
	if err := at("httpMatch", r.HTTPMatch.validate()); err != nil {
		return err
	}
	switch {
	case r.Protocol == HTTP && r.HTTP != nil && r.MCP == nil:
		return at("http", r.HTTP.validate())
	case r.Protocol == MCP && r.MCP != nil && r.HTTP == nil:
		return at("mcp.tools", r.MCP.Tools.validate())
	case r.Protocol == HTTP || r.Protocol == MCP:
		return fmt.Errorf("a rule of protocol %s needs %s, and that alone", r.Protocol, r.Protocol)
	}
	return oneOf("protocol", r.Protocol, HTTP, MCP)
}

func (r *HTTPRule) validate() error {
	if err := at("methods", r.Methods.validate()); err != nil {
		return err
	}
	if r.Methods != nil {
		if err := validMethods("methods.allowed", r.Methods.Allowed); err != nil {
			return err
		}
		if err := validMethods("methods.denied", r.Methods.Denied); err != nil {
			return err
		}
	}
	p := r.Paths
	if p == nil {
		return nil
	}
	for where, list := range map[string][]string{"allowed": p.Allowed, "denied": p.Denied, "allowedPrefixes": p.AllowedPrefixes, "deniedPrefixes": p.DeniedPrefixes} {
		if err := validPaths("paths."+where, list); err != nil {
			return err
		}
	}
	return nil
}

func (a *AllowDeny) validate() error {
	if a == nil {
		return nil
	}
	if err := validTexts("allowed", a.Allowed); err != nil {
		return err
	}
	return validTexts("denied", a.Denied)
}

var methodPattern = regexp.MustCompile(`^[A-Z][A-Z0-9_-]{0,31}\*?$`)

func validMethods(where string, list []string) error {
	return validList(where, list, func(s string) string {
		if s != "*" && !methodPattern.MatchString(s) {
			return "a method has upper case letters"
		}
		return ""
	})
}

// validPaths wants paths as a request's are looked at: unescaped and plain.
func validPaths(where string, list []string) error {
	return validList(where, list, func(s string) string {
		if _, err := cleanPath(strings.ReplaceAll(s, "%", "%25")); err != nil || len(s) > maxText {
			return "a path begins with / and has neither escapes, dot segments nor empty ones"
		}
		return ""
	})
}

func (m *HTTPMatch) validate() error {
	if m == nil {
		return nil
	}
	if err := validMethods("methods", m.Methods); err != nil {
		return err
	}
	if err := validPaths("paths", m.Paths); err != nil {
		return err
	}
	if err := validPaths("pathPrefixes", m.PathPrefixes); err != nil {
		return err
	}
	for where, list := range map[string][]ValueMatch{"query": m.Query, "headers": m.Headers} {
		for i, v := range list {
			here := fmt.Sprintf("%s[%d]", where, i)
			if err := validTexts(here+".name", []string{v.Name}); err != nil {
				return err
			}
			if err := validTexts(here+".values", v.Values); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Policy) validateProxy() error {
	proxy := p.egress().Proxy
	if proxy == nil {
		return nil
	}
	if err := oneOf("type", proxy.Type, SOCKS5); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(proxy.Address)
	if n, e := strconv.Atoi(port); err != nil || e != nil || n < 1 || n > 65535 {
		return errors.New("address must be host:port")
	}
	if net.ParseIP(host) == nil {
		if _, err := Name(host); err != nil {
			return errors.New("address must have a host name or an address")
		}
	}
	if proxy.CredentialRef == "" {
		return nil
	}
	b, ok := p.Binding(proxy.CredentialRef)
	if !ok {
		return errors.New("credentialRef must name one of credentialBindings")
	}
	if b.Projection.Type != UsernamePassword {
		return errors.New("credentialRef must name a binding of projection username_password")
	}
	return nil
}

func validTTL(s string) error {
	if s == "" {
		return nil
	}
	if d, err := time.ParseDuration(s); err != nil || d <= 0 || d > maxTTL {
		return errors.New("cachePolicy.ttl must be a duration of up to 24h, such as 5m")
	}
	return nil
}
