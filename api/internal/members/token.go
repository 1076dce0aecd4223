package members

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"time"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodecert"
)

// A token is `s0n_<16 hex digits>_<40 hex digits>`: the first are public and find it, the
// others, 160 bits, are the secret.
var tokenPattern = regexp.MustCompile(`^s0n_([0-9a-f]{16})_[0-9a-f]{40}$`)

// Bounds of a token.
const (
	MaxTokenUses = 10_000
	MaxTokenLife = 90 * 24 * time.Hour
)

// NewToken makes a token that admits so many nodes for so long, or one node of a name.
func NewToken(ctx context.Context, s *store.Store, node string, uses int, life time.Duration) (token string, until time.Time, err error) {
	if uses < 1 || uses > MaxTokenUses || life <= 0 || life > MaxTokenLife {
		return "", until, errdefs.New(errdefs.InvalidArgument, "a token admits 1 to %d nodes, for at most %s", MaxTokenUses, MaxTokenLife)
	}
	if node != "" {
		if err := nodecert.ValidNode(node); err != nil {
			return "", until, errdefs.New(errdefs.InvalidArgument, "%v", err)
		}
	}
	random := make([]byte, 28)
	rand.Read(random) //nolint:errcheck // never fails
	digits := hex.EncodeToString(random)
	token = "s0n_" + digits[:16] + "_" + digits[16:]
	id, secret, _ := splitToken(token)
	audit.Resource(ctx, id)
	until, err = s.PutNodeToken(ctx, store.NodeToken{ID: id, Secret: secret, Node: node, Uses: uses, Life: life})
	return token, until, err
}

// splitToken answers what finds a token, and its hash.
func splitToken(token string) (id string, secret []byte, ok bool) {
	found := tokenPattern.FindStringSubmatch(token)
	if found == nil {
		return "", nil, false
	}
	sum := sha256.Sum256([]byte(token))
	return found[1], sum[:], true
}
