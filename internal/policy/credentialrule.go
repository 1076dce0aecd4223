package policy

import (
	"encoding/base64"
	"encoding/binary"
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
}

// ownLogins have logins that nothing here speaks: a full parser of each would be in the
// trusted path. A rule for one is refused when it is told, not when it is needed.
var ownLogins = []string{SOCKS5, MQTT, Redis}

func (r *CredentialRule) validate(p *Policy) error {
	b, ok := p.Binding(r.CredentialRef)
	if !ok {
		return errors.New("credentialRef must name one of credentialBindings")
	}
	if slices.Contains(ownLogins, r.Protocol) {
		return fmt.Errorf("a credential can't be put into a login of protocol %s: the proxy speaks HTTP, TLS and SSH alone (a SOCKS5 proxy's is egress.proxy.credentialRef)", r.Protocol)
	}
	fits, ok := credentialProtocols[r.Protocol]
	if !ok {
		return oneOf("protocol", r.Protocol, HTTP, "https", "grpc", TLS, SSH)
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
	for i, key := range s.SandboxPublicKeys {
		if !validSSHKey(strings.Fields(key)) {
			return fmt.Errorf("sshProxy.sandboxPublicKeys[%d] must be a key's kind and the key, as in authorized_keys, without options", i)
		}
	}
	if s.UpstreamUsername != "" {
		if err := validTexts("sshProxy.upstreamUsername", []string{s.UpstreamUsername}); err != nil {
			return err
		}
	}
	if err := validTexts("sshProxy.knownHosts", s.KnownHosts); err != nil {
		return err
	}
	for i, known := range s.KnownHosts {
		fields := strings.Fields(known)
		if len(fields) < 3 || strings.HasPrefix(fields[0], "@") || strings.Contains(fields[0], "|") || !validSSHKey(fields[1:]) {
			return fmt.Errorf("sshProxy.knownHosts[%d] must be names in plain text, a key's kind and the key, as ssh-keyscan prints them", i)
		}
	}
	return nil
}

// sshKinds are the kinds of keys that a server or a client may be known by.
var sshKinds = []string{"ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"}

// validSSHKey wants a kind and a key of that kind, which says its kind itself.
func validSSHKey(fields []string) bool {
	if len(fields) < 2 || !slices.Contains(sshKinds, fields[0]) {
		return false
	}
	blob, err := base64.StdEncoding.DecodeString(fields[1])
	return err == nil && len(blob) > 4+len(fields[0]) && binary.BigEndian.Uint32(blob) == uint32(len(fields[0])) && string(blob[4:4+len(fields[0])]) == fields[0]
}
