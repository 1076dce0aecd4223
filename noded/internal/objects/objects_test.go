package objects

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"s0.run/internal/s0test/freeport"
)

func TestMain(m *testing.M) {
	os.Setenv("AWS_ACCESS_KEY_ID", "tester")
	os.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	os.Exit(m.Run())
}

// serveS3 serves buckets from memory, through a way that a test may damage.
func serveS3(t *testing.T, way func(http.Handler) http.Handler) (url string) {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	handler := gofakes3.New(backend, gofakes3.WithLogger(gofakes3.StdLog(log.New(io.Discard, "", 0)))).Server()
	if way != nil {
		handler = way(handler)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return "s3://bucket/a/prefix?region=us-east-1&endpoint=" + srv.URL
}

func open(t *testing.T, url string) *Store {
	t.Helper()
	s, err := Open(url)
	if err != nil {
		t.Fatal(err)
	}
	s.firstPause = time.Millisecond
	return s
}

// backends are what a Store can be of. Each keeps the same promises.
func backends(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Run("dir", func(t *testing.T) { t.Parallel(); test(t, open(t, "file://"+filepath.Join(t.TempDir(), "a", "store"))) })
	t.Run("s3", func(t *testing.T) { t.Parallel(); test(t, open(t, serveS3(t, nil))) })
}

func list(t *testing.T, s *Store, prefix string) (keys []string) {
	t.Helper()
	for o, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		if since := time.Since(o.Modified); since < -time.Minute || since > time.Hour {
			t.Errorf("%s is of %s", o.Key, o.Modified)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

func TestStores(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		if _, err := s.Get(ctx, "a/b", 10); !errors.Is(err, ErrNotFound) {
			t.Errorf("reading what is not there: %v", err)
		}
		if err := s.Delete(ctx, "a/b"); err != nil {
			t.Errorf("deleting what is not there: %v", err)
		}
		if keys := list(t, s, ""); len(keys) > 0 {
			t.Errorf("an empty store has %q", keys)
		}
		large := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)
		for key, data := range map[string][]byte{"a/b/1": []byte("one"), "a/b/2": large, "a/c": {0}, "ab": []byte("x")} {
			for range 2 {
				if err := s.Put(ctx, key, data); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := s.Get(ctx, key, int64(len(data))); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes of %d, %v", key, len(got), len(data), err)
			}
		}
		if _, err := s.Get(ctx, "a/b/1", 2); !errors.Is(err, ErrTooLarge) {
			t.Errorf("more than asked for: %v", err)
		}
		for prefix, want := range map[string][]string{
			"": {"a/b/1", "a/b/2", "a/c", "ab"}, "a/": {"a/b/1", "a/b/2", "a/c"}, "a/b/": {"a/b/1", "a/b/2"}, "a/b/2": {"a/b/2"}, "no/": nil,
		} {
			if got := list(t, s, prefix); !slices.Equal(got, want) {
				t.Errorf("below %q: %q", prefix, got)
			}
		}
		for _, key := range []string{"a/b/1", "a/b/2", "a/c", "ab"} {
			if err := s.Delete(ctx, key); err != nil {
				t.Error(err)
			}
		}
		if keys := list(t, s, ""); len(keys) > 0 {
			t.Errorf("left: %q", keys)
		}
		for _, bad := range []string{"", "/a", "a/", "../a", "a/../b", "a//b", ".aside/x", "A", "a b"} {
			if err := s.Put(ctx, bad, nil); err == nil {
				t.Errorf("%q was stored", bad)
			}
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	backends(t, func(t *testing.T, s *Store) {
		failed := make(chan error, 16)
		for w := range cap(failed) {
			go func() {
				var err error
				for i := range 20 { // directories come and go meanwhile
					key := fmt.Sprintf("d/%d/%d", i%3, w)
					err = errors.Join(err, s.Put(t.Context(), key, []byte(key)))
					got, readErr := s.Get(t.Context(), key, 100)
					if string(got) != key {
						err = errors.Join(err, readErr, fmt.Errorf("%s holds %q", key, got))
					}
					err = errors.Join(err, s.Delete(t.Context(), key))
				}
				failed <- err
			}()
		}
		for range cap(failed) {
			if err := <-failed; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "file://", "file:///", "file://host/dir", "/dir", "dir", "s3://", "s3://bucket?x=1", "s3://bucket?endpoint=ftp://h", "s3://bucket?endpoint=host:80",
		"s3://bucket?endpoint=http://h/path", "gs://bucket", "s3://key:hunter2@bucket", "file://key:hunter2@/dir", "file:///proc/no/such", "s3://b%zz",
	} {
		if _, err := Open(url); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// What a writer left that died is removed, what one writes now is not.
func TestTheAsideIsCleared(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	aside := filepath.Join(dir, asideDir)
	if err := os.Mkdir(aside, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"old": 2 * asideFor, "new": 0} {
		path := filepath.Join(aside, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, time.Time{}, time.Now().Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	open(t, "file://"+dir)
	if left, err := os.ReadDir(aside); err != nil || len(left) != 1 || left[0].Name() != "new" {
		t.Errorf("left %v, %v", left, err)
	}
}

// A link that somebody puts into the store's directory leads nowhere.
func TestNoLinkLeadsOut(t *testing.T) {
	t.Parallel()
	dir, out := t.TempDir(), t.TempDir()
	s := open(t, "file://"+dir)
	if err := os.Symlink(out, filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a/b", []byte("x")); err == nil {
		t.Error("written through a link")
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
}

// X41, for a store on a disk of its own.
func TestX41_ADirectoryThatTakesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, "file://"+dir)
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a/b", []byte("x")); err == nil {
		t.Error("it was stored")
	}
	if _, err := s.Get(t.Context(), "a/b", 10); err == nil {
		t.Error("it was read")
	}
}

// way is what may happen to a request on its way to a store.
func fails(times int64, how http.HandlerFunc) (func(http.Handler) http.Handler, *atomic.Int64) {
	var seen atomic.Int64
	return func(store http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("location") { // which region the bucket is in
				store.ServeHTTP(w, r)
				return
			}
			if n := seen.Add(1); n <= times || times < 0 {
				how(w, r)
				return
			}
			store.ServeHTTP(w, r)
		})
	}, &seen
}

func answer(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func truncate(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "1000")
	w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
	w.Write(make([]byte, 100))
	panic(http.ErrAbortHandler)
}

// X43: what passes is ridden out.
func TestX43_AStoreThatStumbles(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]http.HandlerFunc{
		"500": answer(500, "InternalError"), "503": answer(503, "SlowDown"), "429": answer(429, "TooManyRequests"), "hangs up": hangUp, "nonsense": answer(502, "<<"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			way, seen := fails(3, how)
			s := open(t, serveS3(t, way))
			if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil || seen.Load() != 4 {
				t.Errorf("%v after %d attempts", err, seen.Load())
			}
			if got, err := s.Get(t.Context(), "a/b", 10); err != nil || string(got) != "x" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	t.Run("truncates", func(t *testing.T) {
		t.Parallel()
		way, _ := fails(3, truncate)
		s := open(t, serveS3(t, way))
		if _, err := s.Get(t.Context(), "a/b", 10_000); !errors.Is(err, ErrNotFound) {
			t.Errorf("a truncated answer counts: %v", err)
		}
	})
}

// X43: what does not pass is told, and what it is.
func TestX43_AStoreThatIsDown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		how      http.HandlerFunc
		want     error
		attempts int64
	}{
		"403": {answer(403, "AccessDenied"), ErrDenied, 1}, "401": {answer(401, "InvalidAccessKeyId"), ErrDenied, 1}, "no bucket": {answer(404, "NoSuchBucket"), ErrDenied, 1},
		"500": {answer(500, "InternalError"), ErrUnavailable, attempts}, "truncates": {truncate, ErrUnavailable, attempts}, "hangs up": {hangUp, ErrUnavailable, attempts},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			way, seen := fails(-1, c.how)
			s := open(t, serveS3(t, way))
			if _, err := s.Get(t.Context(), "a/b", 10_000); !errors.Is(err, c.want) || seen.Load() != c.attempts {
				t.Errorf("%v after %d attempts", err, seen.Load())
			}
			if name != "truncates" {
				if err := s.Put(t.Context(), "a/b", []byte("x")); !errors.Is(err, c.want) {
					t.Errorf("storing: %v", err)
				}
			}
			for _, err := range s.List(t.Context(), "") {
				if err == nil {
					t.Error("something is listed")
				}
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		t.Parallel()
		port, err := freeport.Find()
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, fmt.Sprintf("s3://bucket?region=x&endpoint=http://127.0.0.1:%d", port))
		if err := s.Put(t.Context(), "a/b", []byte("x")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("storing: %v", err)
		}
	})
}

// X43: a store that hangs takes no more than its time, and less when nobody waits.
func TestX43_AStoreThatHangs(t *testing.T) {
	t.Parallel()
	hang, hung := make(chan struct{}), make(chan struct{}, 100)
	way, _ := fails(-1, func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/c") {
			hung <- struct{}{}
		}
		<-hang
	})
	url := serveS3(t, way)
	t.Cleanup(func() { close(hang) }) // before the server ends, which waits for its calls
	s := open(t, url)
	s.attemptTimeout = 20 * time.Millisecond
	if _, err := s.Get(t.Context(), "a/b", 10); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a store that hangs: %v", err)
	}
	s.attemptTimeout = attemptTimeout
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("nobody waits")
	go func() {
		<-hung
		cancel(gone)
	}()
	if _, err := s.Get(ctx, "a/c", 10); !errors.Is(err, gone) {
		t.Errorf("given up: %v", err)
	}
}
