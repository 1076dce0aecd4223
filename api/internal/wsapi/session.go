package wsapi

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"s0.run/api/internal/openapi"
	"s0.run/internal/procapi"
)

const (
	// chunkBytes bounds one frame towards the client, whatever procd sends at once.
	chunkBytes = 64 << 10
	// lingerBytes bounds what is read from a client that was told off.
	lingerBytes = 16 << 20
)

// session is one client attached to one context.
type session struct {
	conn   *websocket.Conn
	cancel context.CancelFunc
	input  *io.PipeWriter // towards the sandbox
	done   chan struct{}  // closed when the client's side has ended

	writeTimeout time.Duration
	large        func() (leave func(), ok bool) // asks for room for a large message
}

// goodbye says why the session ends and gives the client a moment to have read
// everything before.
func (ss *session) goodbye(code int, text string) {
	msg := websocket.FormatCloseMessage(code, text)
	if ss.conn.WriteControl(websocket.CloseMessage, msg, time.Now().Add(writeTimeout)) != nil {
		return
	}
	ss.conn.SetReadDeadline(time.Now().Add(closeWait))
	select {
	case <-ss.done:
	case <-time.After(closeWait):
	}
}

// reject tells a client what it did wrong. What is still on its way is read and
// dropped for a moment: closing over it would take the message back.
func (ss *session) reject(code int, text string) {
	ss.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), time.Now().Add(closeWait))
	ss.linger()
}

// wasTold tells whether a failed read has made the library say goodbye: the client
// broke the protocol, and it neither left nor fell silent.
func wasTold(err error) bool {
	_, left := errors.AsType[*websocket.CloseError](err)
	_, silent := errors.AsType[net.Error](err)
	return !left && !silent && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, errGone)
}

func (ss *session) linger() {
	raw := ss.conn.NetConn()
	raw.SetReadDeadline(time.Now().Add(closeWait))
	io.CopyN(io.Discard, raw, lingerBytes)
}

// readClient carries the client's frames to the sandbox until either is gone.
func (ss *session) readClient() {
	defer ss.cancel()
	ss.conn.SetPongHandler(func(string) error { return ss.conn.SetReadDeadline(time.Now().Add(pongWait)) })
	var f inputFrame
	for ss.takeMessage(&f) {
	}
}

// inputFrame is what of a session's input outlives a message.
type inputFrame struct {
	buf   []byte
	ended bool // the process takes no more; what it printed may still be on its way to the client
}

// takeMessage carries the client's next message; false when there is none.
func (ss *session) takeMessage(f *inputFrame) bool {
	// Renewed before each read, because a sandbox that takes no input stops the
	// reading, and then no pong is seen.
	ss.conn.SetReadDeadline(time.Now().Add(pongWait))
	kind, msg, leave, err := ss.readMessage()
	defer leave()
	switch {
	case errors.Is(err, errCrowded):
		ss.reject(websocket.CloseTryAgainLater, err.Error())
		return false
	case errors.Is(err, websocket.ErrReadLimit): // of some the library does not tell
		ss.reject(websocket.CloseMessageTooBig, "message too long")
		return false
	case err != nil:
		if wasTold(err) {
			ss.linger()
		}
		return false
	case kind == websocket.TextMessage && !utf8.Valid(msg):
		ss.reject(websocket.CloseInvalidFramePayloadData, "invalid UTF-8")
		return false
	}
	if f.buf, err = toFrame(f.buf[:0], kind, msg); err != nil {
		ss.reject(websocket.ClosePolicyViolation, err.Error())
		return false
	}
	if !f.ended {
		_, err = ss.input.Write(f.buf)
		f.ended = err != nil
	}
	return true
}

var errCrowded = errors.New("too many large messages at once")

// readMessage reads a client's next message. leave gives back the room of a large
// one; it is never nil.
func (ss *session) readMessage() (kind int, msg []byte, leave func(), err error) {
	leave = func() {}
	kind, r, err := ss.conn.NextReader()
	if err != nil {
		return 0, nil, leave, err
	}
	msg, err = io.ReadAll(io.LimitReader(r, usualMessageBytes))
	if err != nil || len(msg) < usualMessageBytes {
		return kind, msg, leave, err
	}
	room, ok := ss.large()
	if !ok {
		return 0, nil, leave, errCrowded
	}
	rest, err := io.ReadAll(r)
	return kind, append(msg, rest...), room, err
}

// toFrame translates a client's message. What is none of the contract's messages
// is input as it stands, and so is every binary one: bytes that somebody pipes in
// must not become commands because they look like some.
func toFrame(dst []byte, kind int, msg []byte) ([]byte, error) {
	var m openapi.ContextClientMessage
	if kind != websocket.TextMessage || json.Unmarshal(msg, &m) != nil || !m.Type.Valid() {
		return input(dst, "", msg)
	}
	switch m.Type {
	case openapi.ContextClientMessageTypeResize:
		if m.Rows == nil || m.Cols == nil || *m.Rows == 0 || *m.Cols == 0 {
			return nil, errors.New("resize: rows and cols must be greater than 0")
		}
		return control(dst, procapi.FrameResize, procapi.PTYSize{Rows: *m.Rows, Cols: *m.Cols})
	case openapi.ContextClientMessageTypeSignal:
		if m.Signal == nil {
			return nil, errors.New("signal: signal is required")
		}
		return control(dst, procapi.FrameSignal, procapi.SignalRequest{Signal: *m.Signal})
	case openapi.ContextClientMessageTypeEOF:
		return procapi.AppendFrame(dst, procapi.FrameEOF), nil
	}
	var id, data string
	if m.RequestID != nil {
		id = *m.RequestID
	}
	if m.Data != nil {
		data = *m.Data
	}
	return input(dst, id, []byte(data))
}

