package archive

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	keyBytes   = 32
	keyIDBytes = 8
	maxKeys    = 64
)

// keyID tells keys apart without telling anything about them.
type keyID [keyIDBytes]byte

type key struct {
	id     keyID
	secret [keyBytes]byte
}

// Keys seal and open images. The first seals; the others are older ones, of images
// that are still there. Their text is never told.
type Keys struct{ all []key }

// String implements fmt.Stringer, which logs print too.
func (Keys) String() string { return "REDACTED" }

// GoString implements fmt.GoStringer.
func (Keys) GoString() string { return "REDACTED" }

// LoadKeys reads a file with one key a line, 64 hexadecimal digits. Every node that
// shall open what another one has stored needs the same.
func LoadKeys(path string) (Keys, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Keys{}, fmt.Errorf("object key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return Keys{}, fmt.Errorf("object key %s: others may read it (mode %04o); chmod 600 it", path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Keys{}, fmt.Errorf("object key: %w", err)
	}
	keys, err := parseKeys(b)
	if err != nil {
		return Keys{}, fmt.Errorf("object key %s: %w", path, err)
	}
	return keys, nil
}

func parseKeys(b []byte) (Keys, error) {
	var keys Keys
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		raw, err := hex.DecodeString(line)
		if err != nil || len(raw) != keyBytes || len(keys.all) == maxKeys {
			return Keys{}, fmt.Errorf("want a line of %d hexadecimal digits for each of at most %d keys", 2*keyBytes, maxKeys)
		}
		k := key{secret: [keyBytes]byte(raw)}
		id, err := hkdf.Key(sha256.New, raw, nil, "s0 object key id", keyIDBytes)
		if err != nil {
			return Keys{}, err
		}
		k.id = keyID(id)
		keys.all = append(keys.all, k)
	}
	if len(keys.all) == 0 {
		return Keys{}, errors.New("it holds no key")
	}
	return keys, nil
}

// find returns the key with an id.
func (k Keys) find(id keyID) (key, bool) {
	for _, key := range k.all {
		if key.id == id {
			return key, true
		}
	}
	return key{}, false
}

// MakeKey writes a file with a new key, unless there is a file. It is written aside and
// linked into place: two that start at once have one key.
func MakeKey(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var raw [keyBytes]byte
	_, _ = rand.Read(raw[:]) // never fails
	f, err := os.CreateTemp(filepath.Dir(path), ".object-key-")
	if err != nil {
		return fmt.Errorf("making an object key: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = fmt.Fprintf(f, "%x\n", raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Link(f.Name(), path)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making an object key: %w", err)
	}
	return syncDir(filepath.Dir(path))
}
