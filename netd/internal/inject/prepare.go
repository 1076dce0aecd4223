package inject

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/guest"
)

// minSecret is the least length of a value that answers are searched for: what is
// shorter is everywhere.
const minSecret = 8

// Prepared is a credential made ready for one request or connection.
type Prepared struct {
	Ref     string
	Source  string
	Version int64
	Hit     bool // it was open already

	headers      map[string]string
	replacements []replacement
	tls          *tls.Certificate
	roots        *x509.CertPool
	secret       *sealed.Secret
	secrets      [][]byte // what answers are searched for
}

type replacement struct {
	placeholder         string
	value               string
	header, query, body bool
}

// Is says whether a policy's credential is this one; nil is none.
func (p *Prepared) Is(c *policy.Credential) bool {
	return c != nil && c.Binding.Ref == p.Ref && c.Binding.SourceRef == p.Source
}

// Prepare renders a binding for a sandbox.
func Prepare(from Source, g guest.Guest, b *policy.Binding) (*Prepared, error) {
	version := from.Version(g.ID, g.Gen, b.SourceRef)
	secret, hit, err := from.Secret(g, b)
	if err != nil {
		return nil, errdefs.New(errdefs.Unavailable, "the credential %q cannot be had now", b.Ref).WithCause(err)
	}
	p := &Prepared{Ref: b.Ref, Source: b.SourceRef, Version: version, Hit: hit, secret: secret}
	if err := p.project(b); err != nil {
		return nil, errdefs.New(errdefs.Unavailable, "the credential %q cannot be made", b.Ref).WithCause(err)
	}
	for _, value := range secret.Values {
		p.hide(value)
	}
	return p, nil
}

func (p *Prepared) project(b *policy.Binding) error {
	switch b.Projection.Type {
	case policy.HTTPHeaders:
		return p.projectHeaders(b.Projection.HTTPHeaders)
	case policy.Placeholder:
		return p.projectPlaceholders(b.Projection.PlaceholderSubst)
	case policy.TLSClientCert:
		return p.projectCertificate()
	case policy.UsernamePassword, policy.SSHProxy:
		return nil
	}
	return fmt.Errorf("projection %q is not known", b.Projection.Type)
}

func (p *Prepared) projectHeaders(proj *policy.HeadersProj) error {
	if proj == nil || len(proj.Headers) == 0 {
		return fmt.Errorf("no header is projected")
	}
	p.headers = map[string]string{}
	for _, h := range proj.Headers {
		value, err := render(h.ValueTemplate, p.secret)
		if err != nil {
			return err
		}
		name := textproto.CanonicalMIMEHeaderKey(h.Name)
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) || framing[name] {
			return fmt.Errorf("header %q cannot be set", name)
		}
		p.headers[name] = value
		p.hide(value)
	}
	return nil
}

// framing are headers that say how a message is read, or where it goes: no
// credential.
var framing = map[string]bool{
	"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Connection": true, "Upgrade": true,
	"Te": true, "Trailer": true, "Keep-Alive": true, "Proxy-Connection": true, "Expect": true,
}

func (p *Prepared) projectPlaceholders(proj *policy.PlaceholderProj) error {
	if proj == nil || len(proj.Replacements) == 0 {
		return fmt.Errorf("no placeholder is projected")
	}
	for _, r := range proj.Replacements {
		value, err := render(r.ValueTemplate, p.secret)
		if err != nil {
			return err
		}
		if r.Placeholder == "" || !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("a placeholder cannot be replaced")
		}
		ready := replacement{placeholder: r.Placeholder, value: value}
		for _, where := range r.Locations {
			ready.header = ready.header || where == "header"
			ready.query = ready.query || where == "query"
			ready.body = ready.body || where == "body"
		}
		p.replacements = append(p.replacements, ready)
		p.hide(value)
	}
	return nil
}

func (p *Prepared) projectCertificate() error {
	pair, err := tls.X509KeyPair([]byte(p.secret.CertificatePEM), []byte(p.secret.PrivateKeyPEM))
	if err != nil {
		return fmt.Errorf("a client certificate that is none") // the error could quote it
	}
	p.tls = &pair
	if p.secret.CAPEM != "" {
		p.roots = x509.NewCertPool()
		if !p.roots.AppendCertsFromPEM([]byte(p.secret.CAPEM)) {
			return fmt.Errorf("a certificate authority that is none")
		}
	}
	return nil
}

// render makes a value of a template over the source's values. Its errors never
// hold a value.
func render(text string, from *sealed.Secret) (string, error) {
	t, err := policy.ParseTemplate(text)
	if err != nil {
		return "", fmt.Errorf("a value's template: %w", err)
	}
	value, err := t.Render(from.Values)
	if err != nil {
		return "", fmt.Errorf("a value's template: %w", err)
	}
	return value, nil
}

func (p *Prepared) hide(s string) {
	if len(s) >= minSecret {
		p.secrets = append(p.secrets, []byte(s))
	}
	if _, token, ok := strings.Cut(s, " "); ok && len(token) >= minSecret { // of "Bearer x" also x
		p.secrets = append(p.secrets, []byte(token))
	}
}

// Certificate is what a connection to upstream has to present, and whom else it
// believes; both may be nil.
func (p *Prepared) Certificate() (*tls.Certificate, *x509.CertPool) { return p.tls, p.roots }

// UserPass is what a connection has to log in with.
func (p *Prepared) UserPass() (user, pass string) {
	return p.secret.Values["username"], p.secret.Values["password"]
}

// SSHKey is what a connection has to log in with over SSH; the key is PEM.
func (p *Prepared) SSHKey() (key, passphrase string) {
	return p.secret.PrivateKeyPEM, p.secret.Passphrase
}

// setHeaders removes whatever the sandbox sent under the credential's names, in
// every spelling and as a trailer, and sets each once (F05).
func (p *Prepared) setHeaders(h http.Header) {
	for name := range h {
		for ours := range p.headers {
			if strings.EqualFold(strings.ReplaceAll(name, "_", "-"), ours) {
				delete(h, name)
			}
		}
	}
	for name, value := range p.headers {
		h[name] = []string{value}
	}
}
