package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"
)

const (
	// maxMessageBytes bounds a message of the server, whatever it says of itself.
	maxMessageBytes = 16 << 20
	// writeTimeout ends a stream whose peer stopped reading: without it a writer
	// would hang for as long as the connection looks alive.
	writeTimeout = 30 * time.Second
	// closeTimeout is how long a polite goodbye may take.
	closeTimeout = time.Second
	// handshakeTimeout bounds the way from a name to an open stream.
	handshakeTimeout = 30 * time.Second
	// silence is how long a server that has pinged may say nothing at all: more than
	// two of its pings, which come every 25 s.
	silence = 60 * time.Second
)

// Stream is a context attached through a WebSocket: it first replays what the
// context printed and still remembers, then follows. One goroutine may read
// while others write; the caller closes it.
type Stream struct {
	conn   *websocket.Conn
	stop   func() bool // ends the watch over the context that Attach was given
	offset uint64      // of the reader's next byte

	writeMu sync.Mutex // a WebSocket takes one writer at a time
}

// An Event is what a context sends: [Output], [Gap], [Prompt] or [Exit].
type Event interface{ event() }

// Output is something that the context printed.
type Output struct {
	Source ContextServerMessageSource // stdout, stderr or pty
	Data   string                     // bytes that need not be UTF-8
}

// Gap tells that output is missing here: this reader was too slow for what the
// context remembers, or came too late.
type Gap struct {
	LostBytes int64
}

// Prompt tells that a REPL waits for input again.
type Prompt struct {
	RequestID string // of the input that it has finished with; see [Stream.Input]
}

// Exit tells that the context's process ended; nothing follows.
type Exit struct {
	Code  int
	State ContextState
}

func (Output) event() {}
func (Gap) event()    {}
func (Prompt) event() {}
func (Exit) event()   {}

// Attach attaches to a context, from the beginning of what it remembers.
// Cancelling ctx ends the stream.
func (c *Client) Attach(ctx context.Context, sandboxID, contextID string) (*Stream, error) {
	return c.AttachAt(ctx, sandboxID, contextID, 0)
}

// AttachAt is Attach from the byte of output at offset on, for a client that has
// had everything before: the [Stream.Offset] of a stream whose connection broke.
func (c *Client) AttachAt(ctx context.Context, sandboxID, contextID string, offset uint64) (*Stream, error) {
	in := call{path: contextPath(sandboxID, contextID, "ws")}
	if offset > 0 {
		in.query = url.Values{"offset": {strconv.FormatUint(offset, 10)}}
	}
	u := c.url(in)
	u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	conn, resp, err := c.dialer().DialContext(ctx, u.String(), c.header(nil))
	if err != nil {
		if resp != nil {
			defer resp.Body.Close()
			return nil, apiError(resp)
		}
		return nil, fmt.Errorf("attaching to context %s: %w", contextID, err)
	}
	conn.SetReadLimit(maxMessageBytes)
	expectPings(conn)
	// Closing the connection is the one way to wake a reader.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return &Stream{conn: conn, stop: stop, offset: offset}, nil
}

// dialer speaks to the server in the same way as the HTTP client does, as far
// as a WebSocket can.
func (c *Client) dialer() *websocket.Dialer {
	d := &websocket.Dialer{Proxy: http.ProxyFromEnvironment, HandshakeTimeout: handshakeTimeout}
	if t, ok := c.cfg.HTTPClient.Transport.(*http.Transport); ok {
		d.Proxy, d.NetDialContext, d.TLSClientConfig = t.Proxy, t.DialContext, t.TLSClientConfig
	}
	return d
}

// expectPings makes reading fail where the server's pings stop: nothing else tells
// that the network between has gone.
func expectPings(conn *websocket.Conn) {
	answer := conn.PingHandler()
	conn.SetPingHandler(func(data string) error {
		conn.SetReadDeadline(time.Now().Add(silence))
		return answer(data)
	})
}

// Next waits for the next event. It returns io.EOF once the server has closed
// the stream in order, which it does after [Exit].
func (s *Stream) Next() (Event, error) {
	for {
		_, data, err := s.conn.ReadMessage()
		if err != nil {
			return nil, closeError(err)
		}
		var m ContextServerMessage
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, fmt.Errorf("message of the server: %w", err)
		}
		switch e := event(m).(type) {
		case nil:
			continue
		case Output:
			s.offset += uint64(len(e.Data))
			return e, nil
		case Gap:
			s.offset += uint64(max(0, e.LostBytes))
			return e, nil
		default:
			return e, nil
		}
	}
}

// Offset is how far the reader has come in the context's output.
func (s *Stream) Offset() uint64 { return s.offset }

