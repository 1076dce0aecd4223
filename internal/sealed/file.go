package sealed

import (
	"crypto/hpke"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	privateType = "S0 CREDENTIAL PRIVATE KEY"
	publicType  = "S0 CREDENTIAL PUBLIC KEY"
	privateExt  = ".key"
	publicExt   = ".pub"

	maxKeyFile = 64 << 10
)

var kem = hpke.MLKEM768X25519()

// Ensure makes a directory of keys, and the first key when there is none: the
// private part in a file that its owner alone can read, the public one in another.
// Beside it is the first [AuthorityRoot]. It answers the public key's file.
func Ensure(dir string) (publicFile string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the directory of credential keys: %w", err)
	}
	before, err := filepath.Glob(filepath.Join(dir, "*"+privateExt))
	if err != nil {
		return "", err
	}
	if publicFile, err = ensureKey(dir); err != nil {
		return "", err
	}
	return publicFile, ensureRoot(dir, len(before) == 0)
}

func ensureKey(dir string) (publicFile string, err error) {
	private, err := filepath.Glob(filepath.Join(dir, "*"+privateExt))
	if err != nil {
		return "", err
	}
	if len(private) == 0 {
		return generate(dir, 1)
	}
	slices.Sort(private)
	newest := private[len(private)-1]
	publicFile = strings.TrimSuffix(newest, privateExt) + publicExt
	if _, err := os.Stat(publicFile); !errors.Is(err, fs.ErrNotExist) {
		return publicFile, err
	}
	key, err := readPrivate(newest) // a start that broke off before the public part was written
	if err != nil {
		return "", err
	}
	return publicFile, write(publicFile, publicType, key.PublicKey().Bytes(), 0o644)
}

// Add makes one more key, which is sealed to from then on; what was sealed before
// needs the older ones. It answers the public key's file.
func Add(dir string) (publicFile string, err error) {
	if publicFile, err = Ensure(dir); err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(publicFile), publicExt))
	if err != nil {
		return "", fmt.Errorf("credential key %s: want a number for a name", publicFile)
	}
	return generate(dir, n+1)
}

// generate makes a key. Names sort by age.
func generate(dir string, n int) (publicFile string, err error) {
	key, err := kem.GenerateKey()
	if err != nil {
		return "", fmt.Errorf("making a credential key: %w", err)
	}
	secret, err := key.Bytes()
	if err != nil {
		return "", fmt.Errorf("making a credential key: %w", err)
	}
	name := filepath.Join(dir, fmt.Sprintf("%04d", n))
	if err := write(name+privateExt, privateType, secret, 0o600); err != nil {
		return "", err
	}
	publicFile = name + publicExt
	return publicFile, write(publicFile, publicType, key.PublicKey().Bytes(), 0o644)
}

// write makes a file appear whole and durable, or not at all.
func write(path, kind string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".key-")
	if err != nil {
		return fmt.Errorf("writing a credential key: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("writing credential key %s: %w", filepath.Base(path), err)
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := pem.Encode(f, &pem.Block{Type: kind, Bytes: data}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ReadPublic reads a public key's file.
func ReadPublic(path string) (*PublicKey, error) {
	data, err := read(path, publicType)
	if err != nil {
		return nil, err
	}
	key, err := kem.NewPublicKey(data)
	if err != nil {
		return nil, fmt.Errorf("credential key %s: %w", path, err)
	}
	return public(key), nil
}

// ReadKeyring reads all private keys and roots of a directory. Files that others than
// their owner can read are refused.
func ReadKeyring(dir string) (*Keyring, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+privateExt))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no credential keys (*%s) in %s", privateExt, dir)
	}
	slices.Sort(files)
	ring := &Keyring{keys: map[string]hpke.PrivateKey{}}
	for _, file := range files {
		if err := isOwners(file); err != nil {
			return nil, err
		}
		key, err := readPrivate(file)
		if err != nil {
			return nil, err
		}
		ring.keys[public(key.PublicKey()).id] = key
		if ring.oldest == nil {
			ring.oldest = key
		}
	}
	return ring, ring.readRoots(dir)
}

func readPrivate(path string) (hpke.PrivateKey, error) {
	data, err := read(path, privateType)
	if err != nil {
		return nil, err
	}
	key, err := kem.NewPrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("credential key %s is damaged", path) // the cause may quote it
	}
	return key, nil
}

func read(path, kind string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading a credential key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, fmt.Errorf("credential key %s: not a key file", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a credential key: %w", err)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != kind || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fmt.Errorf("credential key %s: want one PEM block %q", path, kind)
	}
	return block.Bytes, nil
}
