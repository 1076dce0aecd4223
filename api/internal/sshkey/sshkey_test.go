package sshkey_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"s0.run/api/internal/sshkey"
)

func public(t *testing.T, key any) string {
	t.Helper()
	k, err := ssh.NewPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

func ed(t *testing.T) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pub, priv
}

func TestParse(t *testing.T) {
	t.Parallel()
	pub, _ := ed(t)
	line := public(t, pub)
	want, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	k, err := sshkey.Parse("  " + line + " me@laptop \r\n")
	if err != nil || k.Line != line || k.Type != "ssh-ed25519" || k.Comment != "me@laptop" || k.Fingerprint != ssh.FingerprintSHA256(want) {
		t.Fatalf("%+v: %v", k, err)
	}
	if !strings.HasPrefix(k.Fingerprint, "SHA256:") {
		t.Errorf("fingerprint %s", k.Fingerprint)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []any{&ec.PublicKey, &strong.PublicKey} {
		if _, err := sshkey.Parse(public(t, key)); err != nil {
			t.Errorf("%T: %v", key, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	pub, priv := ed(t)
	line := public(t, pub)
	pemKey, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	private := string(pem.EncodeToMemory(pemKey))
	weakModulus := new(big.Int).Lsh(big.NewInt(1), 1023)
	weakModulus.Add(weakModulus, big.NewInt(1))
	ca, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{Key: ca.PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing": "", "words": "this is no key", "cut": line[:40], "two lines": line + "\n" + line, "NUL": line + " a\x00b",
		"options":     `command="rm -rf /" ` + line,
		"private":     private,
		"weak":        public(t, &rsa.PublicKey{N: weakModulus, E: 65537}),
		"dsa":         dss(),
		"certificate": strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert))),
		"long":        line + " " + strings.Repeat("x", 17<<10),
		"comment":     line + " " + strings.Repeat("x", 300),
		"other type":  strings.Replace(line, "ssh-ed25519", "ssh-rsa", 1) + "AA",
	} {
		k, err := sshkey.Parse(text)
		if err == nil {
			t.Errorf("%s was taken: %+v", name, k)
			continue
		}
		if secret := strings.Split(private, "\n")[1]; strings.Contains(err.Error(), secret) || len(err.Error()) > 200 {
			t.Errorf("%s: the error repeats what it was given", name)
		}
	}
}

// dss is a key of the kind that OpenSSH gave up.
func dss() string {
	n := func(bits uint) *big.Int { return new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1) }
	blob := ssh.Marshal(struct {
		Name       string
		P, Q, G, Y *big.Int
	}{"ssh-dss", n(1024), n(160), big.NewInt(2), big.NewInt(4)})
	return "ssh-dss " + base64.StdEncoding.EncodeToString(blob)
}

func FuzzParse(f *testing.F) {
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGk3 a")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := sshkey.Parse(text)
		if err != nil {
			return
		}
		again, err := sshkey.Parse(k.Line)
		if err != nil || again.Fingerprint != k.Fingerprint || strings.ContainsAny(k.Line, "\r\n\x00") {
			t.Errorf("%q is stored as %q: %v", text, k.Line, err)
		}
	})
}
