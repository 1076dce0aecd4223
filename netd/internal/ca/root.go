package ca

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

// Root is what sandboxes' keys are derived from. It does not change and may be used by
// many at once.
//
// It may have several secrets, of which the newest is in use. So that what believes the
// authority of an older one goes on doing so, each signs the next one's authority, and
// an answer carries the chain; what is told whom to believe from then on is told all.
type Root struct{ secrets []sealed.AuthorityRoot }

const keyBytes = 32

// NewRoot makes the root that all netds with the same secrets have, the newest last.
func NewRoot(secrets []sealed.AuthorityRoot) (*Root, error) {
	if len(secrets) == 0 {
		return nil, errors.New("sandboxes' authorities have no root")
	}
	return &Root{secrets}, nil
}

// NewLoneRoot makes a root that ends with this process: what sandboxes believe then is
// another one's.
func NewLoneRoot() *Root {
	secret := make([]byte, keyBytes)
	rand.Read(secret) //nolint:errcheck // never fails
	return &Root{[]sealed.AuthorityRoot{{Number: 1, Secret: secret}}}
}

// signer derives the key of a sandbox's authority. A text that is no key of the curve,
// one in 2^32, is followed by the next.
func signer(root sealed.AuthorityRoot, id sandbox.ID) (*ecdsa.PrivateKey, error) {
	var failed error
	for try := range 8 {
		text, err := derive(root, fmt.Sprintf("certificates %d", try), id)
		if err != nil {
			return nil, err
		}
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), text)
		clear(text)
		if err == nil {
			return key, nil
		}
		failed = err
	}
	return nil, fmt.Errorf("making the key of %s's authority: %w", id, failed)
}

// HostKey is the key with which a sandbox is answered over SSH. There is one: ssh reads
// whom to believe each time it begins.
func (r *Root) HostKey(id sandbox.ID) (ed25519.PrivateKey, error) {
	seed, err := derive(r.secrets[len(r.secrets)-1], "ssh host", id)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	return ed25519.NewKeyFromSeed(seed), nil
}

func derive(root sealed.AuthorityRoot, purpose string, id sandbox.ID) ([]byte, error) {
	return hkdf.Key(sha256.New, root.Secret, nil, "s0 "+purpose+" "+string(id), keyBytes)
}
