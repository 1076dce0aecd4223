package repl

import (
	"bytes"
	"strings"
)

// tailBytes of output are kept to recognise a prompt at the end of it: a token,
// and the escape sequences that may follow it.
const tailBytes = maxTokenBytes + 256

// tracker follows a REPL's output and counts its prompts.
type tracker struct {
	prompt, continuation string

	seen    uint64 // bytes so far
	prompts uint64 // prompts and continuations so far
	tail    []byte // the last bytes
}

// observe takes the next piece of output.
func (t *tracker) observe(data []byte) {
	t.seen += uint64(len(data))
	t.prompts += t.count(data, t.prompt) + t.count(data, t.continuation)
	if len(data) >= tailBytes {
		t.tail = append(t.tail[:0], data[len(data)-tailBytes:]...)
		return
	}
	if cut := len(t.tail) + len(data) - tailBytes; cut > 0 {
		t.tail = append(t.tail[:0], t.tail[cut:]...)
	}
	t.tail = append(t.tail, data...)
}

// count counts the tokens that end within data; they may begin in the tail.
func (t *tracker) count(data []byte, token string) uint64 {
	if token == "" {
		return 0
	}
	over := t.tail[max(0, len(t.tail)-len(token)+1):]
	edge := append(bytes.Clone(over), data[:min(len(data), len(token)-1)]...)
	return uint64(bytes.Count(edge, []byte(token)) + bytes.Count(data, []byte(token)))
}

// atPrompt tells whether the output ends with a prompt. Where none is known,
// every end may be one.
func (t *tracker) atPrompt() bool {
	if t.prompt == "" {
		return true
	}
	end := trimEscapes(t.tail)
	return bytes.HasSuffix(end, []byte(t.prompt)) || t.atContinuation()
}

func (t *tracker) atContinuation() bool {
	return t.continuation != "" && bytes.HasSuffix(trimEscapes(t.tail), []byte(t.continuation))
}

// learn takes what the REPL shows now for its prompt: the line it has not ended.
func (t *tracker) learn() {
	end := trimEscapes(t.tail)
	line := end[bytes.LastIndexAny(end, "\r\n")+1:]
	if len(line) <= maxTokenBytes {
		t.prompt = string(line)
	}
}

// trim takes the prompts off both ends of what an exec printed.
func (t *tracker) trim(out []byte) []byte {
	if t.prompt == "" {
		return out
	}
	out = bytes.TrimPrefix(out, []byte(t.prompt))
	if end := trimEscapes(out); bytes.HasSuffix(end, []byte(t.prompt)) {
		return end[:len(end)-len(t.prompt)]
	}
	return out
}

// trimEscapes takes CSI sequences off the end: line editors send them after a prompt.
func trimEscapes(b []byte) []byte {
	for {
		i := bytes.LastIndex(b, []byte("\x1b["))
		if i < 0 || !isCSI(b[i+2:]) {
			return b
		}
		b = b[:i]
	}
}

// isCSI tells whether b is parameters and the final byte of one control sequence.
func isCSI(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	final := b[len(b)-1]
	return final >= 0x40 && final <= 0x7e && strings.Trim(string(b[:len(b)-1]), "0123456789:;<=>? !\"#$%&'()*+,-./") == ""
}
