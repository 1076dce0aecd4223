package netdapi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Digest tells policies apart.
func (p Policy) Digest() string {
	b, err := json.Marshal(p)
	if err != nil {
		b = p.Policy // not JSON: netd refuses it anyway
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
