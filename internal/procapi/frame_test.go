package procapi

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFramesRoundTrip(t *testing.T) {
	t.Parallel()
	var b []byte
	b = AppendFrame(b, FrameInput, []byte{2}, []byte("id"), []byte("x = 41\n"))
	b = AppendFrame(b, FramePrompt)
	r := bytes.NewReader(b)
	typ, payload, err := ReadFrame(r, nil)
	if err != nil || typ != FrameInput {
		t.Fatalf("first frame: %d, %v", typ, err)
	}
	id, data, err := Input(payload)
	if err != nil || id != "id" || string(data) != "x = 41\n" {
		t.Fatalf("Input = %q, %q, %v", id, data, err)
	}
	if typ, payload, err = ReadFrame(r, payload); err != nil || typ != FramePrompt || len(payload) != 0 {
		t.Fatalf("second frame: %d, %q, %v", typ, payload, err)
	}
	if _, _, err = ReadFrame(r, payload); err != io.EOF {
		t.Fatalf("at the end: %v, want io.EOF", err)
	}
}

func TestMalformedFrames(t *testing.T) {
	t.Parallel()
	if _, _, err := ReadFrame(bytes.NewReader([]byte{1, 0xff, 0xff, 0xff, 0xff}), nil); !errors.Is(err, ErrFrame) {
		t.Errorf("4 GiB payload: %v", err)
	}
	if _, _, err := ReadFrame(bytes.NewReader([]byte{1, 0, 0, 0, 2, 'a'}), nil); err != io.ErrUnexpectedEOF {
		t.Errorf("cut payload: %v", err)
	}
	for _, p := range [][]byte{nil, {1}, {255, 'a'}} {
		if _, _, err := Input(p); !errors.Is(err, ErrFrame) {
			t.Errorf("Input(%v): %v", p, err)
		}
	}
	if _, _, err := Output([]byte("1234567")); !errors.Is(err, ErrFrame) {
		t.Errorf("short output: %v", err)
	}
}

// FuzzReadFrame: whatever arrives, a frame that was accepted encodes back to the
// bytes that it was read from, and no payload is above the bound.
func FuzzReadFrame(f *testing.F) {
	f.Add(AppendFrame(nil, FrameStdout, make([]byte, 8), []byte("hi")))
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			before := len(b) - r.Len()
			typ, payload, err := ReadFrame(r, nil)
			if err != nil {
				return
			}
			if len(payload) > MaxFrameBytes {
				t.Fatalf("payload of %d bytes", len(payload))
			}
			if got := AppendFrame(nil, typ, payload); !bytes.Equal(got, b[before:len(b)-r.Len()]) {
				t.Fatalf("frame %v encodes to %v", b[before:len(b)-r.Len()], got)
			}
		}
	})
}
