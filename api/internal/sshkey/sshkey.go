// Package sshkey reads the public keys that people give: one line of an
// authorized_keys file each. It is pure. It takes keys that are safe to trust and
// nothing else: no certificates, no options, no key that is short or of a broken
// kind; and it never repeats what it was given, which may be a private key.
package sshkey

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"strings"
	"unicode"

	"golang.org/x/crypto/ssh"
)

const (
	maxBytes        = 16 << 10
	maxCommentBytes = 256
	minRSABits      = 2048
	maxRSABits      = 16384 // more would cost whoever verifies with it
)

// Key is a public key.
type Key struct {
	Line        string // type and base64
	Type        string
	Fingerprint string // SHA256:…
	Comment     string
}

// allowed are the kinds of keys that sign as strongly as people expect.
var allowed = map[string]bool{
	ssh.KeyAlgoED25519: true, ssh.KeyAlgoSKED25519: true, ssh.KeyAlgoRSA: true,
	ssh.KeyAlgoECDSA256: true, ssh.KeyAlgoECDSA384: true, ssh.KeyAlgoECDSA521: true, ssh.KeyAlgoSKECDSA256: true,
}

// Parse reads a public key. Its errors are meant for who gave it.
func Parse(text string) (Key, error) {
	line := []byte(strings.TrimSpace(text))
	switch {
	case len(line) > maxBytes:
		return Key{}, errors.New("public_key is too long")
	case bytes.Contains(line, []byte("PRIVATE KEY")):
		return Key{}, errors.New("public_key is a private key: keep it to yourself, and give the one in the .pub file")
	case bytes.ContainsFunc(line, func(c rune) bool { return unicode.IsControl(c) && c != '\t' }):
		return Key{}, errors.New("public_key must be one line of an authorized_keys file")
	}
	key, comment, options, _, err := ssh.ParseAuthorizedKey(line)
	switch {
	case err != nil:
		return Key{}, errors.New("public_key is not a line of an authorized_keys file, such as `ssh-ed25519 AAAA… comment`")
	case len(options) > 0:
		return Key{}, errors.New("public_key must have no options")
	case !allowed[key.Type()]:
		return Key{}, errors.New("public_key is of a kind that is not accepted: use ed25519, ecdsa or rsa")
	case weak(key):
		return Key{}, errors.New("public_key: an rsa key must have 2048 to 16384 bits")
	case len(comment) > maxCommentBytes:
		return Key{}, errors.New("public_key has a comment that is too long")
	}
	return Key{
		Line: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key), Comment: comment,
	}, nil
}

func weak(key ssh.PublicKey) bool {
	crypto, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return false
	}
	k, ok := crypto.CryptoPublicKey().(*rsa.PublicKey)
	return ok && (k.N.BitLen() < minRSABits || k.N.BitLen() > maxRSABits)
}
