package netdapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	// maxBody bounds every body but the stream of events: a policy is at most
	// 256 KiB, a list of thousands of sandboxes a few MiB.
	maxBody = 8 << 20
	// dialTimeout is for a socket of this machine: who does not accept hangs.
	dialTimeout = time.Second
	// answerTimeout is for a netd that hangs: every answer begins at once.
	answerTimeout = 2 * time.Second
	// idleConns are kept for claims that come together.
	idleConns = 16
)

// ErrDown is what calls end in that reached nobody: netd is not running.
var ErrDown = errors.New("netd does not answer")

// A Client talks to netd. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client of the netd that listens on a unix socket; nothing is
// dialled yet.
func NewClient(socket string) *Client {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: idleConns, ResponseHeaderTimeout: answerTimeout, DisableCompression: true,
	}}}
}

// Close drops the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Info says who answers.
func (c *Client) Info(ctx context.Context) (info Info, err error) {
	return info, c.call(ctx, http.MethodGet, pathInfo, nil, &info)
}

// Watch calls up when netd answers, and returns when it does not any more, or when
// ctx ends.
func (c *Client) Watch(ctx context.Context, up func(Info)) error {
	resp, err := c.send(ctx, http.MethodGet, pathWatch, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(io.LimitReader(resp.Body, maxBody))
	var info Info
	if err := dec.Decode(&info); err != nil {
		return fmt.Errorf("watching netd: %w", err)
	}
	up(info)
	return dec.Decode(&info) // nothing follows but the end
}

// Attach tells of a sandbox's place in the network. It reaches nothing until its
// policy is set. Repeating it changes nothing; a newer generation replaces an older.
func (c *Client) Attach(ctx context.Context, s Slot) error {
	return c.call(ctx, http.MethodPost, pathAttach, s, nil)
}

// SetPolicy puts a policy into force: when it has returned, every later packet is
// judged by it.
func (c *Client) SetPolicy(ctx context.Context, p Policy) error {
	return c.call(ctx, http.MethodPost, pathPolicy, p, nil)
}

// Detach forgets a sandbox (generation 0: any). What is unknown is no error.
func (c *Client) Detach(ctx context.Context, id sandbox.ID, gen sandbox.Generation) error {
	return c.call(ctx, http.MethodPost, pathDetach, detachRequest{ID: id, Generation: gen}, nil)
}

// List is every sandbox that netd knows.
func (c *Client) List(ctx context.Context) (all []Known, err error) {
	return all, c.call(ctx, http.MethodGet, pathList, nil, &all)
}

// Counters are those of every sandbox that netd knows.
func (c *Client) Counters(ctx context.Context) (all map[sandbox.ID]Counters, err error) {
	return all, c.call(ctx, http.MethodGet, pathCounters, nil, &all)
}

// CA is the certificate that a sandbox has to trust for connections that are
// intercepted.
func (c *Client) CA(ctx context.Context, id sandbox.ID) (ca CA, err error) {
	return ca, c.call(ctx, http.MethodGet, pathList+"/"+url.PathEscape(string(id))+"/ca", nil, &ca)
}

// TakeEvents has netd forget the events before a mark and answers those behind it, or
// none after it has waited for a second.
func (c *Client) TakeEvents(ctx context.Context, stored Mark) (e Events, err error) {
	return e, c.call(ctx, http.MethodPost, pathEvents, stored, &e)
}

func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(b)
	}
	resp, err := c.send(ctx, method, path, payload)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if answer == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody)) // the connection is kept
		return err
	}
	return decode(resp.Body, answer)
}

// send returns only answers that say yes.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://netd"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDown, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var f failure
	if err := decode(resp.Body, &f); err != nil {
		return nil, fmt.Errorf("netd answers %s: %w", resp.Status, err)
	}
	return nil, errdefs.WithCode(f.Kind, f.Code, "%s", f.Message)
}

// decode reads one strict JSON value.
func decode(r io.Reader, into any) error {
	limited := &io.LimitedReader{R: r, N: maxBody + 1}
	dec := json.NewDecoder(limited)
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else {
			err = errors.New("something follows the value")
		}
	}
	if limited.N == 0 {
		err = fmt.Errorf("more than %d bytes", maxBody)
	}
	return err
}
