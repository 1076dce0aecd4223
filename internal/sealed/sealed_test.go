package sealed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func keys(t *testing.T) (*PublicKey, *Keyring, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	file, err := Ensure(dir)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ReadPublic(file)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := ReadKeyring(dir)
	if err != nil {
		t.Fatal(err)
	}
	return public, ring, dir
}

func TestH08_OnlyThePrivateKeyOpens(t *testing.T) {
	t.Parallel()
	public, ring, _ := keys(t)
	_, other, _ := keys(t)
	of := Of{Team: "t1", Source: "github", Kind: "static_headers", Version: 3}
	secret := []byte("s0-canary-secret")
	blob, err := public.Seal(of, secret)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(blob.Data, secret) {
		t.Fatal("a blob has its secret in clear")
	}
	if plain, err := ring.Open(of, blob); err != nil || !bytes.Equal(plain, secret) {
		t.Fatalf("%q, %v", plain, err)
	}
	if _, err := other.Open(of, blob); !errors.Is(err, ErrOpen) {
		t.Errorf("another ring: %v", err)
	}
	for what, wrong := range map[string]Of{
		"team": {"t2", of.Source, of.Kind, 3}, "source": {of.Team, "gitlab", of.Kind, 3}, "kind": {of.Team, of.Source, "x", 3}, "version": {of.Team, of.Source, of.Kind, 2},
		"parts that run together": {"t1g", "ithub", of.Kind, 3},
	} {
		if plain, err := ring.Open(wrong, blob); !errors.Is(err, ErrOpen) {
			t.Errorf("G11: opened as another's (%s): %q, %v", what, plain, err)
		}
	}
	for i := range blob.Data {
		changed := Blob{blob.Key, bytes.Clone(blob.Data)}
		changed.Data[i] ^= 1
		if _, err := ring.Open(of, changed); !errors.Is(err, ErrOpen) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := ring.Open(of, Blob{blob.Key, nil}); !errors.Is(err, ErrOpen) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := public.Seal(of, make([]byte, MaxPlain+1)); err == nil {
		t.Error("more than MaxPlain is sealed")
	}
	if largest, err := public.Seal(of, make([]byte, MaxPlain)); err != nil || len(largest.Data) > MaxBlob {
		t.Errorf("the largest blob has %d bytes, %v", len(largest.Data), err)
	}
	again, err := public.Seal(of, secret)
	if err != nil || bytes.Equal(again.Data, blob.Data) {
		t.Error("sealing twice gives the same blob")
	}
}

func TestKeysAreFiles(t *testing.T) {
	t.Parallel()
	public, _, dir := keys(t)
	private := filepath.Join(dir, "0001.key")
	if info, err := os.Stat(private); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key's mode: %v, %v", info.Mode(), err)
	}
	// A start that broke off leaves the private part alone: the public one follows from it.
	if err := os.Remove(filepath.Join(dir, "0001.pub")); err != nil {
		t.Fatal(err)
	}
	file, err := Ensure(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ReadPublic(file); err != nil || again.ID() != public.ID() {
		t.Errorf("the key changed: %v", err)
	}
	alone, err := ReadKeyring(dir)
	if err != nil {
		t.Fatal(err)
	}
	// A second key is sealed to from then on; both open.
	if _, err := Add(dir); err != nil {
		t.Fatal(err)
	}
	file, err = Ensure(dir)
	if err != nil || filepath.Base(file) != "0002.pub" {
		t.Fatalf("the newest key: %s, %v", file, err)
	}
	newer, err := ReadPublic(file)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := ReadKeyring(dir)
	if err != nil || ring.keys[public.ID()] == nil || ring.keys[newer.ID()] == nil {
		t.Errorf("a ring of two keys: %v", err)
	}
	if was, is := alone.Roots(), ring.Roots(); len(was) != 1 || len(is) != 1 || !bytes.Equal(was[0].Secret, is[0].Secret) {
		t.Error("a key more changes the root of authorities")
	}
	if err := os.Chmod(private, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeyring(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
}

// What sandboxes' authorities are derived from does not change with the keys, and not
// for those who began without a root of its own.
func TestRootsOfAuthorities(t *testing.T) {
	t.Parallel()
	_, _, dir := keys(t)
	roots := func() []AuthorityRoot {
		t.Helper()
		ring, err := ReadKeyring(dir)
		if err != nil {
			t.Fatal(err)
		}
		return ring.Roots()
	}
	same := func(a, b AuthorityRoot) bool { return a.Number == b.Number && bytes.Equal(a.Secret, b.Secret) }
	first := roots()
	if len(first) != 1 || first[0].Number != 1 || len(first[0].Secret) != rootBytes {
		t.Fatalf("a new directory has roots %v", first)
	}
	if err := os.Remove(rootFile(dir, 1)); err != nil {
		t.Fatal(err)
	}
	derived := roots() // as netds of before had
	if len(derived) != 1 || same(derived[0], first[0]) {
		t.Error("a new directory's root is made of its key")
	}
	if _, err := Add(dir); err != nil { // makes it a file
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "0001.key")); err != nil {
		t.Fatal(err)
	}
	if is := roots(); len(is) != 1 || !same(is[0], derived[0]) {
		t.Error("the oldest key's end changes the root")
	}
	for range maxRoots - 1 {
		if _, err := AddRoot(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := AddRoot(dir); err == nil {
		t.Errorf("more than %d roots are made", maxRoots)
	}
	all := roots()
	if len(all) != maxRoots || !same(all[0], derived[0]) || all[maxRoots-1].Number != maxRoots {
		t.Errorf("of %d roots there are %d", maxRoots, len(all))
	}
	if err := os.Remove(rootFile(dir, 1)); err != nil {
		t.Fatal(err)
	}
	file, err := AddRoot(dir)
	if err != nil || filepath.Base(file) != "0005.root" || len(roots()) != maxRoots || !same(roots()[0], all[1]) {
		t.Errorf("behind the first one's end: %s, %v", file, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a root's mode: %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeyring(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a root that others can read: %v", err)
	}
}

func TestKeyFilesThatAreNone(t *testing.T) {
	t.Parallel()
	_, _, dir := keys(t)
	for name, content := range map[string]string{"empty": "", "text": "not a key", "other": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		path := filepath.Join(dir, name+".x")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPublic(path); err == nil {
			t.Errorf("%s is a public key", name)
		}
	}
	if _, err := ReadKeyring(t.TempDir()); err == nil {
		t.Error("no keys are a ring")
	}
	if _, err := ReadPublic(filepath.Join(dir, "0001.key")); err == nil {
		t.Error("a private key is read as a public one")
	}
}

func TestF10_SecretsShowThemselvesToNobody(t *testing.T) {
	t.Parallel()
	const canary = "s0-canary-secret"
	s := Secret{Values: map[string]string{"token": canary}, CertificatePEM: canary, PrivateKeyPEM: canary, CAPEM: canary, Passphrase: canary}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "pointer", &s, "within", struct{ S Secret }{s})
	marshalled, err := json.Marshal(struct{ S *Secret }{&s})
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{log.String(), string(marshalled), fmt.Sprint(s, &s), fmt.Sprintf("%v %+v %#v %s %q %x", s, s, s, s, s, s), fmt.Sprintf("%+v", struct{ S Secret }{s})} {
		if strings.Contains(shown, canary) || strings.Contains(shown, fmt.Sprintf("%x", canary)) {
			t.Errorf("shown: %s", shown)
		}
	}
	public, ring, _ := keys(t)
	of := Of{Team: "t", Source: "s", Kind: "k", Version: 1}
	blob, err := public.SealSecret(of, s)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := ring.OpenSecret(of, blob)
	if err != nil || opened.Values["token"] != canary || opened.Passphrase != canary || opened.PrivateKeyPEM != canary || opened.CertificatePEM != canary || opened.CAPEM != canary {
		t.Errorf("what was sealed is not what is opened: %v", err)
	}
}