// event is nil for messages of a kind that this client does not know.
func event(m ContextServerMessage) Event {
	switch {
	case m.Type == ContextServerMessageTypeOutput:
		if m.DataBase64 != nil {
			return Output{Source: value(m.Source), Data: string(m.DataBase64)}
		}
		return Output{Source: value(m.Source), Data: value(m.Data)}
	case m.Type == ContextServerMessageTypeGap:
		return Gap{LostBytes: value(m.LostBytes)}
	case m.Type == ContextServerMessageTypeDone && m.ExitCode != nil:
		return Exit{Code: *m.ExitCode, State: value(m.State)}
	case m.Type == ContextServerMessageTypeDone:
		return Prompt{RequestID: value(m.RequestID)}
	}
	return nil
}

// closeError turns an orderly close into io.EOF, unless it has a reason to tell.
func closeError(err error) error {
	var closed *websocket.CloseError
	switch {
	case !errors.As(err, &closed):
		return err
	case closed.Code == websocket.CloseNormalClosure && closed.Text == "":
		return io.EOF
	}
	return &ClosedError{Code: closed.Code, Reason: closed.Text}
}

// ClosedError is a stream that the server has ended before its time.
type ClosedError struct {
	Code   int    // of RFC 6455
	Reason string // for people; may be empty
}

func (e *ClosedError) Error() string {
	if e.Reason != "" {
		return "the server ended the stream: " + e.Reason
	}
	return fmt.Sprintf("the server ended the stream: close code %d", e.Code)
}

// CanReattach reports whether a stream that ended with err, or could not be opened,
// may be gone on with by [Client.AttachAt]: the connection broke, or the server
// restarts. Any other end is one.
func CanReattach(err error) bool {
	var closed *ClosedError
	var answer *APIError
	var broken net.Error
	switch {
	case errors.As(err, &closed):
		return slices.Contains([]int{
			websocket.CloseGoingAway, websocket.CloseAbnormalClosure, websocket.CloseServiceRestart, websocket.CloseTryAgainLater,
		}, closed.Code)
	case errors.As(err, &answer):
		return answer.StatusCode == http.StatusBadGateway || answer.RetryAfter > 0
	}
	return errors.As(err, &broken) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// OutputLostError tells how much output never arrived, of a context that printed
// faster than it was read.
type OutputLostError struct{ Bytes int64 }

func (e *OutputLostError) Error() string {
	return fmt.Sprintf("%d bytes of output are missing: the process printed more than is kept until it is read", e.Bytes)
}

// Copy writes the context's output to stdout and stderr, a terminal's to stdout,
// until its process ends. With an [*OutputLostError] the exit is known all the same.
func (s *Stream) Copy(stdout, stderr io.Writer) (Exit, error) {
	var lost int64
	for {
		e, err := s.Next()
		if errors.Is(err, io.EOF) {
			return Exit{}, io.ErrUnexpectedEOF
		}
		if err != nil {
			return Exit{}, err
		}
		switch e := e.(type) {
		case Exit:
			if lost > 0 {
				return e, &OutputLostError{Bytes: lost}
			}
			return e, nil
		case Gap:
			lost += e.LostBytes
		case Output:
			if _, err := io.WriteString(pick(e.Source, stdout, stderr), e.Data); err != nil {
				return Exit{}, err
			}
		}
	}
}

func pick(source ContextServerMessageSource, stdout, stderr io.Writer) io.Writer {
	if source == ContextServerMessageSourceStderr {
		return stderr
	}
	return stdout
}

// Write sends bytes to the context's input.
func (s *Stream) Write(p []byte) (int, error) {
	// JSON holds text alone; the server takes any other frame as raw bytes.
	if !utf8.Valid(p) {
		if err := s.write(websocket.BinaryMessage, p); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	if err := s.Input(string(p), ""); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Input sends text to the context's input. A REPL answers with a [Prompt] that
// carries the request id, unless that is empty, when it has finished with it.
func (s *Stream) Input(text, requestID string) error {
	m := ContextClientMessage{Type: ContextClientMessageTypeInput, Data: &text}
	if requestID != "" {
		m.RequestID = &requestID
	}
	return s.send(m)
}

// CloseInput says that no more input follows: the process reads an end of file.
func (s *Stream) CloseInput() error {
	return s.send(ContextClientMessage{Type: ContextClientMessageTypeEOF})
}

// Resize tells the context's terminal its size.
func (s *Stream) Resize(size PTYSize) error {
	return s.send(ContextClientMessage{Type: ContextClientMessageTypeResize, Rows: &size.Rows, Cols: &size.Cols})
}

// Signal signals the context's process: "TERM", "SIGTERM" or "15".
func (s *Stream) Signal(name string) error {
	return s.send(ContextClientMessage{Type: ContextClientMessageTypeSignal, Signal: &name})
}

// Close ends the stream; the context lives on.
func (s *Stream) Close() error {
	s.stop()
	// The goodbye is a courtesy: the connection is closed either way.
	_ = s.conn.WriteControl(websocket.CloseMessage,
		websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeTimeout))
	return s.conn.Close()
}

func (s *Stream) send(m ContextClientMessage) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.write(websocket.TextMessage, b)
}

func (s *Stream) write(kind int, p []byte) error {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return s.conn.WriteMessage(kind, p)
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
