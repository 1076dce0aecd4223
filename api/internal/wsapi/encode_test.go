package wsapi

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"s0.run/api/internal/openapi"
	"s0.run/internal/procapi"
)

var sources = [...]openapi.ContextServerMessageSource{
	procapi.FrameStdout: openapi.ContextServerMessageSourceStdout,
	procapi.FrameStderr: openapi.ContextServerMessageSourceStderr,
	procapi.FramePTY:    openapi.ContextServerMessageSourcePTY,
}

// checkOutput fails unless the message means exactly these bytes.
func checkOutput(t *testing.T, source byte, data []byte) {
	t.Helper()
	b := appendOutput(nil, source, data)
	var m openapi.ContextServerMessage
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%q became %q: %v", data, b, err)
	}
	if m.Type != openapi.ContextServerMessageTypeOutput || m.Source == nil || *m.Source != sources[source] || m.Data == nil {
		t.Fatalf("%q became %q", data, b)
	}
	if valid := utf8.Valid(data); valid != (m.DataBase64 == nil) || valid && *m.Data != string(data) || !valid && !bytes.Equal(m.DataBase64, data) {
		t.Fatalf("%q came back as %q, %q", data, *m.Data, m.DataBase64)
	}
	if !utf8.Valid(b) {
		t.Fatalf("%q became %q, which is no text", data, b)
	}
}

func TestOutputMessages(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		for before := range 10 { // wherever a word of eight bytes begins
			checkOutput(t, procapi.FrameStdout, []byte(strings.Repeat("a", before)+string([]byte{byte(c)})+"zz\u2028é\x7f"))
		}
	}
	checkOutput(t, procapi.FrameStderr, nil)
	checkOutput(t, procapi.FramePTY, []byte(`</script> & "quoted" \ `+"\r\n\t\x00\x1f"))
	checkOutput(t, procapi.FramePTY, []byte("\xe2\x82"))
}

func FuzzOutputMessage(f *testing.F) {
	f.Add([]byte("plain text, then \" and \xff"))
	f.Fuzz(func(t *testing.T, data []byte) { checkOutput(t, procapi.FrameStdout, data) })
}

func BenchmarkOutputMessage(b *testing.B) {
	data := []byte(strings.Repeat(strings.Repeat("0123456789", 7)+"012345678\n", chunkBytes/80))
	b.SetBytes(int64(len(data)))
	var dst []byte
	for b.Loop() {
		dst = appendOutput(dst[:0], procapi.FrameStdout, data)
	}
}
