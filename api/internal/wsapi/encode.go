package wsapi

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math/bits"
	"sync"
	"unicode/utf8"

	"s0.run/internal/procapi"
)

// Messages of output are built by hand: it is all that a busy stream consists of,
// and encoding/json takes ten times as long for it.

// outputHeads begin a message of output, by source.
var outputHeads = [...]string{
	procapi.FrameStdout: `{"type":"output","source":"stdout","data":"`,
	procapi.FrameStderr: `{"type":"output","source":"stderr","data":"`,
	procapi.FramePTY:    `{"type":"output","source":"pty","data":"`,
}

// messages are buffers for one message of output, shared by all sessions so that
// an idle one holds none.
var messages = sync.Pool{New: func() any { b := make([]byte, 0, chunkBytes+chunkBytes/8); return &b }}

// appendOutput appends the message for bytes of one source. Of bytes that are no
// text, which JSON would lose, there is an exact copy beside the text.
func appendOutput(dst []byte, source byte, data []byte) []byte {
	dst = append(dst, outputHeads[source]...)
	if utf8.Valid(data) {
		return append(appendEscaped(dst, data), `"}`...)
	}
	dst = appendEscaped(dst, bytes.ToValidUTF8(data, []byte("\ufffd")))
	dst = append(dst, `","data_base64":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, data)
	return append(dst, `"}`...)
}

// appendEscaped appends valid UTF-8 as the inside of a JSON string.
func appendEscaped(dst, text []byte) []byte {
	for {
		n := plain(text)
		dst = append(dst, text[:n]...)
		if n == len(text) {
			return dst
		}
		dst = appendEscape(dst, text[n])
		text = text[n+1:]
	}
}

func appendEscape(dst []byte, c byte) []byte {
	const digits = "0123456789abcdef"
	switch c {
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	case '"', '\\':
		return append(dst, '\\', c)
	}
	return append(dst, '\\', 'u', '0', '0', c>>4+'0', digits[c&15])
}

// plain is how many bytes at the beginning of b need no escape: none is below a
// space, a quote or a backslash.
func plain(b []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	n := 0
	for ; len(b)-n >= 8; n += 8 {
		w := binary.LittleEndian.Uint64(b[n:])
		quote, slash := w^(ones*'"'), w^(ones*'\\')
		// The lowest high bit that is set here belongs to the first such byte.
		if found := ((w - ones*' ') | (quote - ones) | (slash - ones)) &^ w & highs; found != 0 {
			return n + bits.TrailingZeros64(found)/8
		}
	}
	for ; n < len(b); n++ {
		if c := b[n]; c < ' ' || c == '"' || c == '\\' {
			break
		}
	}
	return n
}
