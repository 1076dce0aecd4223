package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

const (
	accessTokenLife = 15 * time.Minute
	// RefreshTokenLife is how long a refresh token can be used, once.
	RefreshTokenLife = 168 * time.Hour

	tokenIssuer   = "s0"
	tokenAudience = "s0-api"
	tokenLeeway   = 30 * time.Second // clocks of replicas differ
	signingBytes  = 32
	maxTokenBytes = 8 << 10

	// maxTokenGrants bounds what a token tells its holder of his teams, so that no
	// number of them makes it too large. Whoever verifies it asks the database.
	maxTokenGrants = 16
)

// Signer makes and verifies access tokens with one key and one algorithm. What
// a token's header says about keys and algorithms is never followed.
type Signer struct {
	key    []byte
	parser *jwt.Parser
}

type claims struct {
	jwt.RegisteredClaims
	TokenType string    `json:"token_type"`
	UserID    uuid.UUID `json:"user_id"`
	Grants    []Grant   `json:"team_grants"`
	IsAdmin   bool      `json:"is_admin"`
}

// NewSigner makes a Signer from 32 bytes of key.
func NewSigner(key []byte) (*Signer, error) {
	if len(key) != signingBytes {
		return nil, fmt.Errorf("signing key of %d bytes: want %d", len(key), signingBytes)
	}
	return &Signer{key: key, parser: jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithIssuer(tokenIssuer), jwt.WithAudience(tokenAudience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(tokenLeeway),
	)}, nil
}

// Sign makes the access token of a user, and says when it expires. What it tells
// about teams and rights is for its holder to read.
func (s *Signer) Sign(user uuid.UUID, grants []Grant, isAdmin bool) (string, time.Time, error) {
	grants = grants[:min(len(grants), maxTokenGrants)]
	now := time.Now()
	expires := now.Add(accessTokenLife)
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: tokenIssuer, Audience: jwt.ClaimStrings{tokenAudience}, Subject: user.String(), ID: uuid.NewString(),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires),
		},
		TokenType: "access", UserID: user, Grants: grants, IsAdmin: isAdmin,
	}).SignedString(s.key)
	return token, expires, err
}

func (s *Signer) verify(token string) (claims, error) {
	var c claims
	_, err := s.parser.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.key, nil })
	if err != nil || c.TokenType != "access" || c.UserID == uuid.Nil {
		return claims{}, ErrUnauthenticated.WithCause(errors.New("access token does not hold"))
	}
	return c, nil
}

// with is the identity of the user that a token was signed for.
func (id Identity) with(c claims) Identity {
	id.UserID, id.Expires = c.UserID, c.ExpiresAt.Time
	return id
}

// NewRefreshToken makes a refresh token and the hash it is stored as.
func NewRefreshToken() (token string, hash []byte) {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	token = base64.RawURLEncoding.EncodeToString(b)
	return token, HashRefreshToken(token)
}

// HashRefreshToken gives what a refresh token is stored as. The token is random
// enough that a plain hash can't be searched.
func HashRefreshToken(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// LoadKey reads the signing key, which is made when the file is absent. Several
// processes may do that at once: they end up with the same key.
func LoadKey(path string) ([]byte, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := makeKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making the signing key: %w", err)
	}
	return readKey(path)
}

func readKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("signing key %s: others may read it (mode %04o); chmod 600 it", path, info.Mode().Perm())
	}
	key, err := os.ReadFile(path)
	if err == nil && len(key) != signingBytes {
		err = fmt.Errorf("signing key %s: %d bytes, want %d", path, len(key), signingBytes)
	}
	return key, err
}

// makeKey writes the key aside and links it to its name, so that nobody ever
// reads a part of it and the first process wins.
func makeKey(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	key := make([]byte, signingBytes)
	rand.Read(key) // never fails
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}
