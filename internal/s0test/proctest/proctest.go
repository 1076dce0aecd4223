// Package proctest is the host's end of procd's connection, for tests: it listens
// where noded would, and speaks procapi as noded does.
//
// It fails its test on anything that a well-behaved procd would not send. It owns
// the listener and the connections that it accepted.
package proctest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/internal/procapi"
)

// Patience bounds everything that a test waits for.
const Patience = 30 * time.Second

// What noded's client uses, too: large windows, so that they don't bound a stream.
const (
	readFrame    = 256 << 10
	streamWindow = 1 << 20
	connWindow   = 3 << 20
)

// Node listens like noded for one sandbox.
type Node struct{ listener net.Listener }

// Listen starts a node on a unix socket.
func Listen(t testing.TB, socket string) *Node {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &Node{l}
}

// Stop ends the node: procd's dials fail until another one listens.
func (n *Node) Stop() { n.listener.Close() }

// Accept waits for procd's next connection.
func (n *Node) Accept(t testing.TB) *Conn {
	t.Helper()
	if err := n.listener.(*net.UnixListener).SetDeadline(time.Now().Add(Patience)); err != nil {
		t.Fatal(err)
	}
	conn, err := n.listener.Accept()
	if err != nil {
		t.Fatalf("procd did not dial: %v", err)
	}
	c := newConn(t, conn)
	t.Cleanup(c.Close)
	return c
}

// Conn is one connection of procd's.
type Conn struct {
	conn   net.Conn
	client *http.ClientConn
}

func newConn(t testing.TB, conn net.Conn) *Conn {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols:   protocols,
		HTTP2:       &http.HTTP2Config{MaxReadFrameSize: readFrame, MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow},
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	client, err := transport.NewClientConn(context.Background(), "http", "procd:80")
	if err != nil {
		t.Fatal(err)
	}
	return &Conn{conn, client}
}

// Close cuts the connection, as a killed noded would.
func (c *Conn) Close() { c.conn.Close() }

// Do sends a request and returns the response; body may be nil.
func (c *Conn) Do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://procd"+path, body)
	if err != nil {
		return nil, err
	}
	if timeout, ok := ctx.Value(timeoutKey{}).(string); ok {
		req.Header.Set(procapi.TimeoutHeader, timeout)
	}
	return c.client.RoundTrip(req)
}

type timeoutKey struct{}

// WithTimeoutHeader makes requests under ctx carry procapi.TimeoutHeader.
func WithTimeoutHeader(ctx context.Context, ms string) context.Context {
	return context.WithValue(ctx, timeoutKey{}, ms)
}

// Raw sends a body as it is and returns status and answer.
func (c *Conn) Raw(t testing.TB, method, path, body string) (status int, answer []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return c.raw(ctx, t, method, path, strings.NewReader(body))
}

func (c *Conn) raw(ctx context.Context, t testing.TB, method, path string, body io.Reader) (status int, answer []byte) {
	t.Helper()
	resp, err := c.Do(ctx, method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", method, path, err)
	}
	return resp.StatusCode, answer
}

