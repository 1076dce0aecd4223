package nodecert

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
)

// A node's own files: its key and certificate in one, so that they never differ, and
// whom it believes.
const (
	nodeFile  = "node.pem"
	trustFile = "ca.crt"
)

// Save keeps a node's credentials in a directory. Whom to believe comes first: an older
// certificate goes on with it.
func (c *Credentials) Save(dir string) error {
	key, ok := c.Cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return errors.New("no ECDSA key")
	}
	text, err := MarshalKey(key)
	if err != nil {
		return err
	}
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: certType, Bytes: c.Cert.Leaf.Raw})...)
	if err := WriteFile(filepath.Join(dir, trustFile), c.Trust.PEM, 0o644); err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, nodeFile), text, 0o600)
}

// Load reads a node's credentials: those that [Credentials.Save] kept, or that an
// operator made. They may be used up: then the error says so and the key is still
// worth something.
func Load(dir, cluster, node string) (*Credentials, *ecdsa.PrivateKey, error) {
	text, err := readFile(filepath.Join(dir, nodeFile))
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is damaged", filepath.Join(dir, nodeFile))
	}
	trust, _, err := ReadTrust(filepath.Join(dir, trustFile))
	if err != nil {
		return nil, key, err
	}
	var answer Answer
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == certType && answer.Certificate == nil {
			answer.Certificate = bytes.Clone(block.Bytes)
		}
	}
	answer.Authorities = trust.PEM
	c, err := answer.Take(key, cluster, node)
	return c, key, err
}

// SaveKey keeps a key before it is asked to be certified: an answer that is lost leaves
// who asks again the same node.
func SaveKey(dir string, key *ecdsa.PrivateKey) error {
	text, err := MarshalKey(key)
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, nodeFile), text, 0o600)
}
