package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	mathrand "math/rand/v2"
	"net/http"
	"time"
)

const (
	claimAttempts  = 8
	firstClaimWait = 100 * time.Millisecond
	longestWait    = 5 * time.Second
)

// ClaimSandbox claims one sandbox and tries again while that can help: the
// connection broke, or the server says that it stops, starts, is busy or misses its
// database. Each attempt carries the same new Idempotency-Key, so that however many
// of them arrive, there is one sandbox. It gives up after 8 attempts, about 15
// seconds, or when ctx ends. What the server refuses for good is answered at once.
func (c *Client) ClaimSandbox(ctx context.Context, req ClaimRequest) (*ClaimResponse, error) {
	var b [16]byte
	rand.Read(b[:]) // never fails
	key := hex.EncodeToString(b[:])
	wait := firstClaimWait
	for attempt := 1; ; attempt++ {
		sb, err := c.CreateSandboxOnce(ctx, key, req)
		asked, again := worthAgain(err)
		if err == nil || !again || attempt == claimAttempts {
			return sb, err
		}
		select {
		case <-time.After(max(asked, wait/2+mathrand.N(wait))): // clients must not come back in step
		case <-ctx.Done():
			return nil, err
		}
		wait = min(2*wait, longestWait)
	}
}

// worthAgain reports whether the same request may succeed in a moment, and when
// the server would like to see it again. A quota that is used up is not such a case.
func worthAgain(err error) (after time.Duration, again bool) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return 0, false
	}
	answer, ok := errors.AsType[*APIError](err)
	if !ok {
		return 0, true // no answer, or half of one
	}
	switch answer.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return min(answer.RetryAfter, longestWait), true
	case http.StatusTooManyRequests:
		return min(answer.RetryAfter, longestWait), answer.Code != "quota_exceeded"
	}
	return 0, false
}
