package wsapi

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"s0.run/internal/procapi"
)

func TestFramesComeWholeHoweverTheyAreCut(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	var wire []byte
	var want [][]byte
	for i := range 300 {
		size := []int{0, 8, 700, 9000, 65544, 300_000, procapi.MaxFrameBytes}[rnd.IntN(6)]
		if i == 100 {
			size = procapi.MaxFrameBytes
		}
		payload := bytes.Repeat([]byte{byte(i)}, size)
		want = append(want, payload)
		wire = procapi.AppendFrame(wire, byte(i), payload)
	}
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(wire), "halves": iotest.HalfReader(bytes.NewReader(wire)),
		"data with the error": iotest.DataErrReader(bytes.NewReader(wire)),
		"network":             &packets{data: wire, rnd: rnd},
	} {
		f := newFrameReader(r)
		for i, w := range want {
			typ, payload, err := f.next()
			if err != nil || typ != byte(i) || !bytes.Equal(payload, w) {
				t.Fatalf("%s: frame %d: type %d, %d bytes of %d, %v", name, i, typ, len(payload), len(w), err)
			}
		}
		if _, _, err := f.next(); !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: after the last frame: %v", name, err)
		}
		f.close()
	}
}

// packets gives data in pieces as a network does.
type packets struct {
	data []byte
	rnd  *rand.Rand
}

func (p *packets) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 1+p.rnd.IntN(100_000))], p.data)
	p.data = p.data[n:]
	return n, nil
}

func TestB13_FramesThatAreNone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"too large":  {"\x01\x00\x10\x00\x01", procapi.ErrFrame},
		"broken off": {"\x01\x00\x00\x00\x05abc", io.ErrUnexpectedEOF},
		"half head":  {"\x01\x00", io.ErrUnexpectedEOF},
	} {
		if _, _, err := newFrameReader(bytes.NewReader([]byte(c.wire))).next(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestAnIdleReaderHoldsASmallBuffer(t *testing.T) {
	t.Parallel()
	big := procapi.AppendFrame(nil, 1, make([]byte, 200_000))
	small := procapi.AppendFrame(nil, 1, make([]byte, 20))
	r, w := io.Pipe()
	go func() {
		for _, b := range [][]byte{small, big, small, small} {
			w.Write(b)
		}
		w.Close()
	}()
	f := newFrameReader(r)
	for range 4 {
		if _, _, err := f.next(); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.buf) != idleBuffer || f.bulk != nil {
		t.Errorf("a buffer of %d bytes behind small frames", len(f.buf))
	}
}
