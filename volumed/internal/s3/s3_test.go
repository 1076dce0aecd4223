package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"s0.run/internal/s0test/s3test"
)

func newClient(t *testing.T, s *s3test.Server, secret string) *Client {
	t.Helper()
	b := Bucket{Provider: "aws", Name: s3test.Bucket, Region: s3test.Region, Endpoint: s.URL}
	to, err := b.Authority()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{Bucket: b, Credential: NewCredential(s3test.AccessKey, secret, "a token"), Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", to)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestWhatABucketHas(t *testing.T) {
	t.Parallel()
	s := s3test.New(t)
	c := newClient(t, s, s3test.SecretKey)
	const odd = "dir/ä +&=?%#~'()*.txt"
	for key, content := range map[string]string{odd: "odd", "dir/b": "bb", "dir/sub/x": "x", "other": "o"} {
		s.Put(t, key, content)
	}
	page, err := c.List(t.Context(), "dir/", "", MaxKeys)
	if err != nil || len(page.Objects) != 2 || page.Next != "" || len(page.Prefixes) != 1 || page.Prefixes[0] != "dir/sub/" {
		t.Fatalf("%+v, %v", page, err)
	}
	for _, listed := range page.Objects {
		o, err := c.Head(t.Context(), listed.Key)
		if err != nil || o.ETag != listed.ETag || o.Size != listed.Size || o.ETag == "" || o.Modified.IsZero() || listed.Modified.IsZero() {
			t.Errorf("%+v is listed as %+v, %v", o, listed, err)
		}
	}
	var all []string
	for after, n := "", 0; n == 0 || after != ""; n++ {
		page, err := c.List(t.Context(), "", after, 1)
		if err != nil || n > 4 {
			t.Fatalf("page %d: %v", n, err)
		}
		for _, o := range page.Objects {
			all = append(all, o.Key)
		}
		all, after = append(all, page.Prefixes...), page.Next
	}
	if fmt.Sprint(slices.Compact(all)) != "[dir/ other]" { // this server says a prefix again for each of its keys
		t.Errorf("page by page there are %q", all)
	}
	if _, err := c.Head(t.Context(), "nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("what is not there: %v", err)
	}
}

func TestReadsAreOfOneContent(t *testing.T) {
	t.Parallel()
	s := s3test.New(t)
	c := newClient(t, s, s3test.SecretKey)
	s.Put(t, "a", "0123456789")
	o, err := c.Head(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []struct{ from, to int64 }{{0, 10}, {0, 1}, {3, 7}, {9, 10}} {
		p := make([]byte, at.to-at.from)
		if err := c.Read(t.Context(), o, p, at.from); err != nil || string(p) != "0123456789"[at.from:at.to] {
			t.Errorf("%+v: %q, %v", at, p, err)
		}
	}
	s.Put(t, "a", "another one")
	if err := c.Read(t.Context(), o, make([]byte, 5), 0); !errors.Is(err, ErrChanged) {
		t.Errorf("of what was replaced: %v", err)
	}
	s.Delete(t, "a")
	if err := c.Read(t.Context(), o, make([]byte, 5), 0); !errors.Is(err, ErrChanged) {
		t.Errorf("of what is gone: %v", err)
	}
}

func TestAnotherCredentialIsRefused(t *testing.T) {
	t.Parallel()
	s := s3test.New(t)
	const wrong = "s0-canary-another"
	_, err := newClient(t, s, wrong).List(t.Context(), "", "", 1)
	if !errors.Is(err, ErrDenied) || len(s.Asked()) != 1 {
		t.Errorf("%v after %q", err, s.Asked())
	}
	if cred := NewCredential("a", wrong, "t"); strings.Contains(fmt.Sprintf("%v %+v %#v %s %x", err, cred, cred, cred, cred), "canary") {
		t.Error("a credential shows")
	}
}

// B13: a store is a tenant's, and may say anything.
func TestB13_AStoreIsNotBelieved(t *testing.T) {
	t.Parallel()
	answer := func(status int, header http.Header, body string) func(http.Handler) http.Handler {
		return func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for name, values := range header {
					w.Header()[name] = values
				}
				w.WriteHeader(status)
				_, _ = io.WriteString(w, body)
			})
		}
	}
	list := func(inner string) string { return "<ListBucketResult>" + inner + "</ListBucketResult>" }
	many := strings.Repeat("<Contents><Key>p/a</Key></Contents>", MaxKeys+1)
	for name, way := range map[string]func(http.Handler) http.Handler{
		"a redirect":          answer(http.StatusTemporaryRedirect, http.Header{"Location": {"http://169.254.169.254/"}}, ""),
		"no XML":              answer(http.StatusOK, nil, "not XML"),
		"no end":              answer(http.StatusOK, nil, "<ListBucketResult><Contents>"+strings.Repeat(" ", maxPage)),
		"too many keys":       answer(http.StatusOK, nil, list(many)),
		"keys elsewhere":      answer(http.StatusOK, nil, list("<Contents><Key>q/a</Key></Contents>")),
		"a prefix elsewhere":  answer(http.StatusOK, nil, list("<CommonPrefixes><Prefix>q/</Prefix></CommonPrefixes>")),
		"no prefix":           answer(http.StatusOK, nil, list("<CommonPrefixes><Prefix>p/a</Prefix></CommonPrefixes>")),
		"a negative size":     answer(http.StatusOK, nil, list("<Contents><Key>p/a</Key><Size>-1</Size></Contents>")),
		"a long tag":          answer(http.StatusOK, nil, list("<Contents><Key>p/a</Key><ETag>"+strings.Repeat("x", maxTag+1)+"</ETag></Contents>")),
		"no way on":           answer(http.StatusOK, nil, list("<IsTruncated>true</IsTruncated>")),
		"an endless header":   answer(http.StatusOK, http.Header{"X": {strings.Repeat("x", 2*maxHeader)}}, list("")),
		"an endless refusal":  answer(http.StatusForbidden, nil, "<Error><Code>"+strings.Repeat("x", 1<<20)),
		"a key that is a lie": answer(http.StatusOK, nil, list("<EncodingType>url</EncodingType><Contents><Key>p%2</Key></Contents>")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s3test.New(t)
			s.Through(way)
			page, err := newClient(t, s, s3test.SecretKey).List(t.Context(), "p/", "", MaxKeys)
			if err == nil || len(page.Objects)+len(page.Prefixes) > 0 || len(err.Error()) > 1000 {
				t.Errorf("%+v, %.2000v", page, err)
			}
		})
	}
}

