package ca

import (
	"bytes"
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
	a, err := New(sandbox.ID(id))
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
	a, err := New("s1")
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := a.Leaf(fmt.Sprintf("n%d.example", i)); err != nil {
			b.Fatal(err)
		}
	}
}
