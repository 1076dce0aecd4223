package ca

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"

	"s0.run/internal/sandbox"
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
	if leaf.Leaf.IsCA || !one.cert.MaxPathLenZero {
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
// same keys make the same authority, and for another sandbox another one.
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
		{"one of other keys", root(t, "other"), "s1", false},
		{"one of no keys", NewLoneRoot(), "s1", false},
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

type key string

func (k key) Derive(purpose string, length int) ([]byte, error) {
	return hkdf.Key(sha256.New, []byte(k), nil, purpose, length)
}

func root(t *testing.T, keys string) *Root {
	t.Helper()
	r, err := NewRoot(key(keys))
	if err != nil {
		t.Fatal(err)
	}
	return r
}
