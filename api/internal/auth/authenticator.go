package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/singleflight"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

const (
	lookupTimeout = 3 * time.Second
	// patience is how long a caller whose credential held a moment ago waits for
	// the database before that counts.
	patience = 500 * time.Millisecond
)

// records are where credentials, and what users may do, are kept.
type records interface {
	// APIKeyByPrefix fails with NotFound for a prefix that no key has.
	APIKeyByPrefix(ctx context.Context, prefix string) (store.APIKey, error)
	TouchAPIKey(ctx context.Context, team, id uuid.UUID) error
	// User fails with NotFound for a user that does not exist.
	User(ctx context.Context, id uuid.UUID) (store.User, error)
	Grants(ctx context.Context, user uuid.UUID) ([]store.Grant, error)
}

// Authenticator verifies tokens. What a user may do is what the database says,
// whatever his token was told when it was signed. It is safe for concurrent use.
type Authenticator struct {
	signer  *Signer
	records records
	lookups singleflight.Group
	keys    *memory[[sha256.Size]byte, Identity] // by the hash of the whole key
	users   *memory[uuid.UUID, Identity]         // without what is a token's own
}

// NewAuthenticator makes an Authenticator.
func NewAuthenticator(signer *Signer, r records) *Authenticator {
	return &Authenticator{signer: signer, records: r, keys: newMemory[[sha256.Size]byte, Identity](), users: newMemory[uuid.UUID, Identity]()}
}

// Known verifies a token from memory alone. It reports false for one whose key or
// user has to be looked up.
func (a *Authenticator) Known(token string) (id Identity, known bool, err error) {
	if len(token) > maxTokenBytes {
		return Identity{}, true, ErrUnauthenticated
	}
	if isAPIKey(token) {
		id, known = a.keys.get(sha256.Sum256([]byte(token)))
		return id, known, nil
	}
	c, err := a.signer.verify(token)
	if err != nil {
		return Identity{}, true, err
	}
	id, known = a.users.get(c.UserID)
	return id.with(c), known, nil
}

// Trusted reports whether a token that has to be looked up is no guess: it was
// signed by us, or it is a key that held a moment ago.
func (a *Authenticator) Trusted(token string) bool {
	if isAPIKey(token) {
		return a.keys.has(sha256.Sum256([]byte(token)))
	}
	return a.MayBeOurs(token)
}

// MayBeOurs reports whether a token looks like an API key or is an access token
// of ours: what must not be passed on to anybody.
func (a *Authenticator) MayBeOurs(token string) bool {
	if isAPIKey(token) {
		return true
	}
	_, err := a.signer.verify(token)
	return err == nil
}

// Lookup verifies a token against the store and remembers it. Many callers with
// one credential share one lookup.
func (a *Authenticator) Lookup(ctx context.Context, token string) (Identity, error) {
	if len(token) > maxTokenBytes {
		return Identity{}, ErrUnauthenticated
	}
	if !isAPIKey(token) {
		c, err := a.signer.verify(token)
		if err != nil {
			return Identity{}, err
		}
		id, err := ask(ctx, &a.lookups, a.users, c.UserID, c.UserID.String(), a.readUser)
		return id.with(c), err
	}
	prefix, ok := keyPrefix(token)
	if !ok {
		return Identity{}, ErrUnauthenticated
	}
	sum := sha256.Sum256([]byte(token))
	return ask(ctx, &a.lookups, a.keys, sum, hex.EncodeToString(sum[:]), func(ctx context.Context, sum [sha256.Size]byte) (Identity, time.Time, error) {
		return a.readKey(ctx, prefix, sum)
	})
}

// A reader reads a credential's identity, and until when it holds at most.
type reader[K any] func(context.Context, K) (Identity, time.Time, error)