func TestB13_ATagIsShort(t *testing.T) {
	t.Parallel()
	s := s3test.New(t)
	s.Through(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Etag", strings.Repeat("x", maxTag+1))
		})
	})
	if o, err := newClient(t, s, s3test.SecretKey).Head(t.Context(), "a"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("%d bytes, %v", len(o.ETag), err)
	}
}

// What a store may do wrong with a part of an object is an error, and no other content.
func TestB13_PartsAreParts(t *testing.T) {
	t.Parallel()
	o := Object{Key: "a", Size: 10, ETag: "tag"}
	for name, answer := range map[string]http.HandlerFunc{
		"all of it": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Etag", `"tag"`)
			fmt.Fprint(w, "0123456789")
		},
		"another's": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Etag", `"b"`)
			w.WriteHeader(206)
			fmt.Fprint(w, "34567")
		},
		"less": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Etag", `"tag"`)
			w.WriteHeader(206)
			fmt.Fprint(w, "34")
		},
		"nothing of one": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206); fmt.Fprint(w, "34567") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s3test.New(t)
			s.Through(func(http.Handler) http.Handler { return answer })
			if err := newClient(t, s, s3test.SecretKey).Read(t.Context(), o, make([]byte, 5), 3); err == nil {
				t.Error("it was read")
			}
		})
	}
}

// A fault that passes is waited for, a few times.
func TestAFaultMayPass(t *testing.T) {
	t.Parallel()
	s := s3test.New(t)
	s.Put(t, "a", "content")
	s.Through(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(s.Asked()) < maxTries {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	p := make([]byte, 7)
	c := newClient(t, s, s3test.SecretKey)
	if o, err := c.Head(t.Context(), "a"); err != nil || c.Read(t.Context(), o, p, 0) != nil || !bytes.Equal(p, []byte("content")) {
		t.Errorf("%+v, %q, %v", o, p, err)
	}
	s.Through(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	})
	before := len(s.Asked())
	if _, err := c.Head(t.Context(), "a"); err == nil || len(s.Asked())-before != maxTries {
		t.Errorf("%v after %d tries", err, len(s.Asked())-before)
	}
}

func TestSites(t *testing.T) {
	t.Parallel()
	for want, b := range map[string]Bucket{
		"https b.s3.us-east-1.amazonaws.com b.s3.us-east-1.amazonaws.com:443  us-east-1":           {Provider: "aws", Name: "b"},
		"https b.s3.eu-central-1.amazonaws.com b.s3.eu-central-1.amazonaws.com:443  eu-central-1":  {Provider: "aws", Name: "b", Region: "eu-central-1"},
		"https s3.eu-west-1.amazonaws.com s3.eu-west-1.amazonaws.com:443 /b.c eu-west-1":           {Provider: "aws", Name: "b.c", Region: "eu-west-1"},
		"https b.s3.cn-north-1.amazonaws.com.cn b.s3.cn-north-1.amazonaws.com.cn:443  cn-north-1":  {Provider: "aws", Name: "b", Region: "cn-north-1"},
		"http store.example store.example:80 /b us-east-1":                                         {Provider: "aws", Name: "b", Endpoint: "http://store.example/"},
		"https [2001:db8::1]:9000 [2001:db8::1]:9000 /b r":                                         {Provider: "aws", Name: "b", Region: "r", Endpoint: "https://[2001:db8::1]:9000"},
		"https id.r2.example id.r2.example:443 /b auto":                                            {Provider: "r2", Name: "b", Endpoint: "https://id.r2.example"},
		"https b.oss-cn-hangzhou.aliyuncs.com b.oss-cn-hangzhou.aliyuncs.com:443  oss-cn-hangzhou": {Provider: "ali", Name: "b", Endpoint: "https://oss-cn-hangzhou.aliyuncs.com"},
	} {
		at, err := b.site()
		if got := fmt.Sprintf("%s %s %s %s %s", at.scheme, at.host, at.authority, at.path, at.region); err != nil || got != want {
			t.Errorf("%+v: %q, %v; want %q", b, got, err, want)
		}
	}
	for _, endpoint := range []string{"ftp://h", "https://", "https://u:p@h", "https://h/path", "://"} {
		if at, err := (Bucket{Name: "b", Endpoint: endpoint}).site(); err == nil {
			t.Errorf("%s is %+v", endpoint, at)
		}
	}
}
