package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"

	"s0.run/internal/s0test"
)

// origin is what the internet's names below .test lead to: one HTTPS server on the near
// addresses, for each of them, that tells what it was sent.
type origin struct {
	t      *testing.T
	signer *authority
	bundle string // a file of whom this machine believes, the authority of .test among them
	at     netip.AddrPort

	mu   sync.Mutex
	seen []arrival
}

// arrival is one request as the server got it.
type arrival struct {
	Host, Path, Method, Key, Body, Client, At string
	Auth                                      []string
}

// authority signs for names of the internet, and for clients.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// client is a client certificate and its key.
func (a *authority) client(name string) (certificate, key string) {
	a.t.Helper()
	c, err := a.sign(name)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	return pemOf("CERTIFICATE", c.Certificate[0]), pemOf("PRIVATE KEY", der)
}

// newOrigin makes the server and the resolver that leads to it.
func newOrigin(t *testing.T, w *internet) *origin {
	t.Helper()
	o := &origin{t: t, signer: newAuthority(t, "internet"), bundle: filepath.Join(t.TempDir(), "roots.pem")}
	if err := os.WriteFile(o.bundle, []byte(pemOf("CERTIFICATE", o.signer.cert.Raw)), 0o600); err != nil {
		t.Fatal(err)
	}
	o.resolve(w)
	srv := &http.Server{Handler: http.HandlerFunc(o.serve), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	srv.TLSConfig = &tls.Config{ClientAuth: tls.RequestClientCert, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return o.signer.sign(h.ServerName)
	}}
	t.Cleanup(func() { srv.Close() })
	for _, a := range []netip.Addr{w.near, w.near6} {
		l := listenIn(t, w.ns, netip.AddrPortFrom(a, 443).String())
		go srv.ServeTLS(l, "", "")
	}
	return o
}

// options has a stack believe the authority and ask the resolver.
func (o *origin) options() s0test.Options {
	return s0test.Options{Pool: 2, Flags: []string{"--resolvers=" + o.at.String()}, Env: []string{"SSL_CERT_FILE=" + o.bundle}}
}

func listenIn(t *testing.T, ns netns.NsHandle, at string) (l net.Listener) {
	t.Helper()
	if err := inNamespace(ns, func() (err error) { l, err = net.Listen("tcp", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// resolve answers for all names below .test: with the near addresses.
func (o *origin) resolve(w *internet) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		o.t.Fatal(err)
	}
	o.at = netip.MustParseAddrPort(pc.LocalAddr().String())
	started := make(chan struct{})
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetReply(q)
		name := q.Question[0].Name
		switch kind := q.Question[0].Qtype; {
		case !strings.HasSuffix(name, ".test."):
			reply.Rcode = dns.RcodeNameError
		case kind == dns.TypeA:
			reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: 60}, A: w.near.AsSlice()}}
		case kind == dns.TypeAAAA:
			reply.Answer = []dns.RR{&dns.AAAA{Hdr: dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: 60}, AAAA: w.near6.AsSlice()}}
		}
		_ = rw.WriteMsg(reply)
	})}
	go s.ActivateAndServe()
	<-started
	o.t.Cleanup(func() { _ = s.Shutdown() })
}

func (o *origin) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	at, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	got := arrival{Host: r.Host, Path: r.URL.Path, Method: r.Method, Key: r.Header.Get("X-Key"), Body: string(body), At: at.String(), Auth: r.Header.Values("Authorization")}
	if len(r.TLS.PeerCertificates) > 0 {
		got.Client = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	o.mu.Lock()
	o.seen = append(o.seen, got)
	o.mu.Unlock()
	switch r.URL.Path {
	case "/redirect":
		http.Redirect(w, r, "https://other.test/stolen", http.StatusFound)
	case "/reflect":
		_ = json.NewEncoder(w).Encode(got)
	case "/mcp":
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{"content":[]}}`)
	default:
		_, _ = io.WriteString(w, "answered "+r.Host)
	}
}

// at are the requests for a path.
func (o *origin) got(path string) (all []arrival) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.seen {
		if s.Path == path {
			all = append(all, s)
		}
	}
	return all
}
