// Package noded talks to the node's noded: it follows what noded tells of slots and
// sandboxes, and reaches into sandboxes through noded's proxy.
//
// It owns the connections to one unix socket, and while [Client.Run] runs one
// goroutine that follows the stream: a lost one is tried again for ever. What is told
// goes to one [Listener] in order, and the package keeps no copy of it.
package noded

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/procapi"
)

const (
	dialTimeout = 2 * time.Second
	firstPause  = 50 * time.Millisecond
	longestStop = 5 * time.Second
	// A connection that says nothing for this long is asked, and given up when it
	// stays silent: a stopped node must not look alive.
	silence, pingTimeout = 15 * time.Second, 5 * time.Second

	maxMessage   = 4 << 20   // one call's answer or one event
	streamBuffer = 256 << 10 // what a slow client can make us hold
	maxErrorBody = 16 << 10
)

// Listener is told what noded tells.
type Listener interface {
	// Synced is called with everything that the node has, each time a stream is whole.
	Synced(picture Picture)
	// Lost is called when the stream ended: what was told may be old.
	Lost(err error)
	// PodSlot, Sandbox and SandboxGone are called for each change afterwards.
	PodSlot(*nodeapi.PodSlot)
	Sandbox(*nodeapi.Sandbox)
	SandboxGone(id string)
}

// Picture is what the node has.
type Picture struct {
	Slots     map[string]*nodeapi.PodSlot // by pod
	Sandboxes map[string]*nodeapi.Sandbox // by id
}

// Client is one node's. It is safe for concurrent use.
type Client struct {
	rpc   nodeapiconnect.NodeClient
	data  *http.Client
	log   *slog.Logger
	close func()
}

// New makes a client; nothing is connected yet.
func New(socket string, log *slog.Logger) *Client {
	calls, data := transport(socket), transport(socket)
	return &Client{
		rpc: nodeapiconnect.NewNodeClient(&http.Client{Transport: calls}, "http://node", connect.WithReadMaxBytes(maxMessage), connect.WithAcceptCompression("gzip", nil, nil)),
		// Answers of a sandbox must not send us anywhere.
		data: &http.Client{Transport: data, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		log:  log,
		close: func() {
			calls.CloseIdleConnections()
			data.CloseIdleConnections()
		},
	}
}

// RPC is the node API. Its errors are Connect's.
func (c *Client) RPC() nodeapiconnect.NodeClient { return c.rpc }

func transport(socket string) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
		HTTP2:              &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: pingTimeout, MaxReceiveBufferPerStream: streamBuffer},
	}
}

// Run follows the node until ctx ends.
func (c *Client) Run(ctx context.Context, l Listener) error {
	defer c.close()
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, longestStop) {
		synced, err := c.watch(ctx, l)
		if ctx.Err() != nil {
			break
		}
		if synced {
			pause = firstPause
		}
		l.Lost(err)
		c.log.Warn("lost the node's stream", "error", err, "retry_in", pause)
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
		}
	}
	return nil
}

// watch follows one stream to its end and reports whether it ever was whole.
func (c *Client) watch(ctx context.Context, l Listener) (synced bool, err error) {
	stream, err := c.rpc.Watch(ctx, &nodeapi.WatchRequest{})
	if err != nil {
		return false, fmt.Errorf("watching the node: %w", err)
	}
	defer stream.Close()
	picture := Picture{Slots: map[string]*nodeapi.PodSlot{}, Sandboxes: map[string]*nodeapi.Sandbox{}}
	for stream.Receive() {
		e := stream.Msg()
		switch {
		case synced:
			tell(l, e)
		case e.GetSynced() != nil:
			synced = true
			l.Synced(picture)
		default:
			picture.add(e)
		}
	}
	if err = stream.Err(); err == nil {
		err = errors.New("the node ended the stream")
	}
	return synced, fmt.Errorf("watching the node: %w", err)
}

func (p Picture) add(e *nodeapi.Event) {
	if slot := e.GetPod(); slot != nil {
		p.Slots[slot.GetPod()] = slot
	}
	if sb := e.GetSandbox(); sb != nil {
		p.Sandboxes[sb.GetId()] = sb
	}
	if id := e.GetSandboxGone(); id != "" {
		delete(p.Sandboxes, id)
	}
}

// tell passes on one event. Others are none of ours, or of a newer node.
func tell(l Listener, e *nodeapi.Event) {
	switch ev := e.GetEvent().(type) {
	case *nodeapi.Event_Pod:
		l.PodSlot(ev.Pod)
	case *nodeapi.Event_Sandbox:
		l.Sandbox(ev.Sandbox)
	case *nodeapi.Event_SandboxGone:
		l.SandboxGone(ev.SandboxGone)
	}
}

// Sandbox says which instance of a sandbox is meant.
type Sandbox struct {
	ID         string
	Generation uint64 // 0: any
}

// Request is one request to a sandbox's procd.
type Request struct {
	Method string
	Path   string // of procapi
	Query  url.Values
	Header map[string]string
	Body   io.Reader
	JSON   any // instead of Body
}

// Call makes a request whose answer is JSON, into out unless that is nil.
func (c *Client) Call(ctx context.Context, sb Sandbox, req Request, out any) error {
	resp, err := c.Stream(ctx, sb, req)
	if err != nil {
		return err
	}
	defer resp.Close()
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp, maxErrorBody))
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp, procapi.MaxJSONBytes)).Decode(out); err != nil {
		return fmt.Errorf("%s %s of %s: %w", req.Method, req.Path, sb.ID, err)
	}
	return nil
}

// Stream makes a request and answers with a success's body, which lives as long as
// ctx. What a sandbox refuses is an error of package errdefs with procd's code.
func (c *Client) Stream(ctx context.Context, sb Sandbox, req Request) (io.ReadCloser, error) {
	out, err := request(ctx, sb, req)
	if err != nil {
		return nil, err
	}
	resp, err := c.data.Do(out)
	if err != nil {
		return nil, fmt.Errorf("%s %s of %s: %w", req.Method, req.Path, sb.ID, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, refusal(resp, req, sb)
	}
	return resp.Body, nil
}

func request(ctx context.Context, sb Sandbox, req Request) (*http.Request, error) {
	body := req.Body
	if req.JSON != nil {
		b, err := json.Marshal(req.JSON)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "node", Path: nodeapi.ProcPrefix + sb.ID + req.Path, RawQuery: req.Query.Encode()}
	out, err := http.NewRequestWithContext(ctx, req.Method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if req.JSON != nil {
		out.Header.Set("Content-Type", "application/json")
	}
	if sb.Generation != 0 {
		out.Header.Set(nodeapi.GenerationHeader, strconv.FormatUint(sb.Generation, 10))
	}
	for k, v := range req.Header {
		out.Header.Set(k, v)
	}
	return out, nil
}

// refusal is an answer that is no success, which a sandbox may have written.
func refusal(resp *http.Response, req Request, sb Sandbox) error {
	var e procapi.Error
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if json.Unmarshal(b, &e) != nil || e.Message == "" {
		e = procapi.Error{Message: resp.Status}
	}
	return errdefs.WithCode(kind(resp.StatusCode), nodeapi.Text(e.Code), "%s %s of %s: %s", req.Method, req.Path, sb.ID, nodeapi.Text(e.Message))
}

func kind(status int) errdefs.Kind {
	for k := errdefs.Internal; k <= errdefs.GatewayTimeout; k++ {
		if k.HTTPStatus() == status {
			return k
		}
	}
	return errdefs.Internal
}
