package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// An API key is `s0_<region>_<48 hex digits>`. The first 16 digits are public:
// the key is found by them. The other 128 bits are the secret.
const (
	keyScheme    = "s0_"
	keyDigits    = 48
	prefixDigits = 16
)

var keyPattern = regexp.MustCompile(`^s0_[A-Za-z0-9._-]{1,64}_[0-9a-f]{48}$`)

// APIKey is a new key: Secret is for its holder, the rest is stored.
type APIKey struct {
	Secret string
	Prefix string
	Hash   []byte
}

// NewAPIKey makes a key for a region.
func NewAPIKey(region string) APIKey {
	b := make([]byte, keyDigits/2)
	rand.Read(b) // never fails
	digits := hex.EncodeToString(b)
	secret := keyScheme + region + "_" + digits
	sum := sha256.Sum256([]byte(secret))
	return APIKey{Secret: secret, Prefix: digits[:prefixDigits], Hash: sum[:]}
}

// isAPIKey tells the two kinds of tokens apart.
func isAPIKey(token string) bool { return strings.HasPrefix(token, keyScheme) }

// keyPrefix is the public part of a key; false for what can't be a key.
func keyPrefix(token string) (string, bool) {
	if !keyPattern.MatchString(token) {
		return "", false
	}
	digits := token[len(token)-keyDigits:]
	return digits[:prefixDigits], true
}
