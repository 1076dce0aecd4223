package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// credentialProtocols is, for each protocol of a rule, the projections that fit.
var credentialProtocols = map[string][]string{
	"":      {HTTPHeaders, Placeholder},
	HTTP:    {HTTPHeaders, Placeholder},
	"https": {HTTPHeaders, Placeholder},
	"grpc":  {HTTPHeaders, Placeholder},
	TLS:     {TLSClientCert},
	SSH:     {SSHProxy},
	SOCKS5:  {UsernamePassword},
	MQTT:    {UsernamePassword},
	Redis:   {UsernamePassword},
}

func (r *CredentialRule) validate(p *Policy) error {
	b, ok := p.Binding(r.CredentialRef)
	if !ok {
		return errors.New("credentialRef must name one of credentialBindings")
	}
	fits, ok := credentialProtocols[r.Protocol]
	if !ok {
		return oneOf("protocol", r.Protocol, HTTP, "https", "grpc", TLS, SSH, SOCKS5, MQTT, Redis)
	}
	if !slices.Contains(fits, b.Projection.Type) {
		return fmt.Errorf("a rule of protocol %s needs a binding of projection %s", either(r.Protocol, "http"), strings.Join(fits, " or "))
	}
	if err := oneOf("rollout", r.Rollout, "", Enabled, Disabled); err != nil {
		return err
	}
	if err := oneOf("tlsMode", r.TLSMode, "", Passthrough, Terminate); err != nil {
		return err
	}
	if r.FailurePolicy != "" && r.FailurePolicy != FailClosed {
		return errors.New("failurePolicy must be fail-closed: what a credential rule matches never leaves without it")
	}
	if err := r.validateTLS(b.Projection.Type); err != nil {
		return err
	}
	if r.HTTPMatch != nil && !httpFamily(r.Protocol) {
		return errors.New("httpMatch goes with http, https and grpc alone")
	}
	if err := validScope(r.Domains, r.Ports); err != nil {
		return err
	}
	return at("httpMatch", r.HTTPMatch.validate())
}

func (r *CredentialRule) validateTLS(projection string) error {
	inside := r.Protocol == "https" || r.Protocol == "grpc" || r.Protocol == TLS
	switch {
	case inside && r.TLSMode == Passthrough,
		inside && r.TLSMode == "" && (r.Protocol == TLS || projection == Placeholder):
		return fmt.Errorf("tlsMode must be %s: a credential can't be put into TLS otherwise", Terminate)
	case !inside && r.Protocol != "" && r.TLSMode == Terminate && r.Protocol != HTTP:
		return fmt.Errorf("tlsMode %s does not go with protocol %s", Terminate, r.Protocol)
	}
	return nil
}

func (b *Binding) validate() error {
	if !ValidRef(b.Ref) {
		return errors.New("ref must be from 1 to 128 letters, digits, dots, hyphens and underscores")
	}
	if !ValidRef(b.SourceRef) {
		return errors.New("sourceRef must be a credential source's name")
	}
	if b.CachePolicy != nil {
		if err := validTTL(b.CachePolicy.TTL); err != nil {
			return err
		}
	}
	return at("projection", b.Projection.validate())
}

func (p *Projection) validate() error {
	given := map[string]bool{
		HTTPHeaders: p.HTTPHeaders != nil, Placeholder: p.PlaceholderSubst != nil, TLSClientCert: p.TLSClientCertificate != nil,
		UsernamePassword: p.UsernamePassword != nil, SSHProxy: p.SSHProxy != nil,
	}
	if _, known := given[p.Type]; !known {
		return oneOf("type", p.Type, HTTPHeaders, Placeholder, TLSClientCert, UsernamePassword, SSHProxy)
	}
	for kind, is := range given {
		if is && kind != p.Type {
			return fmt.Errorf("a projection of type %s has no fields of %s", p.Type, kind)
		}
	}
	switch p.Type {
	case HTTPHeaders:
		return p.HTTPHeaders.validate()
	case Placeholder:
		return p.PlaceholderSubst.validate()
	case SSHProxy:
		return p.SSHProxy.validate()
	}
	return nil
}

// ownHeaders are for netd alone to set: what frames a message or names its target.
var ownHeaders = []string{"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive", "proxy-connection", "expect"}

// ValidHeader says whether a credential may be put into a header of this name.
func ValidHeader(name string) bool {
	return name != "" && len(name) <= maxName && !slices.Contains(ownHeaders, lower(name)) && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

func (h *HeadersProj) validate() error {
	if h == nil || len(h.Headers) == 0 || len(h.Headers) > maxHeaders {
		return fmt.Errorf("httpHeaders.headers must have from 1 to %d", maxHeaders)
	}
	seen := map[string]bool{}
	for i, header := range h.Headers {
		here := fmt.Sprintf("httpHeaders.headers[%d]", i)
		if !ValidHeader(header.Name) || seen[lower(header.Name)] {
			return fmt.Errorf("%s.name must be a header's, each once, that does not frame the message", here)
		}
		seen[lower(header.Name)] = true
		if _, err := ParseTemplate(header.ValueTemplate); err != nil {
			return fmt.Errorf("%s.valueTemplate: %w", here, err)
		}
	}
	return nil
}

// minPlaceholder keeps a placeholder from being what a request has anyway.
const minPlaceholder = 4

func (p *PlaceholderProj) validate() error {
	if p == nil || len(p.Replacements) == 0 || len(p.Replacements) > maxHeaders {
		return fmt.Errorf("placeholderSubstitution.replacements must have from 1 to %d", maxHeaders)
	}
	for i, r := range p.Replacements {
		here := fmt.Sprintf("placeholderSubstitution.replacements[%d]", i)
		if len(r.Placeholder) < minPlaceholder || len(r.Placeholder) > maxText || strings.ContainsFunc(r.Placeholder, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
			return fmt.Errorf("%s.placeholder must be from %d to %d printable ASCII characters", here, minPlaceholder, maxText)
		}
		if _, err := ParseTemplate(r.ValueTemplate); err != nil {
			return fmt.Errorf("%s.valueTemplate: %w", here, err)
		}
		if len(r.Locations) == 0 || len(r.Locations) > 3 {
			return fmt.Errorf("%s.locations must have one of header, query, body", here)
		}
		for _, l := range r.Locations {
			if err := oneOf(here+".locations", l, "header", "query", "body"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *SSHProxyProj) validate() error {
	if s == nil {
		return errors.New("sshProxy is required")
	}
	if len(s.KnownHosts) == 0 {
		return errors.New("sshProxy.knownHosts must have the upstream's keys: without, anybody could be it")
	}
	if err := validTexts("sshProxy.sandboxPublicKeys", s.SandboxPublicKeys); err != nil {
		return err
	}
	if s.UpstreamUsername != "" {
		if err := validTexts("sshProxy.upstreamUsername", []string{s.UpstreamUsername}); err != nil {
			return err
		}
	}
	return validTexts("sshProxy.knownHosts", s.KnownHosts)
}
