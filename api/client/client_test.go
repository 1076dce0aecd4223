package client_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
	"time"

	"s0.run/api/client"
)

func newClient(t *testing.T, handler http.HandlerFunc) *client.Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c, err := client.New(client.Config{BaseURL: server.URL + "/base/", Token: "token"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func answer(status int, header http.Header, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header()[k] = v
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func TestNewRefusesBadURLs(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "localhost:30080", "ftp://host", "http://", "http://[::1"} {
		if _, err := client.New(client.Config{BaseURL: u}); err == nil {
			t.Errorf("New(%q) succeeded", u)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		status int
		header http.Header
		body   string
		want   client.APIError
	}{
		{
			name: "enveloped", status: 429,
			header: http.Header{"Retry-After": {"3"}, "X-Request-Id": {"req-1"}},
			body:   `{"success":false,"error":{"code":"quota_exceeded","message":"too many","details":{"limit":1}}}`,
			want:   client.APIError{StatusCode: 429, Code: "quota_exceeded", Message: "too many", RequestID: "req-1", RetryAfter: 3 * time.Second},
		},
		{
			name: "a proxy's page", status: 502, body: "<html>bad gateway</html>",
			want: client.APIError{StatusCode: 502, Message: "the server answered 502 Bad Gateway"},
		},
		{
			name: "no body", status: 500, header: http.Header{"Retry-After": {"soon"}},
			want: client.APIError{StatusCode: 500, Message: "the server answered 500 Internal Server Error"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, answer(tt.status, tt.header, tt.body))
			_, err := c.GetSandbox(t.Context(), "sb")
			var got *client.APIError
			if !errors.As(err, &got) {
				t.Fatalf("got %v, want an *APIError", err)
			}
			got.Details = nil
			if got.StatusCode != tt.want.StatusCode || got.Code != tt.want.Code || got.Message != tt.want.Message ||
				got.RequestID != tt.want.RequestID || got.RetryAfter != tt.want.RetryAfter {
				t.Errorf("got %+v, want %+v", *got, tt.want)
			}
		})
	}
}

func TestAnswersThatMakeNoSense(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "{", `{"success":true}`, `{"success":true,"data":null}`, `[]`, `{"data":{"id":7}}`} {
		c := newClient(t, answer(200, nil, body))
		if sb, err := c.GetSandbox(t.Context(), "sb"); err == nil {
			t.Errorf("answer %q gave %+v", body, sb)
		}
	}
}

// An id that looks like a path stays one segment.
func TestIDsAreEscaped(t *testing.T) {
	t.Parallel()
	var got string
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.URL.EscapedPath()
		answer(404, nil, "")(w, r)
	})
	c.GetSandbox(t.Context(), "../templates/a b")
	if want := "/base/api/v1/sandboxes/..%2Ftemplates%2Fa%20b"; got != want {
		t.Errorf("path %s, want %s", got, want)
	}
}

// Absent and empty are different things in an update.
func TestEmptyContainersAreSent(t *testing.T) {
	t.Parallel()
	var got string
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = string(b)
		answer(404, nil, "")(w, r)
	})
	c.UpdateSandbox(t.Context(), "sb", client.SandboxUpdateConfig{})
	if want := `{"config":{}}`; got != want {
		t.Errorf("nothing to change: sent %s, want %s", got, want)
	}
	zero := int32(0)
	c.UpdateSandbox(t.Context(), "sb", client.SandboxUpdateConfig{EnvVars: map[string]string{}, Services: []client.SandboxAppService{}, TTL: &zero})
	if want := `{"config":{"env_vars":{},"services":[],"ttl":0}}`; got != want {
		t.Errorf("clearing: sent %s, want %s", got, want)
	}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	var keys []string
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		answer(503, nil, "")(w, r)
	})
	c.CreateSandbox(t.Context(), client.ClaimRequest{Template: "default"})
	c.CreateSandboxOnce(t.Context(), "k", client.ClaimRequest{Template: "default"})
	if want := []string{"", "k"}; !slices.Equal(keys, want) {
		t.Errorf("keys %q, want %q", keys, want)
	}
}

func TestReadFileStreams(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		<-release
		io.WriteString(w, " second")
	})
	r, err := c.ReadFile(t.Context(), "sb", "f")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head := make([]byte, 5)
	if _, err := io.ReadFull(r, head); err != nil || string(head) != "first" {
		t.Fatalf("before the file's end: %q, %v", head, err)
	}
	close(release)
	rest, err := io.ReadAll(r)
	if err != nil || string(rest) != " second" {
		t.Errorf("the rest: %q, %v", rest, err)
	}
}

func TestCancelledCall(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.GetSandbox(ctx, "sb"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// The server waits for a process as long as the caller does.
func TestTheDeadlineIsTold(t *testing.T) {
	t.Parallel()
	told := make(chan string, 1)
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		told <- r.Header.Get("Request-Timeout")
		answer(http.StatusOK, nil, `{"success":true,"data":{}}`)(w, r)
	})
	wait := true
	for name, d := range map[string]time.Duration{"none": 0, "an hour": time.Hour, "a week": 7 * 24 * time.Hour} {
		ctx, cancel := t.Context(), func() {}
		if d > 0 {
			ctx, cancel = context.WithTimeout(ctx, d)
		}
		defer cancel()
		if _, err := c.CreateContext(ctx, "sb", client.CreateContextRequest{WaitUntilDone: &wait}); err != nil {
			t.Fatal(err)
		}
		created := <-told
		if _, err := c.ExecContext(ctx, "sb", "cx", "1"); err != nil {
			t.Fatal(err)
		}
		for _, got := range []string{created, <-told} {
			seconds, err := strconv.ParseFloat(got, 64)
			if most := min(d.Seconds(), 86400); d == 0 && got != "" || d > 0 && (err != nil || seconds > most || seconds < most-60) {
				t.Errorf("deadline in %s: told %q", name, got)
			}
		}
	}
	if _, err := c.CreateContext(t.Context(), "sb", client.CreateContextRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := <-told; got != "" {
		t.Errorf("a call that does not wait told %q", got)
	}
}
