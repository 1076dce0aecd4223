package sealed

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	rootType = "S0 AUTHORITY ROOT"
	rootExt  = ".root"

	rootBytes = 32
	// maxRoots bounds what an answer to a sandbox carries of its roots' certificates.
	maxRoots = 4
	// firstRoot is made of the oldest credential key where that was all there was.
	firstRoot = "s0 derived v1 sandbox authorities"
)

// AuthorityRoot is a secret that sandboxes' authorities are derived from, the same on
// all nodes. Its number is its age's and stays when an older one is taken away.
type AuthorityRoot struct {
	Number int
	Secret []byte
}

// AddRoot makes one more root in a directory of keys: authorities are derived from it
// from then on, and answer for the older ones' as long as those files stay. It answers
// the file.
func AddRoot(dir string) (file string, err error) {
	if _, err := Ensure(dir); err != nil {
		return "", err
	}
	files, err := rootFiles(dir)
	if err != nil {
		return "", err
	}
	if len(files) >= maxRoots {
		return "", fmt.Errorf("%s has %d authority roots: take the oldest away first", dir, len(files))
	}
	newest, err := rootNumber(files[len(files)-1])
	if err != nil {
		return "", err
	}
	return newRoot(dir, newest+1)
}

// ensureRoot makes sure of a first root: of a new directory a random one, of one that
// has done without what its keys stood for.
func ensureRoot(dir string, fresh bool) error {
	files, err := rootFiles(dir)
	if err != nil || len(files) > 0 {
		return err
	}
	if fresh {
		_, err := newRoot(dir, 1)
		return err
	}
	ring, err := ReadKeyring(dir)
	if err != nil {
		return err
	}
	return write(rootFile(dir, 1), rootType, ring.roots[0].Secret, 0o600)
}

func newRoot(dir string, n int) (file string, err error) {
	secret := make([]byte, rootBytes)
	rand.Read(secret) //nolint:errcheck // never fails
	file = rootFile(dir, n)
	return file, write(file, rootType, secret, 0o600)
}

func rootFile(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("%04d%s", n, rootExt)) }

// rootFiles are in the order of their age, for names sort so.
func rootFiles(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+rootExt))
	slices.Sort(files)
	return files, err
}

func rootNumber(file string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(file), rootExt))
	if err != nil || n < 1 {
		return 0, fmt.Errorf("authority root %s: want a number for a name", file)
	}
	return n, nil
}

// readRoots reads those of a directory, or makes the first of its oldest key where
// nobody has made one.
func (r *Keyring) readRoots(dir string) error {
	files, err := rootFiles(dir)
	if err != nil {
		return err
	}
	if len(files) > maxRoots {
		return fmt.Errorf("%s has %d authority roots, and %d can be", dir, len(files), maxRoots)
	}
	for _, file := range files {
		root, err := readRoot(file)
		if err != nil {
			return err
		}
		r.roots = append(r.roots, root)
	}
	if len(files) > 0 {
		return nil
	}
	secret, err := r.oldest.Bytes()
	if err != nil {
		return errors.New("deriving an authority root: the credential key has no bytes")
	}
	defer clear(secret)
	derived, err := hkdf.Key(sha256.New, secret, nil, firstRoot, rootBytes)
	r.roots = []AuthorityRoot{{Number: 1, Secret: derived}}
	return err
}

func readRoot(file string) (root AuthorityRoot, err error) {
	if root.Number, err = rootNumber(file); err != nil {
		return root, err
	}
	if err := isOwners(file); err != nil {
		return root, err
	}
	if root.Secret, err = read(file, rootType); err == nil && len(root.Secret) != rootBytes {
		err = fmt.Errorf("authority root %s: want %d bytes", file, rootBytes)
	}
	return root, err
}

// isOwners refuses files that others than their owner can read.
func isOwners(file string) error {
	info, err := os.Stat(file)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("credential key %s can be read by others than its owner: chmod 600", file)
	}
	return err
}

// Roots are what sandboxes' authorities are derived from, the one in use last. They are
// not to be changed.
func (r *Keyring) Roots() []AuthorityRoot { return r.roots }
