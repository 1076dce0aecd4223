package webhook

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"s0.run/api/internal/store"
	"s0.run/internal/s0test/freeport"
)

// The vector was made with Node's crypto and verified by verifyWebhookSignature of
// the npm package sandbox0 0.9.5.
func TestA05_SignatureVector(t *testing.T) {
	t.Parallel()
	b, err := body(event())
	const want = `{"event_id":"evt_sandbox_deleted_local-aaaaaaaaaaaaaaaaaaaaaaaaaa","event_type":"sandbox.deleted","timestamp":"2026-01-02T03:04:05Z",` +
		`"sandbox_id":"local-aaaaaaaaaaaaaaaaaaaaaaaaaa","team_id":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","payload":{"reason":"deleted by a user"}}`
	if err != nil || string(b) != want {
		t.Fatalf("%s, %v", b, err)
	}
	if got := sign("whsec_tëst", b); got != "2c84a81f1d81be87017aa1eb46ca9a4674188d77aa3f6cc20c21a3041616f5fe" {
		t.Errorf("signature %s", got)
	}
}

func TestA05_TheBodyAsSentIsSigned(t *testing.T) {
	t.Parallel()
	var raw []byte
	var got http.Header
	srv, _ := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		raw, _ = io.ReadAll(r.Body)
		got = r.Header
	})
	s := newSender(Policy{AllowPrivate: true})
	if ok, outcome := s.send(t.Context(), store.WebhookLease{URL: srv.URL, Secret: "key"}, event()); !ok {
		t.Fatal(outcome)
	}
	if got.Get("X-Sandbox0-Signature") != sign("key", raw) || got.Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", got)
	}
	if ok, _ := s.send(t.Context(), store.WebhookLease{URL: srv.URL}, event()); !ok || got.Values("X-Sandbox0-Signature") != nil {
		t.Errorf("signed without a secret: %v", got)
	}
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{200: true, 202: true, 204: true, 400: false, 404: false, 410: false, 429: false, 500: false, 503: false} {
		srv, _ := receiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		ok, outcome := newSender(Policy{AllowPrivate: true}).send(t.Context(), store.WebhookLease{URL: srv.URL}, event())
		if ok != want || !strings.HasPrefix(outcome, "status ") {
			t.Errorf("%d: %t, %s", status, ok, outcome)
		}
	}
	nobody, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{fmt.Sprint("http://127.0.0.1:", nobody): "the connection failed", "http://nowhere.invalid/": "the name could not be resolved"} {
		if ok, outcome := newSender(Policy{AllowPrivate: true}).send(t.Context(), store.WebhookLease{URL: url}, event()); ok || outcome != want {
			t.Errorf("%s: %t, %s", url, ok, outcome)
		}
	}
}

// A08: an answer without end is not read to its end.
func TestA08_AnswersAreBounded(t *testing.T) {
	t.Parallel()
	cut := make(chan struct{})
	srv, _ := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(cut)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	})
	began := time.Now()
	ok, outcome := newSender(Policy{AllowPrivate: true}).send(t.Context(), store.WebhookLease{URL: srv.URL}, event())
	if !ok || time.Since(began) >= attemptTimeout {
		t.Errorf("%t, %s, after %s", ok, outcome, time.Since(began))
	}
	<-cut
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for failed, want := range map[int]time.Duration{1: 500 * time.Millisecond, 2: time.Second, 3: 2 * time.Second} {
		if got := backoff(failed); got != want {
			t.Errorf("after %d: %s, want %s", failed, got, want)
		}
	}
}
