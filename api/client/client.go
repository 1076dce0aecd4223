// Package client is the Go client of the s0 API: one method per operation, the
// answers unwrapped from their envelope, failures as [*APIError], and contexts
// attached live through [Stream].
//
//	c, err := client.New(client.Config{BaseURL: "http://127.0.0.1:30080", Token: key})
//	sb, err := c.CreateSandbox(ctx, client.ClaimRequest{Template: "default"})
//	out, err := c.ReadFile(ctx, sb.SandboxID, "/etc/os-release")
//
// The types are generated from api/openapi.yaml; a nil pointer, slice or map is
// an absent field, an empty one is sent. A Client holds nothing but its
// configuration and is safe for concurrent use. It never logs, and never retries by
// itself but in [Client.ClaimSandbox].
package client

//go:generate go tool -modfile=../../hack/tools/gen/go.mod oapi-codegen -config oapi-codegen.yaml ../openapi.yaml

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxAnswerBytes bounds a JSON answer: a context's buffered output is the
// largest thing that the server sends in one.
const maxAnswerBytes = 64 << 20

// Config says which server to talk to and as whom.
type Config struct {
	BaseURL string // such as http://127.0.0.1:30080; required
	Token   string // an API key or a user's access token; empty for operations that need neither
	TeamID  string // the team to act in; empty for an API key's or a user's only team

	HTTPClient *http.Client // defaults to one without a timeout of its own: contexts bound the calls
	UserAgent  string       // defaults to "s0-go"
}

// Client calls the API.
type Client struct {
	cfg  Config
	base *url.URL
}

// New checks the configuration; nothing is sent yet.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(cfg.BaseURL, "/"))
	if err != nil {
		return nil, fmt.Errorf("base URL: %w", err)
	}
	if (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" {
		return nil, fmt.Errorf("base URL %q: want http://host or https://host", cfg.BaseURL)
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = &http.Client{}
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "s0-go"
	}
	return &Client{cfg: cfg, base: base}, nil
}

// A call is one request: a body is sent as JSON unless it is an io.Reader, whose type
// the header may say.
type call struct {
	method string
	path   string // already escaped
	query  url.Values
	header http.Header
	body   any
}

// do makes the call and returns the `data` of its answer.
func do[T any](ctx context.Context, c *Client, in call) (*T, error) {
	resp, err := c.send(ctx, in)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var envelope struct {
		Data *T `json:"data"`
	}
	if err := decode(resp.Body, &envelope); err != nil {
		return nil, fmt.Errorf("%s %s: reading the answer: %w", in.method, in.path, err)
	}
	if envelope.Data == nil {
		return nil, fmt.Errorf("%s %s: the answer has no data", in.method, in.path)
	}
	return envelope.Data, nil
}

// exec is do for operations whose answer only confirms.
func exec(ctx context.Context, c *Client, in call) error {
	_, err := do[json.RawMessage](ctx, c, in)
	return err
}

// send makes the call and leaves the body of a success to the caller.
func (c *Client) send(ctx context.Context, in call) (*http.Response, error) {
	req, err := c.request(ctx, in)
	if err != nil {
		return nil, err
	}
	resp, err := c.cfg.HTTPClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, apiError(resp)
	}
	return resp, nil
}

func (c *Client) request(ctx context.Context, in call) (*http.Request, error) {
	body, contentType, err := encode(in.body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: encoding the request: %w", in.method, in.path, err)
	}
	req, err := http.NewRequestWithContext(ctx, in.method, c.url(in).String(), body)
	if err != nil {
		return nil, err
	}
	req.Header = c.header(in.header)
	if contentType != "" && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", contentType)
	}
	return req, nil
}

func (c *Client) url(in call) *url.URL {
	u := *c.base
	path := strings.TrimRight(u.EscapedPath(), "/") + in.path
	u.Path, _ = url.PathUnescape(path) // in.path was made by escape, the base's path by url.Parse
	u.RawPath = path
	u.RawQuery = in.query.Encode()
	return &u
}

func (c *Client) header(extra http.Header) http.Header {
	h := http.Header{"User-Agent": {c.cfg.UserAgent}}
	if c.cfg.Token != "" {
		h.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	if c.cfg.TeamID != "" {
		h.Set("X-Team-ID", c.cfg.TeamID)
	}
	for k, v := range extra {
		h[k] = v
	}
	return h
}

func encode(body any) (_ io.Reader, contentType string, _ error) {
	switch b := body.(type) {
	case nil:
		return nil, "", nil
	case io.Reader:
		return b, "application/octet-stream", nil
	}
	b, err := json.Marshal(body)
	return bytes.NewReader(b), "application/json", err
}

func decode(r io.Reader, into any) error {
	limited := &io.LimitedReader{R: r, N: maxAnswerBytes}
	err := json.NewDecoder(limited).Decode(into)
	if limited.N <= 0 {
		return fmt.Errorf("longer than %d bytes", maxAnswerBytes)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// escape joins path segments, each escaped: an id never reaches into another path.
func escape(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}