func input(dst []byte, id string, data []byte) ([]byte, error) {
	switch {
	case len(id) > 255:
		return nil, errors.New("input: request_id of more than 255 bytes")
	case 1+len(id)+len(data) > procapi.MaxFrameBytes:
		return nil, errors.New("input: too long")
	}
	return procapi.AppendFrame(dst, procapi.FrameInput, []byte{byte(len(id))}, []byte(id), data), nil
}

func control(dst []byte, typ byte, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return procapi.AppendFrame(dst, typ, b), err
}

// writeClient carries the sandbox's frames to the client. It answers how the
// socket is to be closed.
func (ss *session) writeClient(frames io.Reader) (code int, text string, err error) {
	out := &clientWriter{conn: ss.conn, timeout: ss.writeTimeout}
	in := newFrameReader(frames)
	defer in.close()
	for {
		typ, payload, err := in.next()
		if errors.Is(err, procapi.ErrFrame) {
			return websocket.CloseInternalServerErr, "the sandbox's answer makes no sense", err
		}
		if err != nil { // the sandbox or its node is away: the context may still be there
			return websocket.CloseServiceRestart, "the connection to the sandbox was lost; attach again", err
		}
		end, err := out.frame(typ, payload)
		switch {
		case errors.Is(err, errGone):
			ss.cancel()
			return 0, "", err
		case err != nil:
			return websocket.CloseInternalServerErr, "the sandbox's answer makes no sense", err
		case end:
			return websocket.CloseNormalClosure, "", nil
		}
	}
}

// clientWriter translates procd's frames.
type clientWriter struct {
	conn    *websocket.Conn
	timeout time.Duration                // for one frame
	tails   [procapi.FramePTY + 1][]byte // the beginning of a character whose rest has not come, by source
}

// frame sends what one of procd's frames means; end says that it was the last.
func (w *clientWriter) frame(typ byte, payload []byte) (end bool, err error) {
	switch typ {
	case procapi.FrameStdout, procapi.FrameStderr, procapi.FramePTY:
		_, data, err := procapi.Output(payload)
		if err != nil {
			return false, err
		}
		return false, w.output(typ, data)
	case procapi.FramePrompt:
		done := openapi.ContextServerMessage{Type: openapi.ContextServerMessageTypeDone}
		if id := string(payload); id != "" {
			done.RequestID = &id
		}
		return false, errors.Join(w.flush(), w.send(done))
	case procapi.FrameGap:
		if len(payload) != 8 {
			return false, fmt.Errorf("%w: gap of %d bytes", procapi.ErrFrame, len(payload))
		}
		return false, errors.Join(w.flush(), w.send(gap{Type: "gap", LostBytes: binary.BigEndian.Uint64(payload)}))
	case procapi.FrameExit:
		var exit procapi.Exit
		if err := json.Unmarshal(payload, &exit); err != nil {
			return false, fmt.Errorf("%w: %w", procapi.ErrFrame, err)
		}
		state := openapi.ContextState(exit.State)
		if !state.Valid() {
			return false, fmt.Errorf("%w: state %.20q", procapi.ErrFrame, exit.State)
		}
		return true, errors.Join(w.flush(), w.send(openapi.ContextServerMessage{Type: openapi.ContextServerMessageTypeDone, ExitCode: &exit.ExitCode, State: &state}))
	}
	return false, nil // of a newer procd
}

// gap tells a reader that was too slow how much it missed. Clients that do not
// know it ignore it.
type gap struct {
	Type      string `json:"type"`
	LostBytes uint64 `json:"lost_bytes"`
}

// output sends bytes of one source as text, cut between characters.
func (w *clientWriter) output(source byte, data []byte) error {
	if tail := w.tails[source]; len(tail) > 0 {
		data = append(tail, data...)
	}
	for len(data) > chunkBytes {
		n := chunkBytes - partial(data[:chunkBytes])
		if err := w.text(source, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	keep := partial(data)
	w.tails[source] = append(w.tails[source][:0:0], data[len(data)-keep:]...)
	return w.text(source, data[:len(data)-keep])
}

// flush sends beginnings of characters that will never be completed.
func (w *clientWriter) flush() error {
	for source, tail := range w.tails {
		if len(tail) == 0 {
			continue
		}
		w.tails[source] = nil
		if err := w.text(byte(source), tail); err != nil {
			return err
		}
	}
	return nil
}

func (w *clientWriter) text(source byte, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	buf := messages.Get().(*[]byte)
	defer messages.Put(buf)
	*buf = appendOutput((*buf)[:0], source, data)
	return w.write(*buf)
}

// partial is how many bytes at the end are the beginning of a character.
func partial(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

func (w *clientWriter) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.write(b)
}

func (w *clientWriter) write(b []byte) error {
	w.conn.SetWriteDeadline(time.Now().Add(w.timeout))
	if err := w.conn.WriteMessage(websocket.TextMessage, b); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}
