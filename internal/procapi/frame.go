package procapi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Frames of POST /contexts/{ctx}/attach. The request body carries the client's
// frames, the response body procd's, at the same time. A frame is
//
//	type (1 byte) | length of the payload (4 bytes, big endian) | payload
//
// procd first sends the history that the context's log still holds from the
// query's `offset` on (default 0), then follows; the response ends after Exit.
const (
	// From procd. Output payloads start with the offset of their first byte in
	// the context's log (8 bytes, big endian), then the bytes.
	FrameStdout byte = 1
	FrameStderr byte = 2
	FramePTY    byte = 3
	FramePrompt byte = 4 // the REPL waits for input again; payload: the request id of the input, may be empty
	FrameGap    byte = 5 // the reader was too slow; payload: number of bytes lost (8 bytes, big endian)
	FrameExit   byte = 6 // payload: JSON Exit; nothing follows

	// From the client.
	FrameInput  byte = 16 // payload: request id length (1 byte), request id, bytes for stdin
	FrameResize byte = 17 // payload: JSON PTYSize
	FrameSignal byte = 18 // payload: JSON SignalRequest
	FrameEOF    byte = 19 // no more input follows: closes a pipe, types ^D into a terminal; no payload
)

// MaxFrameBytes bounds a payload in either direction.
const MaxFrameBytes = 1 << 20

const frameHeader = 5

// Exit is the payload of [FrameExit].
type Exit struct {
	ExitCode int    `json:"exit_code"`
	State    string `json:"state"`
}

// ErrFrame is returned for bytes that are no frame; the stream is lost then.
var ErrFrame = errors.New("malformed frame")

// AppendFrame appends a frame whose payload is the concatenation of parts. The
// payload must not exceed [MaxFrameBytes]; that is the caller's duty.
func AppendFrame(dst []byte, typ byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	dst = append(dst, typ)
	dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return dst
}

// ReadFrame reads one frame. The payload is appended to buf[:0], so that a loop
// that passes the last payload back does not allocate. It returns io.EOF at a
// frame boundary and io.ErrUnexpectedEOF within a frame.
func ReadFrame(r io.Reader, buf []byte) (typ byte, payload []byte, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, buf[:0], err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxFrameBytes {
		return 0, buf[:0], fmt.Errorf("%w: payload of %d bytes", ErrFrame, n)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, buf[:0], err
	}
	return h[0], buf, nil
}

// Output splits the payload of an output frame into offset and bytes.
func Output(payload []byte) (offset uint64, data []byte, err error) {
	if len(payload) < 8 {
		return 0, nil, fmt.Errorf("%w: output of %d bytes", ErrFrame, len(payload))
	}
	return binary.BigEndian.Uint64(payload), payload[8:], nil
}

// Input splits the payload of [FrameInput] into request id and bytes.
func Input(payload []byte) (requestID string, data []byte, err error) {
	if len(payload) < 1 || len(payload) < 1+int(payload[0]) {
		return "", nil, fmt.Errorf("%w: input of %d bytes", ErrFrame, len(payload))
	}
	n := 1 + int(payload[0])
	return string(payload[1:n]), payload[n:], nil
}
