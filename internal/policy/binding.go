package policy

import (
	"time"
)

// The kinds of projection: how a credential appears in what leaves.
const (
	HTTPHeaders      = "http_headers"
	Placeholder      = "placeholder_substitution"
	TLSClientCert    = "tls_client_certificate"
	UsernamePassword = "username_password"
	SSHProxy         = "ssh_proxy"
)

// The kinds of source, and what a binding may make of each.
const (
	StaticHeaders  = "static_headers"
	StaticTLS      = "static_tls_client_certificate"
	StaticUserPass = "static_username_password"
	StaticSSH      = "static_ssh_private_key"
)

// Binding lets a sandbox's rules use a team's credential source under a name of
// their own.
type Binding struct {
	Ref         string       `json:"ref"`
	SourceRef   string       `json:"sourceRef"`
	Projection  Projection   `json:"projection"`
	CachePolicy *CachePolicy `json:"cachePolicy,omitempty"`
}

// CachePolicy bounds how long netd keeps a source's opened value.
type CachePolicy struct {
	TTL string `json:"ttl,omitempty"`
}

// Projection is how a credential appears; the field of its type is set.
type Projection struct {
	Type                 string           `json:"type"`
	HTTPHeaders          *HeadersProj     `json:"httpHeaders,omitempty"`
	PlaceholderSubst     *PlaceholderProj `json:"placeholderSubstitution,omitempty"`
	TLSClientCertificate *struct{}        `json:"tlsClientCertificate,omitempty"`
	UsernamePassword     *struct{}        `json:"usernamePassword,omitempty"`
	SSHProxy             *SSHProxyProj    `json:"sshProxy,omitempty"`
}

// HeadersProj sets headers, in place of whatever the sandbox sent under their names.
type HeadersProj struct {
	Headers []ProjectedHeader `json:"headers,omitempty"`
}

// ProjectedHeader is a header whose value a template makes of the source's values.
type ProjectedHeader struct {
	Name          string `json:"name"`
	ValueTemplate string `json:"valueTemplate"`
}

// PlaceholderProj replaces what the sandbox sends in a secret's place.
type PlaceholderProj struct {
	Replacements []Replacement `json:"replacements,omitempty"`
}

// Replacement is one placeholder; Locations are header, query and body.
type Replacement struct {
	Placeholder   string   `json:"placeholder"`
	ValueTemplate string   `json:"valueTemplate"`
	Locations     []string `json:"locations"`
}

// SSHProxyProj has netd be the SSH server for the sandbox and the client upstream.
type SSHProxyProj struct {
	SandboxPublicKeys []string `json:"sandboxPublicKeys,omitempty"`
	UpstreamUsername  string   `json:"upstreamUsername,omitempty"`
	KnownHosts        []string `json:"knownHosts,omitempty"`
}

// How long netd keeps a source's opened value when its binding doesn't say, and at most.
const (
	DefaultTTL = 5 * time.Minute
	maxTTL     = 24 * time.Hour
)

// TTL is how long the binding's value may be kept.
func (b *Binding) TTL() time.Duration {
	if b.CachePolicy == nil {
		return DefaultTTL
	}
	if d, err := time.ParseDuration(b.CachePolicy.TTL); err == nil && d > 0 {
		return min(d, maxTTL)
	}
	return DefaultTTL
}
