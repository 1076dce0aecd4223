package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"s0.run/api/internal/store"
)

const (
	attemptTimeout  = 5 * time.Second // of one attempt, as the contract says
	maxAnswerHeader = 16 << 10
	maxAnswerBytes  = 4 << 10 // of an answer's body; nothing in it matters
)

// signatureHeader carries the hex HMAC-SHA256 of the raw body under the secret.
const signatureHeader = "X-Sandbox0-Signature"

// body is what a receiver gets. It is the same in every attempt.
func body(e store.Event) ([]byte, error) {
	return json.Marshal(struct {
		EventID   string          `json:"event_id"`
		EventType string          `json:"event_type"`
		Timestamp time.Time       `json:"timestamp"`
		SandboxID string          `json:"sandbox_id"`
		TeamID    string          `json:"team_id"`
		Payload   json.RawMessage `json:"payload"`
	}{e.EventID, e.Type, e.OccurredAt.UTC(), string(e.SandboxID), e.TeamID.String(), json.RawMessage(e.Payload)})
}

// sign signs a body.
func sign(secret store.Secret, body []byte) string {
	mac := hmac.New(sha256.New, []byte(string(secret)))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// sender makes single attempts.
type sender struct{ client *http.Client }

func newSender(p Policy) *sender {
	return &sender{&http.Client{
		Transport: p.transport(), Timeout: attemptTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// send tells a receiver an event. The outcome is what its tenant may know of it.
func (s *sender) send(ctx context.Context, l store.WebhookLease, e store.Event) (ok bool, outcome string) {
	b, err := body(e)
	if err != nil {
		return false, "the event can't be sent"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.URL, bytes.NewReader(b))
	if err != nil {
		return false, "the URL can't be used"
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "s0-webhook")
	if l.Secret != "" {
		req.Header.Set(signatureHeader, sign(l.Secret, b))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return false, explain(err)
	}
	defer resp.Body.Close()
	// The receiver may still be writing; an answer that never ends is cut here.
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswerBytes)
	switch resp.StatusCode / 100 {
	case 2:
		return true, fmt.Sprintf("status %d", resp.StatusCode)
	case 3:
		return false, fmt.Sprintf("status %d: redirects are not followed", resp.StatusCode)
	}
	return false, fmt.Sprintf("status %d", resp.StatusCode)
}

// explain says what went wrong without what the network around us looks like.
func explain(err error) string {
	var (
		timeout net.Error
		dns     *net.DNSError
		tlsErr  *tls.CertificateVerificationError
	)
	switch {
	case errors.Is(err, errDenied):
		return errDenied.Error()
	case errors.As(err, &tlsErr):
		return "the certificate is not valid"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.As(err, &dns):
		return "the name could not be resolved"
	}
	return "the connection failed"
}
