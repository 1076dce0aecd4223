package nodecert

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// Credentials is what one side has at a time: its certificate, and whom it believes.
type Credentials struct {
	Cert  *tls.Certificate
	Trust Trust
}

// alpn: everything between nodes and API servers is HTTP/2.
var alpn = []string{"h2"}

// ErrNoCredentials refuses a connection before there is a certificate.
var ErrNoCredentials = errors.New("there is no certificate yet")

// config is what all connections have in common. Nothing is resumed: each is looked at
// as the first one.
func config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: alpn, SessionTicketsDisabled: true}
}

// Server is a server's TLS, for http.Server: it shows the credentials of the moment and
// talks only to whom admit lets in. A peer without a certificate has no identity, and is
// let in where anonymous says so.
func Server(now func() *Credentials, anonymous bool, admit func(Identity) error) *tls.Config {
	c := config()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		have := now()
		if have == nil {
			return nil, ErrNoCredentials
		}
		c := config()
		c.Certificates, c.ClientCAs, c.ClientAuth = []tls.Certificate{*have.Cert}, have.Trust.Pool, tls.RequireAndVerifyClientCert
		if anonymous {
			c.ClientAuth = tls.VerifyClientCertIfGiven
		}
		c.VerifyConnection = func(s tls.ConnectionState) error { return checkPeer(s, anonymous, admit) }
		return c, nil
	}
	return c
}

// OnlyAPI lets in a cluster's API servers.
func OnlyAPI(cluster string) func(Identity) error { return only(API(cluster)) }

func only(want Identity) func(Identity) error {
	return func(id Identity) error {
		if id != want {
			return fmt.Errorf("it is %s, not %s", id, want)
		}
		return nil
	}
}

// Peer is who is on the other side of a connection; false: somebody without a
// certificate. Its chain was verified in the handshake.
func Peer(s *tls.ConnectionState) (Identity, bool) {
	if s == nil || len(s.VerifiedChains) == 0 {
		return Identity{}, false
	}
	id, err := IdentityOf(s.PeerCertificates[0])
	return id, err == nil
}

func checkPeer(s tls.ConnectionState, anonymous bool, admit func(Identity) error) error {
	if len(s.VerifiedChains) == 0 {
		if anonymous && len(s.PeerCertificates) == 0 {
			return nil
		}
		return errors.New("the peer has no certificate")
	}
	id, err := IdentityOf(s.PeerCertificates[0])
	if err != nil {
		return err
	}
	if err := admit(id); err != nil {
		return fmt.Errorf("peer refused: %w", err)
	}
	return nil
}

// Client is the TLS of a client that wants to talk to one identity. It shows the
// credentials of the moment.
func Client(have *Credentials, to Identity) *tls.Config {
	c := config()
	c.ServerName, c.RootCAs = to.host(), have.Trust.Pool
	if have.Cert != nil {
		c.Certificates = []tls.Certificate{*have.Cert}
	}
	c.VerifyConnection = func(s tls.ConnectionState) error { return checkPeer(s, false, only(to)) }
	return c
}

// Introduced is the TLS of a client that knows nothing of a cluster's API servers but
// their authority's pin.
func Introduced(pin, cluster string) *tls.Config {
	c := config()
	c.ServerName = API(cluster).host()
	c.InsecureSkipVerify = true // the authority is not known yet: VerifyConnection looks for it
	c.VerifyConnection = func(s tls.ConnectionState) error { return checkPinned(s, pin, cluster) }
	return c
}

// checkPinned verifies a server against the authority in its own chain, if that is the
// pinned one.
func checkPinned(s tls.ConnectionState, pin, cluster string) error {
	for _, authority := range s.PeerCertificates[1:] {
		if !pinned(authority, pin) {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(authority)
		leaf := s.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: API(cluster).host(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			return err
		}
		id, err := IdentityOf(leaf)
		if err != nil {
			return err
		}
		return only(API(cluster))(id)
	}
	return errors.New("the server's authority is not the pinned one")
}
