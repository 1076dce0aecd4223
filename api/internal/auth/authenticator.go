package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/singleflight"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	// cacheLife bounds how long a key that was revoked can go on while nobody
	// can tell this replica: the database is away, and running sandboxes shall
	// stay usable (X34).
	cacheLife     = 60 * time.Second
	cacheEntries  = 10_000
	lookupTimeout = 3 * time.Second
)

// keyStore is where API keys are kept.
type keyStore interface {
	// APIKeyByPrefix fails with NotFound for a prefix that no key has.
	APIKeyByPrefix(ctx context.Context, prefix string) (store.APIKey, error)
	TouchAPIKey(ctx context.Context, team, id uuid.UUID) error
}

// Authenticator verifies tokens. It is safe for concurrent use.
type Authenticator struct {
	signer  *Signer
	keys    keyStore
	lookups singleflight.Group

	mu    sync.RWMutex
	cache map[[sha256.Size]byte]cached // by the hash of the whole key
	epoch uint64                       // counts Forget: what was read before is not cached after
}

type cached struct {
	id    Identity
	until time.Time
}

// NewAuthenticator makes an Authenticator.
func NewAuthenticator(signer *Signer, keys keyStore) *Authenticator {
	return &Authenticator{signer: signer, keys: keys, cache: map[[sha256.Size]byte]cached{}}
}

// Known verifies a token from memory alone: an access token, or a key that was
// verified lately. It reports false for a key that has to be looked up.
func (a *Authenticator) Known(token string) (id Identity, known bool, err error) {
	if len(token) > maxTokenBytes {
		return Identity{}, true, ErrUnauthenticated
	}
	if !isAPIKey(token) {
		id, err = a.signer.verify(token)
		return id, true, err
	}
	sum := sha256.Sum256([]byte(token))
	a.mu.RLock()
	c, ok := a.cache[sum]
	a.mu.RUnlock()
	if !ok || time.Now().After(c.until) {
		return Identity{}, false, nil
	}
	return c.id, true, nil
}

// MayBeOurs reports whether a token looks like an API key or is an access token
// that holds: what must not be passed on to anybody.
func (a *Authenticator) MayBeOurs(token string) bool {
	_, known, err := a.Known(token)
	return isAPIKey(token) || known && err == nil
}

// Lookup verifies an API key against the store and remembers it. Many callers
// with one key share one lookup.
func (a *Authenticator) Lookup(ctx context.Context, token string) (Identity, error) {
	prefix, ok := keyPrefix(token)
	if !ok {
		return Identity{}, ErrUnauthenticated
	}
	sum := sha256.Sum256([]byte(token))
	found := a.lookups.DoChan(hex.EncodeToString(sum[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTimeout)
		defer cancel()
		return a.lookup(ctx, prefix, sum)
	})
	select {
	case r := <-found:
		if r.Err != nil {
			return Identity{}, r.Err
		}
		return r.Val.(Identity), nil
	case <-ctx.Done():
		return Identity{}, ctx.Err()
	}
}

// lookup does the same work whether the prefix exists or not (A04).
func (a *Authenticator) lookup(ctx context.Context, prefix string, sum [sha256.Size]byte) (Identity, error) {
	a.mu.RLock()
	epoch := a.epoch
	a.mu.RUnlock()
	k, err := a.keys.APIKeyByPrefix(ctx, prefix)
	exists := err == nil
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return Identity{}, err
	}
	stored := make([]byte, sha256.Size)
	copy(stored, k.Hash)
	matches := subtle.ConstantTimeCompare(stored, sum[:]) == 1
	if !exists || !matches || !k.Active || k.Expired {
		return Identity{}, ErrUnauthenticated.WithCause(errors.New("API key does not hold"))
	}
	id := Identity{UserID: k.CreatedBy, KeyID: k.ID, key: keyIdentity{team: k.TeamID, roles: k.Roles, platform: k.Scope == ScopePlatform}}
	if id.key.platform {
		id.key.roles = []string{RoleAdmin}
	}
	a.remember(sum, id, k.ExpiresAt, epoch)
	_ = a.keys.TouchAPIKey(ctx, k.TeamID, k.ID) // for people to read; nothing depends on it
	return id, nil
}

// The scopes of API keys: of one team, or of the whole system.
const (
	ScopeTeam     = "team"
	ScopePlatform = "platform"
)

func (a *Authenticator) remember(sum [sha256.Size]byte, id Identity, expires *time.Time, epoch uint64) {
	until := time.Now().Add(cacheLife)
	if expires != nil && expires.Before(until) {
		until = *expires
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.epoch != epoch {
		return // a key changed while this one was read: it may be stale
	}
	if len(a.cache) >= cacheEntries {
		clear(a.cache) // rare, and each key is one read away
	}
	a.cache[sum] = cached{id: id, until: until}
}

// Forget drops every key from memory: one of them has changed somewhere.
func (a *Authenticator) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.epoch++
	clear(a.cache)
}
