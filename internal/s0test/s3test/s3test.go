// Package s3test serves a bucket to tests: a real server of S3 that keeps its objects in
// memory, before which somebody looks at every signature as the specification has it.
package s3test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// What opens the bucket.
const (
	Bucket    = "bucket"
	Region    = "test-region"
	AccessKey = "s0-canary-access"
	SecretKey = "s0-canary-secret"
)

// Server is a server with one bucket.
type Server struct {
	URL     string
	backend gofakes3.Backend

	mu    sync.Mutex
	asked []string
	way   func(http.Handler) http.Handler // nil: nothing is in it
}

// New makes a Server that lasts as long as the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{backend: s3mem.New()}
	if err := s.backend.CreateBucket(Bucket); err != nil {
		t.Fatal(err)
	}
	store := gofakes3.New(s.backend, gofakes3.WithLogger(gofakes3.StdLog(log.New(io.Discard, "", 0)))).Server()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.Method+" "+r.RequestURI)
		way := s.way
		s.mu.Unlock()
		if !signed(r) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<Error><Code>SignatureDoesNotMatch</Code></Error>")
			return
		}
		h := store
		if way != nil {
			h = way(h)
		}
		h.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	s.URL = srv.URL
	return s
}

// Put makes an object.
func (s *Server) Put(t testing.TB, key, content string) {
	t.Helper()
	_, err := s.backend.PutObject(Bucket, key, map[string]string{"Last-Modified": time.Now().UTC().Format(http.TimeFormat)}, bytes.NewReader([]byte(content)), int64(len(content)), nil)
	if err != nil {
		t.Fatal(err)
	}
}

// Delete removes an object.
func (s *Server) Delete(t testing.TB, key string) {
	t.Helper()
	if _, err := s.backend.DeleteObject(Bucket, key); err != nil {
		t.Fatal(err)
	}
}

// Through puts something between clients and the store; nil: nothing.
func (s *Server) Through(way func(http.Handler) http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.way = way
}

// Asked are the requests so far.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// signed checks a request's Signature V4.
func signed(r *http.Request) bool {
	auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return false
	}
	parts := map[string]string{}
	for p := range strings.SplitSeq(auth, ", ") {
		name, value, _ := strings.Cut(p, "=")
		parts[name] = value
	}
	date := r.Header.Get("X-Amz-Date")
	if len(date) < 8 || !slices.Contains(strings.Split(parts["SignedHeaders"], ";"), "host") {
		return false
	}
	scope := date[:8] + "/" + Region + "/s3/aws4_request"
	if parts["Credential"] != AccessKey+"/"+scope {
		return false
	}
	key := []byte("AWS4" + SecretKey)
	for _, part := range strings.Split(scope, "/") {
		key = mac(key, part)
	}
	request := sha256.Sum256([]byte(canonical(r, parts["SignedHeaders"])))
	want := mac(key, fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", date, scope, request))
	return hmac.Equal([]byte(hex.EncodeToString(want)), []byte(parts["Signature"]))
}

func mac(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	return h.Sum(nil)
}

// canonical is a request as both sides see it: the path as it was sent, the query sorted.
func canonical(r *http.Request, names string) string {
	path, query, _ := strings.Cut(r.RequestURI, "?")
	var pairs []string
	for pair := range strings.SplitSeq(query, "&") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			pairs = append(pairs, again(name)+"="+again(value))
		}
	}
	slices.Sort(pairs)
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%s\n", r.Method, path, strings.Join(pairs, "&"))
	for name := range strings.SplitSeq(names, ";") {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		fmt.Fprintf(&b, "%s:%s\n", name, strings.TrimSpace(value))
	}
	fmt.Fprintf(&b, "\n%s\n%s", names, r.Header.Get("X-Amz-Content-Sha256"))
	return b.String()
}

// again encodes what was encoded in the one way that a signature knows.
func again(s string) string {
	plain, err := url.QueryUnescape(s)
	if err != nil {
		return s
	}
	return strings.ReplaceAll(url.QueryEscape(plain), "+", "%20")
}
