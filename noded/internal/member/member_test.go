package member

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"s0.run/internal/nodecert"
)

// plane is a control plane, as far as a node sees it.
type plane struct {
	*testing.T
	ca      *nodecert.Authority
	address string
	id      nodecert.Identity // that it certifies
	life    time.Duration

	mu    sync.Mutex
	asked []string // what was asked for, and by whom
	lose  int      // answers that get lost
	says  int      // a status to refuse with
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	ca, err := nodecert.EnsureAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{T: t, ca: ca, id: nodecert.Identity{Cluster: "c", Node: "n", Membership: uuid.New()}, life: time.Hour}
	cert, err := ca.IssueAPI("c", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cfg := nodecert.Server(func() *nodecert.Credentials { return &nodecert.Credentials{Cert: cert, Trust: ca.Trust()} }, true, func(nodecert.Identity) error { return nil })
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	srv := &http.Server{Handler: p, Protocols: protocols, TLSConfig: cfg}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	p.address = l.Addr().String()
	return p
}

// ServeHTTP implements http.Handler.
func (p *plane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req nodecert.Request
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		p.Error(err)
	}
	key, err := req.KeyOf()
	if err != nil {
		p.Error(err)
	}
	who := "token " + req.Token
	if peer, ok := nodecert.Peer(r.TLS); ok {
		who = peer.Node
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, strings.TrimPrefix(r.URL.Path, "/v1/")+" "+who+" "+req.Endpoint)
	cert, err := p.ca.Issue(p.id, key, p.life)
	if err != nil {
		p.Error(err)
	}
	if p.lose > 0 {
		p.lose--
		panic(http.ErrAbortHandler)
	}
	if p.says != 0 {
		w.WriteHeader(p.says)
		_ = json.NewEncoder(w).Encode(nodecert.Refusal{Message: "no"})
		return
	}
	_ = json.NewEncoder(w).Encode(nodecert.Answer{Certificate: cert.Raw, Authorities: p.ca.Trust().PEM})
}

func (p *plane) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.asked...)
}

// config is a node's that may join.
func (p *plane) config() Config {
	p.Helper()
	dir := p.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		p.Fatal(err)
	}
	return Config{
		Dir: filepath.Join(dir, "cert"), Cluster: "c", Node: "n", ControlPlane: p.address, Pin: p.ca.Pin(), TokenFile: file, Advertise: ":4",
		Log: slog.New(slog.DiscardHandler),
	}
}

func open(t *testing.T, cfg Config) *Member {
	t.Helper()
	m, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A node joins with its token, and renews with its certificate from then on, also when it
// starts again; where it is, it says each time.
func TestJoinAndRenew(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	cfg := p.config()
	m := open(t, cfg)
	if err := m.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(cfg.TokenFile); err != nil {
		t.Fatal(err)
	}
	cfg.Advertise = "node.example:5"
	again := open(t, cfg)
	if err := again.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"join token secret 127.0.0.1:4", "renew n 127.0.0.1:4", "renew n node.example:5"}
	if got := p.requests(); strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("asked %q", got)
	}
}