// Call exchanges JSON and fails the test unless the answer is a success. out may
// be nil.
func (c *Conn) Call(t testing.TB, method, path string, in, out any) {
	t.Helper()
	status, answer := c.Raw(t, method, path, encode(t, in))
	if status/100 != 2 {
		t.Fatalf("%s %s: status %d: %s", method, path, status, answer)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal(answer, out); err != nil {
		t.Fatalf("%s %s: answer %.200q: %v", method, path, answer, err)
	}
}

// Refused exchanges JSON, fails the test unless the answer is an error, and
// returns it.
func (c *Conn) Refused(t testing.TB, method, path string, in any) (status int, e procapi.Error) {
	t.Helper()
	return c.refused(context.Background(), t, method, path, in)
}

// RefusedIn is Refused with procapi.TimeoutHeader.
func (c *Conn) RefusedIn(t testing.TB, ms, method, path string, in any) (status int, e procapi.Error) {
	t.Helper()
	return c.refused(WithTimeoutHeader(context.Background(), ms), t, method, path, in)
}

func (c *Conn) refused(ctx context.Context, t testing.TB, method, path string, in any) (status int, e procapi.Error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	body, ok := in.(string)
	if !ok {
		body = encode(t, in)
	}
	status, answer := c.raw(ctx, t, method, path, strings.NewReader(body))
	if err := json.Unmarshal(answer, &e); err != nil || e.Code == "" || e.Message == "" || status < 400 {
		t.Fatalf("%s %s: status %d, answer %.200q: want an error", method, path, status, answer)
	}
	return status, e
}

func encode(t testing.TB, in any) string {
	t.Helper()
	if in == nil {
		return ""
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Stream is an attached context.
type Stream struct {
	body   io.ReadCloser
	frames *io.PipeWriter
	cancel context.CancelFunc
	buf    []byte
	close  sync.Once
}

// Attach follows a context from an offset.
func (c *Conn) Attach(t testing.TB, id, query string) *Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	pr, pw := io.Pipe()
	resp, err := c.Do(ctx, http.MethodPost, procapi.PathContexts+"/"+id+"/attach"+query, pr)
	if err != nil {
		cancel()
		t.Fatalf("attaching to %s: %v", id, err)
	}
	s := &Stream{body: resp.Body, frames: pw, cancel: cancel}
	t.Cleanup(s.Close)
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("attaching to %s: status %d: %s", id, resp.StatusCode, b)
	}
	return s
}

// Close leaves.
func (s *Stream) Close() {
	s.close.Do(func() {
		s.frames.Close()
		s.cancel()
		s.body.Close()
	})
}

// Send sends a frame.
func (s *Stream) Send(t testing.TB, typ byte, parts ...[]byte) {
	t.Helper()
	if _, err := s.frames.Write(procapi.AppendFrame(nil, typ, parts...)); err != nil {
		t.Fatalf("sending a frame: %v", err)
	}
}

// Input sends bytes for stdin.
func (s *Stream) Input(t testing.TB, requestID, data string) {
	t.Helper()
	s.Send(t, procapi.FrameInput, []byte{byte(len(requestID))}, []byte(requestID), []byte(data))
}

// Next reads a frame. The payload is valid until the next call.
func (s *Stream) Next(t testing.TB) (typ byte, payload []byte) {
	t.Helper()
	typ, payload, err := s.Read()
	if err != nil {
		t.Fatalf("reading a frame: %v", err)
	}
	return typ, payload
}

// Read is Next that returns the end of the stream.
func (s *Stream) Read() (typ byte, payload []byte, err error) {
	typ, s.buf, err = procapi.ReadFrame(s.body, s.buf)
	return typ, s.buf, err
}

// Ended is what a stream said until it ended.
type Ended struct {
	Out     map[byte]string // by frame type
	Next    uint64          // offset behind the last byte
	Lost    uint64
	Prompts []string
	Exit    procapi.Exit
}

// Until reads until stop, which sees each frame, says so, or the exit.
func (s *Stream) Until(t testing.TB, stop func(e *Ended, typ byte) bool) Ended {
	t.Helper()
	e := Ended{Out: map[byte]string{}}
	for {
		typ, payload := s.Next(t)
		switch typ {
		case procapi.FrameStdout, procapi.FrameStderr, procapi.FramePTY:
			offset, data, err := procapi.Output(payload)
			if err != nil || e.Next != 0 && offset != e.Next {
				t.Fatalf("output at offset %d after %d: %v", offset, e.Next, err)
			}
			e.Next = offset + uint64(len(data))
			e.Out[typ] += string(data)
		case procapi.FrameGap:
			n := uint64(0)
			for _, b := range payload {
				n = n<<8 | uint64(b)
			}
			e.Lost += n
			e.Next += n
		case procapi.FramePrompt:
			e.Prompts = append(e.Prompts, string(payload))
		case procapi.FrameExit:
			if err := json.NewDecoder(bytes.NewReader(payload)).Decode(&e.Exit); err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.Read(); err != io.EOF {
				t.Fatalf("something follows the exit: %v", err)
			}
			return e
		default:
			t.Fatalf("frame of unknown type %d", typ)
		}
		if stop(&e, typ) {
			return e
		}
	}
}

// ToEnd reads to the exit.
func (s *Stream) ToEnd(t testing.TB) Ended {
	t.Helper()
	return s.Until(t, func(*Ended, byte) bool { return false })
}

// Drain reads to the exit without keeping anything and returns the output's size,
// which includes what was lost.
func (s *Stream) Drain(t testing.TB) (bytes uint64) {
	t.Helper()
	for {
		typ, payload := s.Next(t)
		switch typ {
		case procapi.FrameExit:
			return bytes
		case procapi.FrameStdout, procapi.FrameStderr, procapi.FramePTY:
			offset, data, err := procapi.Output(payload)
			if err != nil {
				t.Fatal(err)
			}
			bytes = offset + uint64(len(data))
		}
	}
}
