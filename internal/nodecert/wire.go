package nodecert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// Where an API server's listener for nodes answers, to POST with a [Request]. Who joins
// has a token, who renews a certificate.
const (
	JoinPath  = "/v1/join"
	RenewPath = "/v1/renew"

	// MaxMessage bounds a request and an answer.
	MaxMessage = 128 << 10
)

// Request is a node's.
type Request struct {
	Token    string `json:"token,omitempty"` // to join
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`
	Endpoint string `json:"endpoint"` // where its node API is reached, host:port
	CSR      []byte `json:"csr"`      // DER; its key is all that is taken from it
}

// Answer is the API server's.
type Answer struct {
	Certificate []byte `json:"certificate"` // DER
	Authorities []byte `json:"authorities"` // PEM: whom to believe from now on
}

// Refusal is what there is instead, beside the status.
type Refusal struct {
	Message string `json:"message"`
}

// NewCSR asks for a certificate for a key.
func NewCSR(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// KeyOf is the key that a request is about, whose owner made it.
func (r Request) KeyOf() (crypto.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, errors.New("csr: not a certificate request")
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("csr: want an ECDSA key of P-256")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("csr: its signature is wrong")
	}
	return csr.PublicKey, nil
}

// Fingerprint tells a key from others.
func Fingerprint(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// Take makes credentials of an answer, if they are what was asked for: of this key, of
// this node, and good to use.
func (a Answer) Take(key *ecdsa.PrivateKey, cluster, node string) (*Credentials, error) {
	trust, certs, err := ParseTrust(a.Authorities)
	if err != nil {
		return nil, fmt.Errorf("authorities: %w", err)
	}
	leaf, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the certificate is of another key")
	}
	if err := check(leaf, trust, cluster, node); err != nil {
		return nil, err
	}
	chain := [][]byte{leaf.Raw}
	for _, c := range certs {
		if leaf.CheckSignatureFrom(c) == nil {
			chain = append(chain, c.Raw)
		}
	}
	return &Credentials{Cert: &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, Trust: trust}, nil
}

// check reports what is wrong with a node's own certificate.
func check(leaf *x509.Certificate, trust Trust, cluster, node string) error {
	id, err := IdentityOf(leaf)
	if err != nil {
		return err
	}
	if id.Cluster != cluster || id.Node != node {
		return fmt.Errorf("the certificate is of %s, not of node %s of cluster %s", id, node, cluster)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: trust.Pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	return err
}
