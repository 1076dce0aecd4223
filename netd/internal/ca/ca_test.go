package ca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

func pool(t *testing.T, a *Authority) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("no certificate in the bundle")
	}
	return p
}

func authority(t *testing.T, id string) *Authority {
	t.Helper()
	a, err := NewLoneRoot().Authority(sandbox.ID(id))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestF09_OnlyTheSandboxBelievesItsAuthority(t *testing.T) {
	t.Parallel()
	one, two := authority(t, "s1"), authority(t, "s2")
	leaf, err := one.Leaf("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, one), DNSName: "api.example.com"}); err != nil {
		t.Errorf("its own: %v", err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, two), DNSName: "api.example.com"}); err == nil {
		t.Error("another sandbox believes it")
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, one), DNSName: "other.example.com"}); err == nil {
		t.Error("it is good for another name")
	}
	if leaf.Leaf.IsCA || leaf.Leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Error("a leaf could sign")
	}
}

func TestF08_TheBundleHoldsNoKey(t *testing.T) {
	t.Parallel()
	a := authority(t, "s1")
	bundle := a.PEM()
	if strings.Contains(string(bundle), "PRIVATE") || bytes.Count(bundle, []byte("BEGIN")) != 1 {
		t.Errorf("the bundle is %s", bundle)
	}
	for _, key := range []interface{ Bytes() ([]byte, error) }{a.key, a.leafKey} {
		if secret, err := key.Bytes(); err != nil || bytes.Contains(bundle, secret) || bytes.Contains(a.cert.Raw, secret) {
			t.Error("a key is in the bundle")
		}
	}
}

func TestLeavesAreKeptUpToABound(t *testing.T) {
	t.Parallel()
	a := authority(t, "s1")
	first, err := a.Leaf("a.example")
	if again, _ := a.Leaf("a.example"); err != nil || again != first {
		t.Errorf("made twice: %v", err)
	}
	for i := range maxLeaves + 20 {
		if _, err := a.Leaf(fmt.Sprintf("n%d.example", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(a.leaves); n != maxLeaves {
		t.Errorf("%d leaves are kept", n)
	}
}

func BenchmarkLeaf(b *testing.B) {
	a, err := NewLoneRoot().Authority("s1")
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := a.Leaf(fmt.Sprintf("n%d.example", i)); err != nil {
			b.Fatal(err)
		}
	}
}

// What read the certificate of before goes on believing it, whichever netd is asked: the
// same secret makes the same authority, and for another sandbox another one.
func TestF08_AnAuthorityIsTheSameAfterARestart(t *testing.T) {
	t.Parallel()
	before, after := root(t, "k"), root(t, "k")
	one, err := before.Authority("s1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		root *Root
		id   sandbox.ID
		same bool
	}{
		{"the next netd's", after, "s1", true},
		{"a fork's", after, "s2", false},
		{"one of another secret", root(t, "other"), "s1", false},
		{"one of no secret", NewLoneRoot(), "s1", false},
	} {
		a, err := c.root.Authority(c.id)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := a.Leaf("api.example.com")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, one), DNSName: "api.example.com"}); (err == nil) != c.same {
			t.Errorf("%s: %v", c.name, err)
		}
		if one.key.Equal(a.key) != c.same || one.leafKey.Equal(a.leafKey) {
			t.Errorf("%s: keys", c.name)
		}
		first, err := before.HostKey("s1")
		if err != nil {
			t.Fatal(err)
		}
		if second, err := c.root.HostKey(c.id); err != nil || first.Equal(second) != c.same {
			t.Errorf("%s: the SSH host key, %v", c.name, err)
		}
	}
}

func root(t *testing.T, secrets ...string) *Root {
	t.Helper()
	var all []sealed.AuthorityRoot
	for i, s := range secrets {
		all = append(all, sealed.AuthorityRoot{Number: i + 1, Secret: []byte(s)})
	}
	r, err := NewRoot(all)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A new root breaks nothing that runs: whoever read an older one's certificate believes
// what is answered now, until that root's file is taken away, and whoever reads from now
// on believes what netds answer that have not heard of it.
func TestF08_ANewRootBreaksNothingThatRuns(t *testing.T) {
	t.Parallel()
	secrets := []string{"first", "second", "third"}
	dir := t.TempDir()
	for answering := 1; answering <= len(secrets); answering++ {
		leaf, err := authorityOf(t, secrets[:answering]...).Leaf("api.example.com")
		if err != nil {
			t.Fatal(err)
		}
		for read := 1; read <= len(secrets); read++ {
			believed := authorityOf(t, secrets[:read]...)
			if err := verify(leaf, pool(t, believed)); err != nil {
				t.Errorf("%d roots answer whoever read %d: %v", answering, read, err)
			}
			verifyByOpenSSL(t, dir, believed.PEM(), leaf)
		}
	}
	leaf, err := authorityOf(t, secrets[:3]...).Leaf("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if later, err := NewRoot([]sealed.AuthorityRoot{{Number: 3, Secret: []byte("third")}}); err != nil {
		t.Error(err)
	} else if a, err := later.Authority("s1"); err != nil || !a.key.Equal(authorityOf(t, secrets[:3]...).key) || verify(leaf, pool(t, a)) != nil {
		t.Errorf("when the older ones are gone: %v", err)
	} else if leaf, err := a.Leaf("api.example.com"); err != nil || verify(leaf, pool(t, authorityOf(t, secrets[:1]...))) == nil {
		t.Errorf("a root that is gone is believed, %v", err)
	}
	other, err := root(t, secrets...).Authority("s2")
	if err != nil {
		t.Fatal(err)
	}
	if verify(leaf, pool(t, other)) == nil {
		t.Error("another sandbox believes it")
	}
}

// What read the certificate of a netd of before there were chains, which vouches for no
// other authority, believes the first root's answers and never a second's: it is why a
// root is added only when none of that is left.
func TestF08_WhatBeganBeforeThereWereChainsBelievesTheFirstRootAlone(t *testing.T) {
	t.Parallel()
	before := authorityOf(t, "first")
	template := *before.cert
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	cert, err := certify(&template, &template, before.key, before.key)
	if err != nil {
		t.Fatal(err)
	}
	before.cert = cert
	for _, secrets := range [][]string{{"first"}, {"first", "second"}} {
		leaf, err := authorityOf(t, secrets...).Leaf("api.example.com")
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(leaf, pool(t, before)); (err == nil) != (len(secrets) == 1) {
			t.Errorf("%d roots: %v", len(secrets), err)
		}
	}
}

func authorityOf(t *testing.T, secrets ...string) *Authority {
	t.Helper()
	a, err := root(t, secrets...).Authority("s1")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func verify(leaf *tls.Certificate, roots *x509.CertPool) error {
	between := x509.NewCertPool()
	for _, der := range leaf.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		between.AddCert(cert)
	}
	_, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "api.example.com"})
	return err
}

// verifyByOpenSSL asks what most programs in sandboxes ask, where there is one.
func verifyByOpenSSL(t *testing.T, dir string, roots []byte, leaf *tls.Certificate) {
	t.Helper()
	program, err := exec.LookPath("openssl")
	if err != nil {
		return
	}
	var chain []byte
	for _, der := range leaf.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	files := map[string][]byte{"roots": roots, "chain": chain, "leaf": pemOf(leaf.Leaf)}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "verify", "-CAfile", "roots", "-no-CApath", "-untrusted", "chain", "-verify_hostname", "api.example.com", "leaf")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("OpenSSL: %v: %s", err, out)
	}
}
