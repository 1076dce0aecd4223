package templates

import (
	"net/netip"
	"regexp"
	"strings"

	"s0.run/api/internal/openapi"
)

// maxNetworkRules bounds each list of a network policy.
const maxNetworkRules = 256

var domainPattern = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// checkNetwork checks what can be checked without a claim. A policy is stored,
// and nothing is made from its template while no node enforces it.
func checkNetwork(s *openapi.TemplateSpec) error {
	if s.Network == nil {
		return nil
	}
	if len(s.Network.CredentialBindings) > 0 {
		return errNoCredentials
	}
	e := s.Network.Egress
	if e == nil {
		return nil
	}
	allowed := len(e.AllowedCidrs) + len(e.AllowedDomains) + len(e.AllowedPorts)
	denied := len(e.DeniedCidrs) + len(e.DeniedDomains) + len(e.DeniedPorts)
	switch {
	case allowed > 0 && s.Network.Mode != "block-all":
		return invalid("spec.network.egress: allowed lists go with mode block-all alone")
	case denied > 0 && s.Network.Mode != "allow-all":
		return invalid("spec.network.egress: denied lists go with mode allow-all alone")
	case allowed+denied > 0 && len(e.TrafficRules) > 0:
		return invalid("spec.network.egress: trafficRules do not go together with allowed or denied lists")
	case max(allowed, denied, len(e.TrafficRules), len(e.ProtocolRules), len(e.CredentialRules)) > maxNetworkRules:
		return invalid("spec.network.egress: at most %d rules of a kind", maxNetworkRules)
	case len(e.CredentialRules) > 0:
		return errNoCredentials
	}
	for _, l := range []struct {
		name           string
		cidrs, domains []string
		ports          []openapi.PortSpec
	}{
		{"allowed lists", e.AllowedCidrs, e.AllowedDomains, e.AllowedPorts},
		{"denied lists", e.DeniedCidrs, e.DeniedDomains, e.DeniedPorts},
	} {
		if err := checkMatchers(l.name, l.cidrs, l.domains, l.ports); err != nil {
			return err
		}
	}
	return checkTrafficRules(e.TrafficRules)
}

var errNoCredentials = invalid("spec.network: credentials are not supported by this server")

func checkTrafficRules(rules []openapi.TrafficRule) error {
	for _, r := range rules {
		if len(r.Cidrs)+len(r.Domains)+len(r.Ports)+len(r.AppProtocols) == 0 {
			return invalid("spec.network.egress.trafficRules: a rule needs at least one of cidrs, domains, ports and appProtocols")
		}
		if err := checkMatchers("trafficRules", r.Cidrs, r.Domains, r.Ports); err != nil {
			return err
		}
	}
	return nil
}

func checkMatchers(where string, cidrs, domains []string, ports []openapi.PortSpec) error {
	for _, c := range cidrs {
		if _, err := netip.ParsePrefix(c); err != nil {
			return invalid("spec.network.egress: %s: %.64q is not a CIDR", where, c)
		}
	}
	for _, d := range domains {
		if len(d) > 253 || !domainPattern.MatchString(strings.ToLower(d)) {
			return invalid("spec.network.egress: %s: %.64q is not a domain", where, d)
		}
	}
	for _, p := range ports {
		if end := value(p.EndPort); end != 0 && end < p.Port {
			return invalid("spec.network.egress: %s: ports %d to %d", where, p.Port, end)
		}
	}
	return nil
}
