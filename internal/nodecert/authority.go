package nodecert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// An authority lives as long as anybody cares to think ahead; see ADR 29 for another.
	authorityLife = 10 * 365 * 24 * time.Hour
	// NodeLife outlives a control plane that is down over a holiday. A node renews in the
	// middle of it.
	NodeLife = 7 * 24 * time.Hour
	// APILife is short: an API server certifies itself.
	APILife = 24 * time.Hour
	// clockSkew is by how much another machine's clock may be behind.
	clockSkew = 5 * time.Minute

	keyFile, certFile = "ca.key", "ca.crt"
	keyType, certType = "PRIVATE KEY", "CERTIFICATE"
	maxFile           = 64 << 10
	maxAuthorities    = 8 // that one file may name
	pinPrefix         = "sha256:"
	organization      = "s0"
)

// Authority certifies a cluster's nodes and API servers.
type Authority struct {
	key   crypto.Signer
	cert  *x509.Certificate // of the key
	trust Trust
}

// Trust is whom to believe: the authorities of a cluster.
type Trust struct {
	Pool *x509.CertPool
	PEM  []byte // of the same
}

// EnsureAuthority reads the authority in a directory, and makes it when there is none:
// the key in ca.key, which its owner alone can read, and in ca.crt its certificate and
// those of others that are believed beside it.
func EnsureAuthority(dir string) (*Authority, error) {
	if _, err := os.Stat(filepath.Join(dir, keyFile)); errors.Is(err, fs.ErrNotExist) {
		if err := makeAuthority(dir); err != nil {
			return nil, fmt.Errorf("making the nodes' authority in %s: %w", dir, err)
		}
	}
	return ReadAuthority(dir)
}

// makeAuthority makes one unless another process has made it meanwhile.
func makeAuthority(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // and with it the lock
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, keyFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := NewKey()
	if err != nil {
		return err
	}
	tmpl := template(authorityLife)
	tmpl.Subject.CommonName = "s0 nodes"
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	text, err := MarshalKey(key)
	if err != nil {
		return err
	}
	// The certificate first: a start that is cut short in between makes both anew.
	if err := WriteFile(filepath.Join(dir, certFile), pem.EncodeToMemory(&pem.Block{Type: certType, Bytes: der}), 0o644); err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, keyFile), text, 0o600)
}

// ReadAuthority reads the authority in a directory. A key that others than its owner's
// group can read is refused.
func ReadAuthority(dir string) (*Authority, error) {
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("reading the nodes' authority: %w", err)
	}
	if info.Mode().Perm()&0o027 != 0 {
		return nil, fmt.Errorf("the key %s can be read or changed by others", filepath.Join(dir, keyFile))
	}
	text, err := readFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("the key in %s is damaged", filepath.Join(dir, keyFile)) // the cause may quote it
	}
	trust, certs, err := ReadTrust(filepath.Join(dir, certFile))
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		if pub, ok := c.PublicKey.(*ecdsa.PublicKey); ok && pub.Equal(key.Public()) {
			return &Authority{key: key, cert: c, trust: trust}, nil
		}
	}
	return nil, fmt.Errorf("no certificate in %s is of the key beside it", filepath.Join(dir, certFile))
}

// ReadTrust reads a file of authorities' certificates.
func ReadTrust(path string) (Trust, []*x509.Certificate, error) {
	text, err := readFile(path)
	if err != nil {
		return Trust{}, nil, err
	}
	trust, certs, err := ParseTrust(text)
	if err != nil {
		return Trust{}, nil, fmt.Errorf("authorities in %s: %w", path, err)
	}
	return trust, certs, nil
}

// ParseTrust reads authorities' certificates.
func ParseTrust(text []byte) (Trust, []*x509.Certificate, error) {
	trust := Trust{Pool: x509.NewCertPool(), PEM: text}
	var certs []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != certType || err != nil || !cert.IsCA || len(certs) == maxAuthorities {
			return Trust{}, nil, fmt.Errorf("want at most %d certificates of authorities, and nothing else", maxAuthorities)
		}
		certs = append(certs, cert)
		trust.Pool.AddCert(cert)
	}
	if len(certs) == 0 {
		return Trust{}, nil, errors.New("there is no certificate")
	}
	return trust, certs, nil
}

// Trust is whom the cluster believes.
func (a *Authority) Trust() Trust { return a.trust }

// Pin tells the authority from all others.
func (a *Authority) Pin() string { return pin(a.cert) }

func pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return pinPrefix + hex.EncodeToString(sum[:])
}

// ValidPin checks the form of a pin.
func ValidPin(s string) error {
	digits, ok := strings.CutPrefix(s, pinPrefix)
	if raw, err := hex.DecodeString(digits); !ok || err != nil || len(raw) != sha256.Size {
		return fmt.Errorf("pin %.100q: want %s and %d hexadecimal digits", s, pinPrefix, 2*sha256.Size)
	}
	return nil
}

func pinned(cert *x509.Certificate, want string) bool {
	return subtle.ConstantTimeCompare([]byte(pin(cert)), []byte(strings.ToLower(want))) == 1
}

// Issue certifies that a key is an identity's, for so long. What else the key's owner
// would like the certificate to say is never asked.
func (a *Authority) Issue(id Identity, key crypto.PublicKey, life time.Duration) (*x509.Certificate, error) {
	tmpl := template(life)
	tmpl.URIs, tmpl.DNSNames = []*url.URL{id.uri()}, []string{id.host()}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("certifying %s: %w", id, err)
	}
	return x509.ParseCertificate(der)
}

// IssueAPI makes an API server's own certificate. Its chain carries the authority's: a
// node that only has its pin finds it there.
func (a *Authority) IssueAPI(cluster string, life time.Duration) (*tls.Certificate, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	leaf, err := a.Issue(API(cluster), key.Public(), life)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func template(life time.Duration) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial) //nolint:errcheck // never fails
	serial[0] &= 0x7f // not negative
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{Organization: []string{organization}},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(life),
	}
}

// NewKey makes a key for a certificate.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// MarshalKey is a key as text.
func MarshalKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: der}), nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		any, err = x509.ParseECPrivateKey(block.Bytes)
	}
	if key, ok := any.(*ecdsa.PrivateKey); ok && err == nil {
		return key, nil
	}
	return nil, errors.New("no ECDSA key")
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text := new(bytes.Buffer)
	if _, err := text.ReadFrom(io.LimitReader(f, maxFile+1)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if text.Len() > maxFile {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxFile)
	}
	return text.Bytes(), nil
}

// WriteFile makes a file appear whole and durable, or not at all.
func WriteFile(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
