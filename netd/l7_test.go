package netd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
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

	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
)

// web is a world with a resolver on the host's loopback and a server of good.example
// beyond it, which is also what answers for every other name at its address.
type web struct {
	*world
	roots  *x509.CertPool
	bundle string // the same
	served tls.Certificate
	public *sealed.PublicKey

	mu    sync.Mutex
	seen  []http.Header
	asked []string
	names map[string][]string // answers for names that have others than the rest
}

func newWeb(t testing.TB) *web {
	w := &web{world: newWorld(t), roots: x509.NewCertPool()}
	keys := filepath.Join(w.dir, "keys")
	file, err := sealed.Ensure(keys)
	w.must(err)
	w.public, err = sealed.ReadPublic(file)
	w.must(err)
	w.cfg.CredentialKeyDir = keys
	w.resolver()
	w.servers()
	w.start()
	return w
}

func (w *web) resolver() {
	w.must(in(w.host, func() error {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		started := make(chan struct{})
		s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(w.answer), NotifyStartedFunc: func() { close(started) }}
		go s.ActivateAndServe()
		<-started
		w.t.Cleanup(func() { s.Shutdown() })
		w.cfg.Resolvers = []netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())}
		return nil
	}))
}

func (w *web) answer(rw dns.ResponseWriter, q *dns.Msg) {
	name := q.Question[0].Name
	w.mu.Lock()
	w.asked = append(w.asked, name)
	lines, ok := w.names[strings.ToLower(name)]
	w.mu.Unlock()
	if !ok {
		lines = []string{"60 A " + far4, "60 AAAA " + far6}
	}
	reply := new(dns.Msg)
	reply.SetReply(q)
	for _, line := range lines {
		if line[0] <= '9' {
			line = name + " " + line
		}
		rr, err := dns.NewRR(line)
		w.must(err)
		if kind := rr.Header().Rrtype; kind == q.Question[0].Qtype || kind == dns.TypeCNAME {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	_ = rw.WriteMsg(reply)
}

func (w *web) servers() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "internet"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"good.example", "other.example"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	w.must(err)
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	w.roots.AppendCertsFromPEM(bundle)
	w.bundle = string(bundle)
	file := filepath.Join(w.dir, "roots.pem")
	w.must(os.WriteFile(file, bundle, 0o600))
	w.env = append(w.env, "SSL_CERT_FILE="+file, "SSL_CERT_DIR="+filepath.Join(w.dir, "none"))
	w.served = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	srv := &http.Server{
		Handler: http.HandlerFunc(w.serve), TLSConfig: &tls.Config{Certificates: []tls.Certificate{w.served}},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	w.t.Cleanup(func() { srv.Close() })
	for _, addr := range []string{far4, far6} {
		w.must(in(w.beyond, func() error {
			l, err := net.Listen("tcp", net.JoinHostPort(addr, "443"))
			if err == nil {
				go srv.ServeTLS(l, "", "")
			}
			return err
		}))
	}
}

func (w *web) serve(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.seen = append(w.seen, r.Header)
	w.mu.Unlock()
	switch r.URL.Path {
	case "/api/big":
		_, _ = io.CopyN(rw, zeros{}, 64<<20)
		return
	case "/api/grpc":
		serveGRPC(rw, r)
		return
	case "/api/ws":
		serveWebSocket(rw, r)
		return
	case "/elsewhere":
		http.Redirect(rw, r, "https://other.example/", http.StatusFound)
		return
	case "/reflect":
		fmt.Fprintln(rw, r.Header)
	}
	fmt.Fprintf(rw, "%s from %s", r.Host, r.Context().Value(http.LocalAddrContextKey))
}

// get asks for a URL from inside a sandbox that connects to an address of its own
// choice.
func (b *box) get(roots *x509.CertPool, url, connectTo string) (int, string, error) {
	t := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return b.dial("tcp", connectTo) },
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
	}
	resp, err := (&http.Client{Transport: t, Timeout: deadline}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// ask looks a name up from inside a sandbox, at a server of its own choice. Like any
// client it asks again: a link that has just come up loses IPv6's first packets.
func (b *box) ask(server, name string, kind uint16) (m *dns.Msg, err error) {
	c, err := b.dial("udp", server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for range 30 {
		q := new(dns.Msg)
		q.SetQuestion(name, kind)
		if m, _, err = (&dns.Client{Timeout: 2 * time.Second}).ExchangeWithConn(q, &dns.Conn{Conn: c}); err == nil {
			break
		}
	}
	return m, err
}

func TestE06_E08_E12_NamesDecideOnTheWire(t *testing.T) {
	w := newWeb(t)
	b := w.sandbox()
	b.policy(`{"mode":"block-all","egress":{"allowedDomains":["good.example"]}}`)
	for server, kind := range map[string]uint16{"1.2.3.4:53": dns.TypeA, "[2606:aaaa::99]:53": dns.TypeAAAA} {
		if m, err := b.ask(server, "good.example.", kind); err != nil || len(m.Answer) != 1 {
			t.Errorf("%s: %v, %v", server, m, err)
		}
		if m, err := b.ask(server, "stolen.evil.example.", kind); err != nil || m.Rcode != dns.RcodeNameError {
			t.Errorf("%s, a denied name: %v, %v", server, m, err)
		}
	}
	for _, to := range []string{net.JoinHostPort(other4, "443"), net.JoinHostPort(other6, "443")} {
		if status, body, err := b.get(w.roots, "https://good.example/", to); err != nil || status != 200 || !strings.HasPrefix(body, "good.example from "+far4) {
			t.Errorf("over %s: %d %s %v", to, status, body, err)
		}
		if status, body, err := b.get(w.roots, "https://other.example/", to); err == nil {
			t.Errorf("a denied name over %s: %d %s", to, status, body)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) != 2 {
		t.Errorf("the server was asked %d times", len(w.seen))
	}
	for _, name := range w.asked {
		if name != "good.example." {
			t.Errorf("upstream was asked for %s", name)
		}
	}
}

func TestF05_F08_ACredentialOnTheWire(t *testing.T) {
	w := newWeb(t)
	b := w.sandbox()
	const token = "canary-on-the-wire"
	blob, err := w.public.SealSecret(sealed.Of{Team: "team", Source: "src", Kind: policy.StaticHeaders, Version: 1}, sealed.Secret{Values: map[string]string{"token": token}})
	w.must(err)
	w.must(w.client.SetPolicy(t.Context(), netdapi.Policy{
		ID: b.slot.ID, Generation: 1, Team: "team",
		Policy: json.RawMessage(`{"mode":"block-all","egress":{"allowedDomains":["good.example"],
			"credentialRules":[{"credentialRef":"tok","protocol":"https","tlsMode":"terminate-reoriginate","domains":["good.example"]}]},
			"credentialBindings":[{"ref":"tok","sourceRef":"src","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"Bearer {{ .token }}"}]}}}]}`),
		Credentials: []sealed.Credential{{Source: "src", Kind: policy.StaticHeaders, Version: 1, Blob: blob}},
	}))
	ca, err := w.client.CA(t.Context(), b.slot.ID)
	w.must(err)
	if strings.Contains(ca.PEM, "PRIVATE") {
		t.Error("the bundle holds a key")
	}
	own := x509.NewCertPool()
	own.AppendCertsFromPEM([]byte(ca.PEM))
	for _, to := range []string{net.JoinHostPort(other4, "443"), net.JoinHostPort(other6, "443")} {
		if status, body, err := b.get(own, "https://good.example/", to); err != nil || status != 200 {
			t.Errorf("over %s: %d %s %v", to, status, body, err)
		}
	}
	if _, _, err := b.get(w.roots, "https://good.example/", net.JoinHostPort(far4, "443")); err == nil {
		t.Error("who trusts the internet alone was answered") // F13
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) != 2 {
		t.Fatalf("the server was asked %d times", len(w.seen))
	}
	for _, h := range w.seen {
		if got := h["Authorization"]; len(got) != 1 || got[0] != "Bearer "+token {
			t.Errorf("it carried %q", got)
		}
	}
}
