package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"s0.run/internal/errdefs"
)

// The cost of a password: OWASP's floor for argon2id. A hash records its own, so
// that these can grow.
const (
	argonMemoryKiB = 19 * 1024
	argonTime      = 2
	argonThreads   = 1
	argonSaltBytes = 16
	argonKeyBytes  = 32

	// One hash at a time is all the CPU and memory that sign-ins can take together,
	// however many there are. So many may wait, each for those before it; a hash
	// takes some 50 ms.
	hashesWaiting = 8

	minPasswordBytes = 8
	maxPasswordBytes = 1024
)

// Hasher hashes and verifies passwords, one at a time. It is safe for concurrent
// use and refuses what would wait too long.
type Hasher struct {
	queue chan struct{} // who waits or works
	turn  chan struct{} // who works
}

// NewHasher makes a Hasher.
func NewHasher() *Hasher {
	return &Hasher{queue: make(chan struct{}, 1+hashesWaiting), turn: make(chan struct{}, 1)}
}

var errBusy = errdefs.WithCode(errdefs.Exhausted, "rate_limited", "too many sign-ins at once").WithRetryAfter(time.Second)

// CheckPassword refuses a new password that is too short or absurdly long.
func CheckPassword(password string) error {
	if len(password) < minPasswordBytes || len(password) > maxPasswordBytes {
		return errdefs.New(errdefs.InvalidArgument, "password must have %d to %d bytes", minPasswordBytes, maxPasswordBytes)
	}
	return nil
}

// Hash gives the PHC string of a password.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	if err := h.enter(ctx); err != nil {
		return "", err
	}
	defer h.leave()
	salt := make([]byte, argonSaltBytes)
	rand.Read(salt) // never fails
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemoryKiB, argonThreads, argonKeyBytes)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemoryKiB, argonTime, argonThreads, b64(salt), b64(key)), nil
}

// decoy is what a password is compared with when there is no such user: the
// same work, never a match.
const decoy = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// Verify reports whether the password matches the PHC string. An empty phc
// stands for a user who does not exist: it costs the same and never matches.
func (h *Hasher) Verify(ctx context.Context, password, phc string) (bool, error) {
	if len(password) > maxPasswordBytes {
		return false, nil
	}
	exists := phc != ""
	if !exists {
		phc = decoy
	}
	p, err := parsePHC(phc)
	if err != nil {
		return false, err
	}
	if err := h.enter(ctx); err != nil {
		return false, err
	}
	defer h.leave()
	key := argon2.IDKey([]byte(password), p.salt, p.time, p.memory, p.threads, uint32(len(p.key)))
	return subtle.ConstantTimeCompare(key, p.key) == 1 && exists, nil
}

func (h *Hasher) enter(ctx context.Context) error {
	select {
	case h.queue <- struct{}{}:
	default:
		return errBusy
	}
	select {
	case h.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		<-h.queue
		return errBusy.WithCause(ctx.Err())
	}
}

func (h *Hasher) leave() {
	<-h.turn
	<-h.queue
}

type phcParts struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func parsePHC(s string) (phcParts, error) {
	var p phcParts
	var version int
	fields := strings.Split(s, "$")
	if len(fields) != 6 || fields[1] != "argon2id" {
		return p, fmt.Errorf("password hash: not argon2id")
	}
	if _, err := fmt.Sscanf(fields[2]+" "+fields[3], "v=%d m=%d,t=%d,p=%d", &version, &p.memory, &p.time, &p.threads); err != nil || version != argon2.Version {
		return p, fmt.Errorf("password hash: unknown parameters %q %q", fields[2], fields[3])
	}
	var saltErr, keyErr error
	p.salt, saltErr = base64.RawStdEncoding.DecodeString(fields[4])
	p.key, keyErr = base64.RawStdEncoding.DecodeString(fields[5])
	if saltErr != nil || keyErr != nil || len(p.key) == 0 {
		return p, fmt.Errorf("password hash: malformed")
	}
	return p, nil
}
