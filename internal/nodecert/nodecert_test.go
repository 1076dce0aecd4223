package nodecert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
)

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := EnsureAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// of certifies an identity.
func (a *Authority) of(t *testing.T, id Identity, life time.Duration) *Credentials {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Issue(id, key.Public(), life)
	if err != nil {
		t.Fatal(err)
	}
	return &Credentials{Cert: &tls.Certificate{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key, Leaf: cert}, Trust: a.trust}
}

// meet connects a client to a server, which says one byte to whom it lets in.
func meet(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = tls.Server(c, server).Write([]byte("x"))
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadFull(tls.Client(c, client), make([]byte, 1))
	c.Close()
	<-done
	return err
}

func fixed(c *Credentials) func() *Credentials { return func() *Credentials { return c } }

func node(name string) Identity { return Identity{Cluster: "c", Node: name, Membership: uuid.New()} }

// H03, H04: a node's API is its cluster's API servers' alone.
func TestH04_OnlyAnAPIServerIsLetIn(t *testing.T) {
	t.Parallel()
	ours, theirs := authority(t), authority(t)
	self := node("n1")
	server := Server(fixed(ours.of(t, self, time.Hour)), false, OnlyAPI("c"))
	for name, c := range map[string]struct {
		creds *Credentials
		ok    bool
	}{
		"an API server":                 {ours.of(t, API("c"), time.Hour), true},
		"another cluster's API server":  {ours.of(t, API("d"), time.Hour), false},
		"an API server that is too old": {ours.of(t, API("c"), -time.Minute), false},
		"another authority's":           {&Credentials{Cert: theirs.of(t, API("c"), time.Hour).Cert, Trust: ours.trust}, false},
		"another node":                  {ours.of(t, node("n2"), time.Hour), false},
		"the node itself":               {ours.of(t, self, time.Hour), false},
		"nobody":                        {&Credentials{Trust: ours.trust}, false},
	} {
		if err := meet(t, server, Client(c.creds, self)); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// H04: an API server talks to a node only, and only while it is the member that it was.
func TestH04_ANodeIsNobodyElse(t *testing.T) {
	t.Parallel()
	ours, theirs := authority(t), authority(t)
	want := node("n1")
	client := Client(ours.of(t, API("c"), time.Hour), want)
	rejoined := want
	rejoined.Membership = uuid.New()
	for name, c := range map[string]struct {
		creds *Credentials
		ok    bool
	}{
		"the node":                    {ours.of(t, want, time.Hour), true},
		"the node of before it left":  {ours.of(t, rejoined, time.Hour), false},
		"another node":                {ours.of(t, node("n2"), time.Hour), false},
		"an API server":               {ours.of(t, API("c"), time.Hour), false},
		"the node, whose time is up":  {ours.of(t, want, -time.Minute), false},
		"one of another authority":    {theirs.of(t, want, time.Hour), false},
		"one that has no certificate": {nil, false},
	} {
		server := Server(fixed(c.creds), true, func(Identity) error { return nil })
		if err := meet(t, server, client); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TLS of before 1.3 is not spoken.
func TestOnlyTLS13(t *testing.T) {
	t.Parallel()
	a := authority(t)
	id := node("n")
	old := Client(a.of(t, API("c"), time.Hour), id)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := meet(t, Server(fixed(a.of(t, id, time.Hour)), false, OnlyAPI("c")), old); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
}

// H04: who joins believes the pinned authority, and what it says itself alone.
func TestH04_APinLeadsToOneAuthority(t *testing.T) {
	t.Parallel()
	ours, theirs := authority(t), authority(t)
	forged := theirs.of(t, API("c"), time.Hour)
	forged.Cert.Certificate[1] = ours.cert.Raw // in the chain, and not the one who signed
	for name, c := range map[string]struct {
		creds *Credentials
		ok    bool
	}{
		"ours":                  {ours.of(t, API("c"), time.Hour), true},
		"another cluster's":     {ours.of(t, API("d"), time.Hour), false},
		"a node":                {ours.of(t, node("api"), time.Hour), false},
		"another authority's":   {theirs.of(t, API("c"), time.Hour), false},
		"one that only says so": {forged, false},
		"one that is too old":   {ours.of(t, API("c"), -time.Minute), false},
	} {
		server := Server(fixed(c.creds), true, func(Identity) error { return nil })
		if err := meet(t, server, Introduced(ours.Pin(), "c")); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A connection goes on when the certificates under it change; the next one sees the new.
func TestRotationUnderAConnection(t *testing.T) {
	t.Parallel()
	a := authority(t)
	id := node("n")
	var now atomic.Pointer[Credentials]
	now.Store(a.of(t, id, time.Hour))
	l, err := tls.Listen("tcp", "127.0.0.1:0", Server(now.Load, false, OnlyAPI("c")))
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
			go io.Copy(c, c)
		}
	}()
	dial := func() *tls.Conn {
		c, err := tls.Dial("tcp", l.Addr().String(), Client(a.of(t, API("c"), time.Hour), id))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	echo := func(c *tls.Conn) {
		t.Helper()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	first := dial()
	echo(first)
	now.Store(a.of(t, id, time.Hour))
	second := dial()
	echo(second)
	echo(first)
	before, after := first.ConnectionState().PeerCertificates[0], second.ConnectionState().PeerCertificates[0]
	if before.SerialNumber.Cmp(after.SerialNumber) == 0 {
		t.Error("the new certificate is not used")
	}
}

func TestIdentityOf(t *testing.T) {
	t.Parallel()
	id := Identity{Cluster: "c", Node: "a-b.c", Membership: uuid.New()}
	for text, ok := range map[string]bool{
		id.String():                          true,
		"s0://c/api":                         true,
		"s0://c/api/":                        false,
		"s0://c/":                            false,
		"s0://c/node/n/x":                    false,
		"s0://c/node//" + uuid.NewString():   false,
		"s0://c/node/N/" + uuid.NewString():  false,
		"s0://c/node/n/" + uuid.Nil.String(): false,
		"s0://u@c/api":                       false,
		"s0://c/api?x":                       false,
		"https://c/api":                      false,
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := IdentityOf(&x509.Certificate{URIs: []*url.URL{u}}); (err == nil) != ok || ok && got.String() != text {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	if _, err := IdentityOf(&x509.Certificate{URIs: []*url.URL{id.uri(), API("c").uri()}}); err == nil {
		t.Error("who is two is nobody")
	}
	if got, err := IdentityOf(&x509.Certificate{URIs: []*url.URL{id.uri()}}); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
}

func TestValidEndpoint(t *testing.T) {
	t.Parallel()
	for endpoint, ok := range map[string]bool{
		"10.0.0.1:80": true, "[fd00::1]:80": true, "node.example:65535": true,
		"": false, ":80": false, "h": false, "h:0": false, "h:65536": false, "h:http": false, "a/b:80": false, "a@b:80": false, "a b:80": false,
		strings.Repeat("a", 254) + ":80": false,
	} {
		if err := ValidEndpoint(endpoint); (err == nil) != ok {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

// Only the owner of a key has it certified, and only a key of the kind that we use.
func TestKeyOf(t *testing.T) {
	t.Parallel()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	good, err := NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Request{CSR: good}).KeyOf(); err != nil {
		t.Error(err)
	}
	tampered := append([]byte(nil), good...)
	tampered[len(tampered)-1] ^= 1
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ofRSA, err := NewCSR(weak)
	if err != nil {
		t.Fatal(err)
	}
	ofP384, err := NewCSR(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, csr := range map[string][]byte{"none": nil, "garbage": []byte("x"), "tampered": tampered, "RSA": ofRSA, "P-384": ofP384} {
		if _, err := (Request{CSR: csr}).KeyOf(); err == nil {
			t.Errorf("%s is certified", name)
		}
	}
}

// A node takes only what is of its own name and key, and finds it again.
func TestANodeTakesItsOwn(t *testing.T) {
	t.Parallel()
	a := authority(t)
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	answer := func(id Identity, life time.Duration) Answer {
		cert, err := a.Issue(id, key.Public(), life)
		if err != nil {
			t.Fatal(err)
		}
		return Answer{Certificate: cert.Raw, Authorities: a.trust.PEM}
	}
	id := node("n")
	other, _ := NewKey()
	if _, err := answer(id, time.Hour).Take(other, "c", "n"); err == nil {
		t.Error("took another key's")
	}
	if _, err := answer(node("m"), time.Hour).Take(key, "c", "n"); err == nil {
		t.Error("took another node's")
	}
	if _, err := answer(API("c"), time.Hour).Take(key, "c", "n"); err == nil {
		t.Error("took an API server's")
	}
	have, err := answer(id, time.Hour).Take(key, "c", "n")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, _, err := Load(dir, "c", "n"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
	if err := SaveKey(dir, key); err != nil {
		t.Fatal(err)
	}
	if _, again, err := Load(dir, "c", "n"); err == nil || again == nil || !again.Equal(key) {
		t.Errorf("a key alone: %v", err)
	}
	if err := have.Save(dir); err != nil {
		t.Fatal(err)
	}
	if again, _, err := Load(dir, "c", "n"); err != nil || !again.Cert.Leaf.Equal(have.Cert.Leaf) {
		t.Errorf("what was kept: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, nodeFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info.Mode(), err)
	}
	cert, err := a.Issue(id, key.Public(), -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	old := &Credentials{Cert: &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, Trust: a.trust}
	if err := old.Save(dir); err != nil {
		t.Fatal(err)
	}
	if _, again, err := Load(dir, "c", "n"); err == nil || again == nil || !again.Equal(key) {
		t.Errorf("one that is over: %v", err)
	}
}

func TestAuthorityFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := EnsureAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := EnsureAuthority(dir); err != nil || again.Pin() != first.Pin() || ValidPin(again.Pin()) != nil {
		t.Errorf("read again: %v", err)
	}
	next, err := EnsureAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	both := append(append([]byte(nil), first.trust.PEM...), next.trust.PEM...)
	if err := os.WriteFile(filepath.Join(dir, certFile), both, 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := ReadAuthority(dir)
	if err != nil || a.Pin() != first.Pin() {
		t.Fatalf("with another beside it: %v", err)
	}
	id := node("n")
	if err := meet(t, Server(fixed(&Credentials{Cert: a.of(t, id, time.Hour).Cert, Trust: a.trust}), false, OnlyAPI("c")), Client(&Credentials{Cert: next.of(t, API("c"), time.Hour).Cert, Trust: a.trust}, id)); err != nil {
		t.Errorf("who has both authorities does not believe the second: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, certFile), next.trust.PEM, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadAuthority(dir); err == nil {
		t.Error("a certificate of another key was taken")
	}
	if err := os.WriteFile(filepath.Join(dir, certFile), first.trust.PEM, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, keyFile), 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadAuthority(dir); err == nil {
		t.Error("a key that everybody can read was taken")
	}
	if _, _, err := ParseTrust([]byte(strings.Repeat(string(first.trust.PEM), maxAuthorities+1))); err == nil {
		t.Error("any number of authorities is believed")
	}
	for _, pin := range []string{"", "sha256:", "sha256:00", "md5:" + strings.Repeat("0", 64)} {
		if ValidPin(pin) == nil {
			t.Errorf("%q is a pin", pin)
		}
	}
}
