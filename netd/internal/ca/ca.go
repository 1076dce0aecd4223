// Package ca is a sandbox's own certificate authority.
//
// An [Authority] signs the certificates with which netd answers in the names of
// servers whose connections a rule has it open. Its keys live in this process' memory
// alone: nothing writes them anywhere, no method gives them away, and another
// sandbox's authority signs nothing that this one's sandbox believes. Leaves are kept
// up to a bound, by canonical name.
//
// An authority's own key is derived from a [Root] and the sandbox's id, so that what
// a process inside read when it began still holds after netd, the sandbox or the node
// under it is another one; a fork has another id, and so another key.
package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync"
	"time"

	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

const (
	// lifetime is more than any process in a sandbox lives, which may sleep for months
	// with a certificate in its memory.
	lifetime = 2 * 366 * 24 * time.Hour
	// leafLifetime is what clients accept of a server (398 days) and more than any
	// sandbox needs; a leaf is made again in its last quarter.
	leafLifetime = 7 * 24 * time.Hour
	// backdate lets a sandbox's clock be behind.
	backdate = 24 * time.Hour
	// maxLeaves bounds what names a sandbox can have kept, at about 1 KiB each.
	maxLeaves = 256
)

// Authority signs for one sandbox. It is safe for concurrent use.
type Authority struct {
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	leafKey *ecdsa.PrivateKey // of all leaves: they are all ours to answer with
	older   []byte            // PEM of the certificates of the older roots' authorities
	chain   [][]byte          // how those vouch for this one: each signed by the next

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// Authority makes a sandbox's authority: each time with the same key and name, so that
// whoever believes one of its certificates believes what any of them signs.
func (r *Root) Authority(id sandbox.ID) (*Authority, error) {
	leafKey, err := newKey()
	if err != nil {
		return nil, err
	}
	a := &Authority{leafKey: leafKey, leaves: map[string]*tls.Certificate{}}
	for _, root := range r.secrets {
		if err := a.succeed(root, id); err != nil {
			return nil, fmt.Errorf("making a certificate authority for %s: %w", id, err)
		}
	}
	return a, nil
}

// succeed has a root's authority take the place of the one before, which vouches for it.
func (a *Authority) succeed(root sealed.AuthorityRoot, id sandbox.ID) error {
	key, err := signer(root, id)
	if err != nil {
		return err
	}
	template, err := newTemplate(lifetime)
	if err != nil {
		return err
	}
	template.Subject = pkix.Name{Organization: []string{"s0 sandbox egress"}, CommonName: string(id)}
	if root.Number > 1 { // two of one name are taken for each other
		template.Subject.OrganizationalUnit = []string{fmt.Sprintf("root %d", root.Number)}
	}
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	cert, err := certify(template, template, key, key)
	if err != nil {
		return err
	}
	if a.cert != nil {
		vouched, err := certify(template, a.cert, key, a.key)
		if err != nil {
			return err
		}
		a.chain = append([][]byte{vouched.Raw}, a.chain...)
		a.older = append(pemOf(a.cert), a.older...)
	}
	a.cert, a.key = cert, key
	return nil
}

// certify signs a key by an issuer's.
func certify(template, issuer *x509.Certificate, key, by *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), by)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func pemOf(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

func newTemplate(life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: now.Add(life)}, nil
}

// PEM is the certificates for the sandbox to trust, the one in use first.
func (a *Authority) PEM() []byte { return append(pemOf(a.cert), a.older...) }

// Leaf is the certificate for a server of a canonical name.
func (a *Authority) Leaf(name string) (*tls.Certificate, error) {
	if leaf := a.kept(name); leaf != nil {
		return leaf, nil
	}
	leaf, err := a.sign(name)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for %s: %w", name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.leaves) >= maxLeaves {
		for other := range a.leaves { // any: making one again costs less than knowing which
			delete(a.leaves, other)
			break
		}
	}
	a.leaves[name] = leaf
	return leaf, nil
}

func (a *Authority) kept(name string) *tls.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	leaf := a.leaves[name]
	if leaf == nil || time.Until(leaf.Leaf.NotAfter) < leafLifetime/4 {
		return nil
	}
	return leaf
}

func (a *Authority) sign(name string) (*tls.Certificate, error) {
	template, err := newTemplate(leafLifetime)
	if err != nil {
		return nil, err
	}
	template.DNSNames = []string{name}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leaf, err := certify(template, a.cert, a.leafKey, a.key)
	if err != nil {
		return nil, err
	}
	// Its own certificate, which whoever believes it has, would lead the others astray:
	// what looks for an issuer takes the first of its name.
	return &tls.Certificate{Certificate: append([][]byte{leaf.Raw}, a.chain...), PrivateKey: a.leafKey, Leaf: leaf}, nil
}
