package ca

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"s0.run/internal/sandbox"
)

// A Deriver makes the same secret for the same purpose wherever it is asked.
type Deriver interface {
	Derive(purpose string, length int) ([]byte, error)
}

// Root is what sandboxes' keys are derived from. It does not change and may be used by
// many at once.
type Root struct{ secret []byte }

const (
	rootPurpose = "sandbox authorities"
	rootBytes   = 32
)

// NewRoot makes the root that all netds with the same keys have.
func NewRoot(keys Deriver) (*Root, error) {
	secret, err := keys.Derive(rootPurpose, rootBytes)
	return &Root{secret}, err
}

// NewLoneRoot makes a root that ends with this process: what sandboxes believe then is
// another one's.
func NewLoneRoot() *Root {
	secret := make([]byte, rootBytes)
	rand.Read(secret) //nolint:errcheck // never fails
	return &Root{secret}
}

// signer derives the key of a sandbox's authority. A text that is no key of the curve,
// one in 2^32, is followed by the next.
func (r *Root) signer(id sandbox.ID) (*ecdsa.PrivateKey, error) {
	var failed error
	for try := range 8 {
		text, err := r.derive(fmt.Sprintf("certificates %d", try), id)
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

// HostKey is the key with which a sandbox is answered over SSH.
func (r *Root) HostKey(id sandbox.ID) (ed25519.PrivateKey, error) {
	seed, err := r.derive("ssh host", id)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	return ed25519.NewKeyFromSeed(seed), nil
}

func (r *Root) derive(purpose string, id sandbox.ID) ([]byte, error) {
	return hkdf.Key(sha256.New, r.secret, nil, "s0 "+purpose+" "+string(id), rootBytes)
}
