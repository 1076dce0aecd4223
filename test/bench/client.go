package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A client is a plain HTTP client of the API: what a user without our own Go
// client pays. It keeps its connections alive.
type client struct {
	base, token string
	http        *http.Client
}

func newClient(base, token string) *client {
	return &client{base: base, token: token, http: &http.Client{
		Timeout:   2 * time.Minute,
		Transport: &http.Transport{MaxIdleConnsPerHost: 256},
	}}
}

// An answer is one call's outcome. server is the time that the API itself
// reports in Server-Timing, 0 when it reports none.
type answer struct {
	status int
	data   json.RawMessage
	took   time.Duration
	server time.Duration
	code   string
}

func (c *client) call(ctx context.Context, method, path string, body any) (answer, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(b))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.token)
	if end, ok := ctx.Deadline(); ok { // a command may take longer than the server waits by itself
		req.Header.Set("Request-Timeout", strconv.FormatFloat(time.Until(end).Seconds(), 'f', 3, 64))
	}
	begin := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	took := time.Since(begin)
	if err != nil {
		return answer{}, err
	}
	var envelope struct {
		Data  json.RawMessage
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal(raw, &envelope); err != nil {
		return answer{}, fmt.Errorf("%s %s: status %d: %w", method, path, resp.StatusCode, err)
	}
	return answer{resp.StatusCode, envelope.Data, took, serverTiming(resp.Header.Get("Server-Timing")), envelope.Error.Code}, nil
}

// must is call for what has to succeed; out may be nil.
func (c *client) must(ctx context.Context, method, path string, body, out any) (answer, error) {
	a, err := c.call(ctx, method, path, body)
	if err != nil {
		return a, err
	}
	if a.status >= 300 {
		return a, fmt.Errorf("%s %s: status %d, code %s", method, path, a.status, a.code)
	}
	if out == nil {
		return a, nil
	}
	return a, json.Unmarshal(a.data, out)
}

// serverTiming reads `total;dur=0.81` (milliseconds) from a Server-Timing header.
func serverTiming(h string) time.Duration {
	for metric := range strings.SplitSeq(h, ",") {
		name, rest, _ := strings.Cut(strings.TrimSpace(metric), ";")
		ms, ok := strings.CutPrefix(rest, "dur=")
		if name != "total" || !ok {
			continue
		}
		if v, err := strconv.ParseFloat(ms, 64); err == nil {
			return time.Duration(v * float64(time.Millisecond))
		}
	}
	return 0
}
