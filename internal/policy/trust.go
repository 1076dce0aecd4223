package policy

import "slices"

// Intercepts says whether there is TLS that has to be terminated: the sandbox has to
// believe who answers it then.
func (p *Policy) Intercepts() bool {
	e := p.egress()
	return slices.ContainsFunc(e.ProtocolRules, func(r ProtocolRule) bool { return r.TLSMode != Passthrough }) ||
		slices.ContainsFunc(e.CredentialRules, func(r CredentialRule) bool {
			return r.Rollout != Disabled && (&credentialRule{CredentialRule: r}).terminates()
		})
}

// Server is where connections go: names as rules have them, `*.` before one stands for
// all below it and itself; no names are all, no ports are all.
type Server struct {
	Domains []string
	Ports   []Port
}

// AnswersSSH lists where somebody else answers SSH than whom the sandbox asks for: it has
// to believe that one there, too.
func (p *Policy) AnswersSSH() (servers []Server) {
	for _, r := range p.egress().CredentialRules {
		if r.Rollout != Disabled && r.Protocol == SSH {
			servers = append(servers, Server{Domains: r.Domains, Ports: r.Ports})
		}
	}
	return servers
}