// Who joins with the authority's certificate at hand needs no pin.
func TestJoinByTheAuthoritysCertificate(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	cfg := p.config()
	cfg.Pin, cfg.TrustFile = "", filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(cfg.TrustFile, p.ca.Trust().PEM, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open(t, cfg).attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// H04: another cluster's API servers never see the token.
func TestH04_TheTokenIsForOneAuthority(t *testing.T) {
	t.Parallel()
	ours, theirs := newPlane(t), newPlane(t)
	cfg := ours.config()
	cfg.ControlPlane = theirs.address
	if err := open(t, cfg).attempt(t.Context()); err == nil {
		t.Error("joined another cluster")
	}
	if got := theirs.requests(); len(got) > 0 {
		t.Errorf("it was asked %q", got)
	}
}

// A node that never got its certificate asks again for the same key, also when it was
// started anew meanwhile: else it would be somebody else of its name.
func TestALostAnswer(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.lose = 2
	cfg := p.config()
	m := open(t, cfg)
	for range 2 {
		if err := m.attempt(t.Context()); err == nil {
			t.Fatal("there was no answer")
		}
		key := m.key
		if m = open(t, cfg); m.key == nil || !m.key.Equal(key) {
			t.Fatal("it has another key")
		}
	}
	if err := m.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A certificate that is over is no certificate: the node joins again, with the same key.
func TestACertificateThatIsOver(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	cfg := p.config()
	m := open(t, cfg)
	if err := m.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	cert, err := p.ca.Issue(p.id, m.key.Public(), -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	old := &nodecert.Credentials{Cert: &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: m.key, Leaf: cert}, Trust: p.ca.Trust()}
	if err := old.Save(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	again := open(t, cfg)
	if again.now.Load() != nil || !again.key.Equal(m.key) {
		t.Fatal("it is used, or its key is forgotten")
	}
	if err := again.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := p.requests(); !strings.HasPrefix(got[len(got)-1], "join") {
		t.Errorf("asked %q", got)
	}
}

// What is not of this node is not taken.
func TestANodeTakesNobodyElsesCertificate(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.id.Node = "m"
	m := open(t, p.config())
	if err := m.attempt(t.Context()); err == nil || m.now.Load() != nil {
		t.Errorf("took another node's certificate: %v", err)
	}
}

// H03: a node that was removed tries its token, which may be new.
func TestH03_ARemovedNode(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	m := open(t, p.config())
	if err := m.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.says = http.StatusForbidden
	p.mu.Unlock()
	err := m.attempt(t.Context())
	if no, ok := errors.AsType[refusal](err); !ok || no.status != http.StatusForbidden {
		t.Errorf("refused: %v", err)
	}
	if got := p.requests(); len(got) != 3 || !strings.HasPrefix(got[1], "renew") || !strings.HasPrefix(got[2], "join") {
		t.Errorf("asked %q", got)
	}
}

// Nobody is talked to before there is a certificate, and with one API servers alone.
func TestH04_TheListenersTLS(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	m := open(t, p.config())
	l, err := tls.Listen("tcp", "127.0.0.1:0", m.TLS())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Write([]byte("x"))
			}()
		}
	}()
	cert, err := p.ca.IssueAPI("c", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	read := func(with *nodecert.Credentials) error {
		c, err := tls.DialWithDialer(&net.Dialer{}, "tcp", l.Addr().String(), nodecert.Client(with, p.id))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
		return err
	}
	server := &nodecert.Credentials{Cert: cert, Trust: p.ca.Trust()}
	if read(server) == nil {
		t.Error("talked without a certificate")
	}
	if err := m.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := read(server); err != nil {
		t.Errorf("an API server: %v", err)
	}
	if read(m.now.Load()) == nil {
		t.Error("a node was let in")
	}
}

// A certificate that somebody else keeps is read again, and must be there.
func TestFilesOfSomebodyElse(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	joined := open(t, p.config())
	if err := joined.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Dir: t.TempDir(), Cluster: "c", Node: "n", Log: slog.New(slog.DiscardHandler)}
	if _, err := Open(cfg); err == nil {
		t.Error("there is no certificate, and nowhere to get one")
	}
	if err := joined.now.Load().Save(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	m := open(t, cfg)
	before := m.now.Load()
	if err := joined.attempt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := joined.now.Load().Save(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if err := m.attempt(t.Context()); err != nil || m.now.Load().Cert.Leaf.Equal(before.Cert.Leaf) {
		t.Errorf("the new one is not read: %v", err)
	}
}

// A certificate is renewed before two thirds of its life are over.
func TestDue(t *testing.T) {
	t.Parallel()
	from := time.Now()
	for range 100 {
		if d := due(from, from.Add(6*time.Hour), from); d < 3*time.Hour || d > 4*time.Hour {
			t.Fatalf("renewed after %s of 6 h", d)
		}
	}
	if d := due(from, from.Add(time.Hour), from.Add(2*time.Hour)); d != firstPause {
		t.Errorf("one that is over is renewed after %s", d)
	}
}

// Run renews at once, goes on asking while nobody answers, and ends when it is told to.
func TestRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{Dir: t.TempDir(), Cluster: "c", Node: "n", ControlPlane: "127.0.0.1:1", Pin: "sha256:" + strings.Repeat("0", 64), Log: slog.New(slog.DiscardHandler)}
		m, err := Open(cfg) // there is no token: nobody is asked
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := Config{Dir: t.TempDir(), Cluster: "c", Node: "n", ControlPlane: "h:1", Pin: "sha256:" + strings.Repeat("0", 64), Log: slog.New(slog.DiscardHandler)}
	if _, err := Open(good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"a name that is none": func(c *Config) { c.Node = "N" },
		"no port":             func(c *Config) { c.ControlPlane = "h" },
		"no pin":              func(c *Config) { c.Pin = "" },
		"a pin that is none":  func(c *Config) { c.Pin = "x" },
	} {
		bad := good
		change(&bad)
		if _, err := Open(bad); err == nil {
			t.Error(name, "is taken")
		}
	}
}