// ask reads an identity into memory, once for all who ask at the same time. What
// is remembered serves while the store gives no answer, or is slow to.
func ask[K comparable](ctx context.Context, flights *singleflight.Group, m *memory[K, Identity], key K, name string, read reader[K]) (Identity, error) {
	epoch := m.now()
	answer := flights.DoChan(fmt.Sprint(name, epoch), func() (any, error) { // who asks after a change shares no older look
		ctx, cancel := context.WithTimeout(audit.Without(context.WithoutCancel(ctx)), lookupTimeout)
		defer cancel()
		return learn(ctx, m, key, epoch, read)
	})
	impatient := time.NewTimer(patience)
	defer impatient.Stop()
	for {
		select {
		case r := <-answer:
			if r.Err == nil {
				return r.Val.(Identity), nil
			}
			if known, held := m.hold(key); held {
				return known, nil
			}
			return Identity{}, r.Err
		case <-impatient.C:
			if known, held := m.hold(key); held {
				return known, nil
			}
		case <-ctx.Done():
			return Identity{}, ctx.Err()
		}
	}
}

// learn reads an identity and remembers it, or that there is none.
func learn[K comparable](ctx context.Context, m *memory[K, Identity], key K, epoch uint64, read reader[K]) (Identity, error) {
	id, until, err := read(ctx, key)
	if errdefs.Is(err, errdefs.Unauthenticated) {
		m.drop(key)
	}
	if err == nil {
		m.put(key, id, until, epoch)
	}
	return id, err
}

// readKey does the same work whether the prefix exists or not (A04).
func (a *Authenticator) readKey(ctx context.Context, prefix string, sum [sha256.Size]byte) (id Identity, until time.Time, err error) {
	k, err := a.records.APIKeyByPrefix(ctx, prefix)
	exists := err == nil
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return id, until, err
	}
	stored := make([]byte, sha256.Size)
	copy(stored, k.Hash)
	matches := subtle.ConstantTimeCompare(stored, sum[:]) == 1
	if !exists || !matches || !k.Active || k.Expired {
		return id, until, ErrUnauthenticated.WithCause(errors.New("API key does not hold"))
	}
	id = Identity{UserID: k.CreatedBy, KeyID: k.ID, key: keyIdentity{team: k.TeamID, roles: k.Roles, platform: k.Scope == ScopePlatform}}
	if id.key.platform {
		id.key.roles = []string{RoleAdmin}
	}
	if k.ExpiresAt != nil {
		until = *k.ExpiresAt
	}
	_ = a.records.TouchAPIKey(ctx, k.TeamID, k.ID) // for people to read; nothing depends on it
	return id, until, nil
}

// readUser reads what a user may do.
func (a *Authenticator) readUser(ctx context.Context, user uuid.UUID) (id Identity, until time.Time, err error) {
	u, err := a.records.User(ctx, user)
	if errdefs.Is(err, errdefs.NotFound) || err == nil && u.Disabled {
		return id, until, ErrUnauthenticated.WithCause(errors.New("the token's user is gone or disabled"))
	}
	if err != nil {
		return id, until, err
	}
	grants, err := a.records.Grants(ctx, user)
	if err != nil {
		return id, until, err
	}
	return Identity{UserID: user, IsAdmin: u.IsAdmin, Grants: GrantsOf(grants)}, until, nil
}

// GrantsOf makes grants of what is stored.
func GrantsOf(rows []store.Grant) []Grant {
	grants := make([]Grant, 0, len(rows))
	for _, g := range rows {
		grants = append(grants, Grant{TeamID: g.TeamID, TeamRole: g.Role, HomeRegionID: g.HomeRegionID, Owner: g.Owner})
	}
	return grants
}

// The scopes of API keys: of one team, or of the whole system.
const (
	ScopeTeam     = "team"
	ScopePlatform = "platform"
)

// Forget drops from memory every key, and what every user may do: something of
// that has changed somewhere.
func (a *Authenticator) Forget() {
	a.keys.forget()
	a.users.forget()
}
