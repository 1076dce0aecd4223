package kubetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// authority is a CA for one cluster.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "s0 test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key, pem: block("CERTIFICATE", der)}, err
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// issue makes a certificate for a name and groups, as Kubernetes reads them; with ips it
// is a server's.
func (a *authority) issue(name string, groups []string, ips ...net.IP) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: groups}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IPAddresses: ips,
	}
	if len(ips) > 0 {
		template.ExtKeyUsage, template.DNSNames = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []string{"localhost", "kubernetes", "kubernetes.default.svc"}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	return block("CERTIFICATE", der), block("EC PRIVATE KEY", keyDER), err
}

// writeServer writes what the API server is started with.
func (a *authority) writeServer(dir string) error {
	server, serverKey, err := a.issue("kube-apiserver", nil, net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1))
	if err != nil {
		return err
	}
	kubelet, kubeletKey, err := a.issue("kube-apiserver-kubelet-client", []string{adminGroup})
	if err != nil {
		return err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(accounts)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&accounts.PublicKey)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"ca.crt": a.pem, "server.crt": server, "server.key": serverKey, "kubelet-client.crt": kubelet, "kubelet-client.key": kubeletKey,
		"sa.key": block("EC PRIVATE KEY", private), "sa.pub": block("PUBLIC KEY", public),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// client is an HTTP client of a name's.
func (a *authority) client(name string, groups ...string) (*http.Client, error) {
	cert, key, err := a.issue(name, groups)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}}}, nil
}

// unchecked is a client for the scheduler's port, whose certificate it signs itself.
func (a *authority) unchecked() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
}

// Kubeconfig writes a kubeconfig for a user with a certificate, and says where it is.
func (c *Cluster) Kubeconfig(user string, groups ...string) (string, error) {
	cert, key, err := c.ca.issue(user, groups)
	if err != nil {
		return "", err
	}
	b64 := base64.StdEncoding.EncodeToString
	type named map[string]any
	b, err := json.MarshalIndent(named{ // which is YAML
		"apiVersion": "v1", "kind": "Config", "current-context": "s0",
		"clusters": []named{{"name": "s0", "cluster": named{"server": c.URL, "certificate-authority-data": b64(c.ca.pem)}}},
		"users":    []named{{"name": user, "user": named{"client-certificate-data": b64(cert), "client-key-data": b64(key)}}},
		"contexts": []named{{"name": "s0", "context": named{"cluster": "s0", "user": user}}},
	}, "", "  ")
	if err != nil {
		return "", err
	}
	path := c.path(user + ".kubeconfig")
	return path, os.WriteFile(path, b, 0o600)
}

// Admin is the kubeconfig of who may do everything.
func (c *Cluster) Admin() string { return c.path("admin.kubeconfig") }

// CAFile is the certificate of the cluster's CA.
func (c *Cluster) CAFile() string { return c.path("ca.crt") }
