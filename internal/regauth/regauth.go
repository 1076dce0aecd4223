// Package regauth makes and checks credentials of the machine's own image
// registry.
//
// A credential is a grant, signed: who may push and pull below which names, until
// when. The API server signs with a key that the registry shares; the registry
// checks without asking anybody. Neither keeps what was given out, so a grant
// that should end early ends with its key: grants to people are short.
package regauth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// PublicPrefix begins the names of images that every team may use: the
// operator's own.
const PublicPrefix = "s0"

// teamDigits is how much of a team's hash its prefix shows, unless another team
// has the same: the contract's eight.
const teamDigits = 8

// TeamPrefix begins the names of a team's images: t- and the first eight hex
// digits of the SHA-1 of its id.
func TeamPrefix(team string) string { return LongTeamPrefix(team, teamDigits) }

// LongTeamPrefix is a prefix with more digits, for a team whose short one is
// another's.
func LongTeamPrefix(team string, digits int) string {
	sum := sha1.Sum([]byte(team))
	return "t-" + hex.EncodeToString(sum[:])[:digits]
}

// Below says whether a repository lies below a prefix, as a folder does.
func Below(repository, prefix string) bool { return strings.HasPrefix(repository, prefix+"/") }

// Everything is the prefix that every name is below.
const Everything = "*"

// Grant is what a credential allows.
type Grant struct {
	User    string    `json:"user"`            // the name it is used with
	Push    []string  `json:"push,omitempty"`  // prefixes
	Pull    []string  `json:"pull,omitempty"`  // prefixes; what may be pushed may be pulled
	Admin   bool      `json:"admin,omitempty"` // may say which images are in use
	Expires time.Time `json:"exp,omitzero"`    // zero: never
}

// MayPush says whether the grant lets a repository be written.
func (g Grant) MayPush(repository string) bool { return anyAbove(g.Push, repository) }

// MayPull says whether the grant lets a repository be read.
func (g Grant) MayPull(repository string) bool {
	return anyAbove(g.Pull, repository) || g.MayPush(repository)
}

func anyAbove(prefixes []string, repository string) bool {
	for _, p := range prefixes {
		if p == Everything || Below(repository, p) {
			return true
		}
	}
	return false
}

// Team is the grant of a team: its own below its prefix, and the public ones to read.
func Team(prefix string, expires time.Time) Grant {
	return Grant{User: prefix, Push: []string{prefix}, Pull: []string{PublicPrefix}, Expires: expires}
}

// Node is the grant of a node: it pulls what templates name, which the API server
// has checked.
func Node() Grant { return Grant{User: "node", Pull: []string{Everything}} }

// Server is the grant of the API server, for images it makes itself and for
// telling which are in use.
func Server(expires time.Time) Grant {
	return Grant{User: "server", Push: []string{Everything}, Admin: true, Expires: expires}
}

const keyBytes = 32

// Key signs and checks. Its text is never told.
type Key struct{ bytes [keyBytes]byte }

// String implements fmt.Stringer, which logs print too.
func (Key) String() string { return "REDACTED" }

// GoString implements fmt.GoStringer.
func (Key) GoString() string { return "REDACTED" }

// NewKey makes a key from 32 bytes.
func NewKey(raw []byte) (Key, error) {
	var k Key
	if len(raw) != keyBytes {
		return k, fmt.Errorf("registry key of %d bytes, want %d", len(raw), keyBytes)
	}
	copy(k.bytes[:], raw)
	return k, nil
}

// LoadKey reads a key from a file, which is made when there is none.
func LoadKey(path string) (Key, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return Key{}, fmt.Errorf("making the registry key: %w", err)
		}
		info, err = os.Stat(path)
	}
	if err != nil {
		return Key{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return Key{}, fmt.Errorf("registry key %s: others may read it (mode %04o); chmod 600 it", path, info.Mode().Perm())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return Key{}, err
	}
	return NewKey(raw)
}

// makeKey writes the key aside and links it into place: two servers that start
// at once have one key.
func makeKey(path string) error {
	var raw [keyBytes]byte
	_, _ = rand.Read(raw[:]) // never fails
	f, err := os.CreateTemp(filepath.Dir(path), ".registry-key-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(raw[:])
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Link(f.Name(), path)
	}
	return err
}

// context keeps our signatures apart from whatever else a key may sign.
const context = "s0 registry grant 1\n"

func (k Key) sum(body string) []byte {
	h := hmac.New(sha256.New, k.bytes[:])
	h.Write([]byte(context))
	h.Write([]byte(body))
	return h.Sum(nil)
}

var encoding = base64.RawURLEncoding

// Sign makes the password that goes with a grant's User.
func (k Key) Sign(g Grant) string {
	raw, _ := json.Marshal(g) // strings, a bool and a time: it can't fail
	body := encoding.EncodeToString(raw)
	return body + "." + encoding.EncodeToString(k.sum(body))
}

// Why a credential is refused.
var (
	ErrInvalid = errors.New("the credential is not one of this registry's")
	ErrExpired = errors.New("the credential has expired: get a new one with `s0 template image credentials`")
)

// maxPasswordBytes bounds what is looked at.
const maxPasswordBytes = 4 << 10

// Open checks a credential at a time.
func (k Key) Open(user, password string, now time.Time) (Grant, error) {
	body, mac, ok := strings.Cut(password, ".")
	if !ok || len(password) > maxPasswordBytes {
		return Grant{}, ErrInvalid
	}
	sum, err := encoding.DecodeString(mac)
	if err != nil || !hmac.Equal(sum, k.sum(body)) {
		return Grant{}, ErrInvalid
	}
	raw, err := encoding.DecodeString(body)
	if err != nil {
		return Grant{}, ErrInvalid
	}
	var g Grant
	if err := json.Unmarshal(raw, &g); err != nil || g.User != user {
		return Grant{}, ErrInvalid
	}
	if !g.Expires.IsZero() && now.After(g.Expires) {
		return Grant{}, ErrExpired
	}
	return g, nil
}
