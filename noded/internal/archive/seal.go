package archive

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// How an image is sealed.
//
// Every upload has 128 random bits for a name and a key of its own, derived from them
// and the operator's key by HKDF-SHA256. The nonce of an object is what it is, chunk
// or manifest, and its number. An upload seals each of its objects once, what is sent
// again is the same bytes, and an upload that was cut off is begun anew under another
// name: so no nonce is ever used twice with a key, whoever crashes when.
//
// Associated with each object are the team, the sandbox and its generation or the snapshot,
// the upload, which chunk of how many it is, and the format. An object that was swapped, moved to
// another image or left off, or an image that is offered as another's, does not open
// (G11). The manifest, sealed in the same way, binds the chunks to files and has the
// digest of each chunk's data, so that what is written to a disk is what was read from
// one, whatever lies between.
//
// The manifest begins in the clear with the format, the id of the key and the name of
// the upload:
//
//	"s0image1" | key id, 8 bytes | upload, 16 bytes | sealed JSON of manifest
const format = "s0image1"

const (
	uploadBytes = 16
	headerBytes = len(format) + keyIDBytes + uploadBytes

	// maxManifest and maxChunk bound what is read for one.
	maxManifest = 32 << 20
	maxChunk    = chunkBytes + 64<<10
)

// What a nonce and the associated data begin with.
const (
	kindChunk    = 1
	kindManifest = 2
)

// upload names one attempt to store an image.
type upload [uploadBytes]byte

func newUpload() (u upload) {
	_, _ = rand.Read(u[:]) // never fails
	return u
}

func parseUpload(s string) (u upload, err error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != uploadBytes {
		return u, errors.New("not the name of an upload")
	}
	return upload(raw), nil
}

func (u upload) String() string { return hex.EncodeToString(u[:]) }
func (u upload) key() string    { return uploadsPrefix + u.String() }

type digest [sha256.Size]byte

func sum(data []byte) digest { return sha256.Sum256(data) }

// MarshalText implements encoding.TextMarshaler.
func (d digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *digest) UnmarshalText(b []byte) error {
	if len(b) != 2*len(d) {
		return errors.New("not a digest")
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// manifest is what an image consists of.
type manifest struct {
	ChunkBytes int             `json:"chunk_bytes"`
	Bytes      int64           `json:"bytes"` // of the stream
	Sums       []digest        `json:"sums"`  // SHA-256 of each chunk of it
	Entries    []entry         `json:"entries"`
	About      json.RawMessage `json:"about"`
}

// sealer seals and opens the objects of one upload.
type sealer struct {
	ref    Ref
	upload upload
	keyID  keyID
	aead   cipher.AEAD
}

// sealer makes the one of an upload that begins.
func (k Keys) sealer(ref Ref, u upload) sealer { return newSealer(k.all[0], ref, u) }

func newSealer(k key, ref Ref, u upload) sealer {
	derived, err := hkdf.Key(sha256.New, k.secret[:], u[:], "s0 image 1", keyBytes)
	if err != nil {
		panic(err) // only for lengths that no caller can choose
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return sealer{ref: ref, upload: u, keyID: k.id, aead: aead}
}

func nonce(kind byte, n int) []byte {
	b := make([]byte, 12)
	b[0] = kind
	binary.BigEndian.PutUint64(b[4:], uint64(n))
	return b
}

// bound is the associated data of an object. Each name comes with its length, so that
// no two places have the same.
func (s sealer) bound(kind byte, n, of int) []byte {
	b := append([]byte(format), kind)
	for _, name := range []string{s.ref.Team, string(s.ref.Sandbox), string(s.upload[:])} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
		b = append(b, name...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(s.ref.Generation))
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	b = binary.BigEndian.AppendUint64(b, uint64(of))
	return append(b, s.ref.Snapshot...) // there is no sandbox then, which no sandbox's image lacks
}

// sealChunk and openChunk work in place, for chunks are most of what is in memory.
func (s sealer) sealChunk(n, of int, data []byte) []byte {
	return s.aead.Seal(data[:0], nonce(kindChunk, n), data, s.bound(kindChunk, n, of))
}

func (s sealer) openChunk(n, of int, b []byte) ([]byte, error) {
	return s.aead.Open(b[:0], nonce(kindChunk, n), b, s.bound(kindChunk, n, of))
}

func (s sealer) sealManifest(m manifest) ([]byte, error) {
	plain, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	b := append([]byte(format), s.keyID[:]...)
	b = append(b, s.upload[:]...)
	b = s.aead.Seal(b, nonce(kindManifest, 0), plain, s.bound(kindManifest, 0, 0))
	if len(b) > maxManifest {
		return nil, fmt.Errorf("a manifest of %d bytes, want at most %d", len(b), maxManifest)
	}
	return b, nil
}

// splitManifest reads what of a manifest is in the clear, and proves nothing.
func splitManifest(b []byte) (id keyID, u upload, sealed []byte, err error) {
	if len(b) < headerBytes || string(b[:len(format)]) != format {
		return id, u, nil, fmt.Errorf("%w: it has no manifest of ours", ErrDamaged)
	}
	b = b[len(format):]
	return keyID(b[:keyIDBytes]), upload(b[keyIDBytes : keyIDBytes+uploadBytes]), b[keyIDBytes+uploadBytes:], nil
}

// openManifest opens and checks the manifest of an image.
func (k Keys) openManifest(ref Ref, b []byte) (manifest, sealer, error) {
	id, u, sealed, err := splitManifest(b)
	if err != nil {
		return manifest{}, sealer{}, err
	}
	key, ok := k.find(id)
	if !ok {
		return manifest{}, sealer{}, fmt.Errorf("%w: it was sealed with key %x, which this node does not have", ErrDamaged, id)
	}
	s := newSealer(key, ref, u)
	plain, err := s.aead.Open(nil, nonce(kindManifest, 0), sealed, s.bound(kindManifest, 0, 0))
	if err != nil {
		return manifest{}, sealer{}, fmt.Errorf("%w: its manifest can't be opened as this image's", ErrDamaged)
	}
	var m manifest
	if err := json.Unmarshal(plain, &m); err != nil {
		return manifest{}, sealer{}, fmt.Errorf("%w: its manifest: %w", ErrDamaged, err)
	}
	if m.ChunkBytes != chunkBytes {
		return manifest{}, sealer{}, fmt.Errorf("its chunks have %d bytes: this version reads %d", m.ChunkBytes, chunkBytes)
	}
	return m, s, nil
}

// What a chunk begins with.
const (
	asIs       = 0
	compressed = 1
)

// compress packs a chunk, unless that gains less than an eighth.
func (a *Archive) compress(data []byte) []byte {
	packed := a.compressor.EncodeAll(data, append(make([]byte, 0, len(data)/2+64), compressed))
	if len(packed) > len(data)/8*7 {
		return append([]byte{asIs}, data...)
	}
	return packed
}

func (a *Archive) expand(packed []byte) ([]byte, error) {
	if len(packed) == 0 {
		return nil, errors.New("an empty chunk")
	}
	switch packed[0] {
	case asIs:
		return packed[1:], nil
	case compressed:
		return a.expander.DecodeAll(packed[1:], make([]byte, 0, chunkBytes))
	}
	return nil, errors.New("a chunk packed in an unknown way")
}
