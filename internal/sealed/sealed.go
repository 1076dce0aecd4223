// Package sealed keeps credentials from everybody but netd, and those of buckets that are
// volumes from everybody but volumed.
//
// A secret is sealed to a public key the moment the API server is told it; the
// private key is a file that these two alone read. What lies in the database, in
// backups, in journals and on the wire between the daemons is the [Blob], which
// who has all of those and the public key can't open. HPKE (RFC 9180) with
// ML-KEM-768 and X25519, HKDF-SHA256 and AES-256-GCM: each blob has a data key of
// its own, and what it belongs to ([Of]) is bound to it, so that a blob that is
// moved to another team, name, kind or version does not open.
//
// Keys have ids, and netd may have several: a new one is for what is sealed from
// then on, an old one stays until nothing names it. Beside them, in files of their
// own, are the roots of sandboxes' authorities ([AuthorityRoot]). The package reads and makes key
// files and holds no state; it never logs, and its errors say nothing of secrets.
package sealed

import (
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// MaxPlain bounds what is sealed, and MaxBlob what that becomes.
const (
	MaxPlain = 64 << 10
	MaxBlob  = MaxPlain + 2<<10
)

// label separates these blobs from whatever else such a key might be used for.
const label = "s0 credential v1"

// Of is what a blob belongs to. All of it is bound.
type Of struct {
	Team    string
	Source  string
	Kind    string
	Version int64
}

// Blob is a sealed secret; Key names what opens it.
type Blob struct {
	Key  string `json:"key"`
	Data []byte `json:"data"`
}

// PublicKey seals.
type PublicKey struct {
	id  string
	key hpke.PublicKey
}

// Keyring opens. It does not change and may be used by many at once.
type Keyring struct {
	keys   map[string]hpke.PrivateKey
	oldest hpke.PrivateKey
	roots  []AuthorityRoot
}

// ErrOpen is what opening ends in, whatever was wrong: another's blob, another
// key's, or one that was changed.
var ErrOpen = errors.New("a sealed credential does not open")

// ID names a key: part of its hash.
func (k *PublicKey) ID() string { return k.id }

// Seal seals a secret.
func (k *PublicKey) Seal(of Of, plain []byte) (Blob, error) {
	if len(plain) > MaxPlain {
		return Blob{}, fmt.Errorf("sealing a credential: more than %d bytes", MaxPlain)
	}
	data, err := hpke.Seal(k.key, hpke.HKDFSHA256(), hpke.AES256GCM(), of.info(), plain)
	if err != nil {
		return Blob{}, fmt.Errorf("sealing a credential: %w", err)
	}
	return Blob{Key: k.id, Data: data}, nil
}

// Open opens a blob that belongs to what the caller says.
func (r *Keyring) Open(of Of, b Blob) ([]byte, error) {
	key := r.keys[b.Key]
	if key == nil || len(b.Data) > MaxBlob {
		return nil, ErrOpen
	}
	plain, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), of.info(), b.Data)
	if err != nil {
		return nil, ErrOpen
	}
	return plain, nil
}

// info is injective: each part has its length before it.
func (of Of) info() []byte {
	out := []byte(label)
	for _, part := range []string{of.Team, of.Source, of.Kind} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return binary.BigEndian.AppendUint64(out, uint64(of.Version))
}

func public(key hpke.PublicKey) *PublicKey {
	sum := sha256.Sum256(key.Bytes())
	return &PublicKey{id: hex.EncodeToString(sum[:8]), key: key}
}

// Credential is a team's credential source on its way to netd.
type Credential struct {
	Source  string `json:"source"`
	Kind    string `json:"kind"`
	Version int64  `json:"version"`
	Blob    Blob   `json:"blob"`
}
