// Package objects keeps bytes under names outside of the node's own directories: in
// an S3 bucket, or in a local directory.
//
// An object is written whole and durably or not at all, and read whole. What may
// pass by itself, a store that is down, slow or busy, is tried again for a while;
// every call may be repeated. The package knows nothing of what the bytes mean and
// trusts none that it reads: whoever stores something has to know it again. It keeps
// no state but connections.
package objects

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// attemptTimeout is for one object of a few MiB over a bad line.
	attemptTimeout = 60 * time.Second
	// attempts and the pauses between them ride out a restart of the store; what
	// takes longer is the caller's to come back for.
	attempts              = 5
	firstPause, lastPause = 200 * time.Millisecond, 5 * time.Second
)

// What a store's answers mean to those who ask.
var (
	ErrNotFound = errors.New("there is no such object")
	// ErrDenied does not pass by itself: somebody has to look at the credentials.
	ErrDenied = errors.New("the object store refuses access")
	// ErrUnavailable was tried again and may pass.
	ErrUnavailable = errors.New("the object store can't be used at the moment")
	// ErrTooLarge says that an object is not one of ours.
	ErrTooLarge = errors.New("the object is larger than it may be")
)

// Object is what a list tells.
type Object struct {
	Key      string
	Modified time.Time // by the store's clock
}

// backend is one kind of store. Its errors wrap one of the package's, or mean that
// trying again may help.
type backend interface {
	put(ctx context.Context, key string, data []byte) error
	get(ctx context.Context, key string, limit int64) ([]byte, error)
	remove(ctx context.Context, key string) error // of what is not there succeeds
	list(ctx context.Context, prefix string) iter.Seq2[Object, error]
}

// Store is safe for concurrent use.
type Store struct {
	name    string
	backend backend

	attemptTimeout, firstPause time.Duration // the constants, but in tests
}

// Open makes a Store of a URL: file:///directory, or s3://bucket/prefix with
// ?endpoint=https://host:port for what is not Amazon's, and ?region=. Credentials for
// S3 come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or from the
// file that AWS_SHARED_CREDENTIALS_FILE names, never from the URL. Nothing is asked
// of the store yet, but a directory is made.
func Open(raw string) (*Store, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("object store: want file:///directory or s3://bucket") // it may be a secret
	}
	s := &Store{name: u.Redacted(), attemptTimeout: attemptTimeout, firstPause: firstPause}
	switch {
	case u.User != nil:
		err = errors.New("want no credentials in the URL: others can see it")
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path) && filepath.Clean(u.Path) != "/" && u.RawQuery == "":
		s.backend, err = openDir(filepath.Clean(u.Path))
	case u.Scheme == "s3" && u.Host != "":
		s.backend, err = openBucket(u)
	default:
		err = errors.New("want file:///directory or s3://bucket")
	}
	if err != nil {
		return nil, fmt.Errorf("object store %s: %w", s.name, err)
	}
	return s, nil
}

// String is the store's URL.
func (s *Store) String() string { return s.name }

// Put stores an object, which is not empty, in place of any other of that name. It is
// durable when Put returns.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	return s.insist(ctx, "storing", key, func(ctx context.Context) error { return s.backend.put(ctx, key, data) })
}

// Get reads an object of at most limit bytes.
func (s *Store) Get(ctx context.Context, key string, limit int64) (data []byte, err error) {
	err = s.insist(ctx, "reading", key, func(ctx context.Context) error {
		data, err = s.backend.get(ctx, key, limit)
		return err
	})
	return data, err
}

// Delete removes an object; one that is not there is no error.
func (s *Store) Delete(ctx context.Context, key string) error {
	return s.insist(ctx, "deleting", key, func(ctx context.Context) error { return s.backend.remove(ctx, key) })
}

// List tells every object whose key begins with prefix, in the order of their keys
// and not all at once. What comes and goes meanwhile may be among them or not. It is
// not tried again: who lists passes by again anyway.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for o, err := range s.backend.list(ctx, prefix) {
			if err != nil {
				err = fmt.Errorf("listing %s: %w", prefix, settle(err))
			}
			if !yield(o, err) || err != nil {
				return
			}
		}
	}
}

// insist repeats one call until it has an answer, for a while.
func (s *Store) insist(ctx context.Context, doing, key string, call func(context.Context) error) error {
	if !keys.MatchString(key) {
		return fmt.Errorf("%s %q: not an object's name", doing, key)
	}
	pause := s.firstPause
	for attempt := 1; ; attempt++ {
		err := s.attempt(ctx, call)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s %s: %w", doing, key, context.Cause(ctx))
		}
		if final(err) || attempt == attempts {
			return fmt.Errorf("%s %s: %w", doing, key, settle(err))
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)): // nodes must not come back in step
		case <-ctx.Done():
		}
		pause = min(2*pause, lastPause)
	}
}

func (s *Store) attempt(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.attemptTimeout)
	defer cancel()
	return call(ctx)
}

func final(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrDenied) || errors.Is(err, ErrTooLarge)
}

// settle gives an error that was tried often enough its meaning.
func settle(err error) error {
	if final(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// keys are names that mean the same in a bucket, in a directory and in a log.
var keys = regexp.MustCompile(`^[a-z0-9-]+(/[a-z0-9-]+)*$`)

// parents are the directories that lead to a key, the innermost first.
func parents(key string) (dirs []string) {
	for i := strings.LastIndexByte(key, '/'); i > 0; i = strings.LastIndexByte(key, '/') {
		key = key[:i]
		dirs = append(dirs, key)
	}
	return append(dirs, ".")
}
