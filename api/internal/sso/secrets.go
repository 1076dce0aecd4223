package sso

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
)

const secretBytes = 32

// newSecret makes what a client holds and nobody can guess.
func newSecret() string {
	b := make([]byte, secretBytes)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// validSecret reports whether a secret may be one of ours.
func validSecret(s string) bool { return len(s) == base64.RawURLEncoding.EncodedLen(secretBytes) }

// hash gives what of a secret is stored: it is random enough that a plain hash
// can't be searched.
func hash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// What follows from secrets.
const (
	forNonce    = "oidc nonce"
	forVerifier = "oidc pkce verifier"
	forSeal     = "oidc device code"
)

func deriveKey(secret, purpose string) []byte {
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, purpose, secretBytes)
	if err != nil {
		panic(err) // of a length that is too large
	}
	return key
}

// derive makes another secret of a secret, which does not give it away.
func derive(secret, purpose string) string {
	return base64.RawURLEncoding.EncodeToString(deriveKey(secret, purpose))
}

func sealer(secret string) cipher.AEAD {
	block, err := aes.NewCipher(deriveKey(secret, forSeal))
	if err != nil {
		panic(err) // of a length that is none
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // of another block size than AES's
	}
	return aead
}

// seal hides text from everybody who does not have the secret.
func seal(secret, text string) []byte { return sealer(secret).Seal(nil, nil, []byte(text), nil) }

var errSeal = errors.New("a sealed code does not open")

func unseal(secret string, sealed []byte) (string, error) {
	text, err := sealer(secret).Open(nil, nil, sealed, nil)
	if err != nil {
		return "", errSeal
	}
	return string(text), nil
}
