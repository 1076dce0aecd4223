package procd

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"testing/synctest"
)

// pieces is a connection that tells each piece that is written to it.
type pieces struct {
	net.Conn
	written chan []byte
	err     error
}

func (p *pieces) Write(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	p.written <- bytes.Clone(b)
	return len(b), nil
}

var (
	headers  = []byte{0, 0, 4, 1, 4, 0, 0, 0, 1, 'h', 'e', 'a', 'd'}
	lastOnes = []byte{0, 0, 4, 1, 5, 0, 0, 0, 1, 'h', 'e', 'a', 'd'}
	body     = []byte{0, 0, 4, 0, 1, 0, 0, 0, 1, 'b', 'o', 'd', 'y'}
)

func TestHeadersWaitForTheirBody(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ write, want [][]byte }{
		"together":          {[][]byte{headers, body}, [][]byte{append(bytes.Clone(headers), body...)}},
		"a body alone":      {[][]byte{body}, [][]byte{body}},
		"an answer without": {[][]byte{lastOnes, body}, [][]byte{lastOnes, body}},
		"more than headers": {[][]byte{append(bytes.Clone(headers), body...)}, [][]byte{append(bytes.Clone(headers), body...)}},
		"two answers":       {[][]byte{headers, headers, body}, [][]byte{append(bytes.Clone(headers), headers...), body}},
		"a piece of one":    {[][]byte{headers[:7], body}, [][]byte{headers[:7], body}},
	} {
		synctest.Test(t, func(t *testing.T) { // where no time passes between two writes
			p := &pieces{written: make(chan []byte, 10)}
			j := &joiner{Conn: p}
			for _, w := range c.write {
				if n, err := j.Write(w); n != len(w) || err != nil {
					t.Fatalf("%s: %d, %v", name, n, err)
				}
			}
			for _, want := range c.want {
				if got := <-p.written; !bytes.Equal(got, want) {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestHeadersDontWaitForLong(t *testing.T) {
	t.Parallel()
	p := &pieces{written: make(chan []byte, 10)}
	j := &joiner{Conn: p}
	for range 3 {
		if _, err := j.Write(headers); err != nil {
			t.Fatal(err)
		}
		if got := <-p.written; !bytes.Equal(got, headers) {
			t.Fatalf("%q", got)
		}
	}
}

// A write behind headers that could not be sent fails.
func TestHeldHeadersThatFail(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	j := &joiner{Conn: &pieces{err: gone}}
	if _, err := j.Write(headers); err != nil {
		t.Fatal(err)
	}
	j.send()
	if n, err := j.Write(body); n != 0 || !errors.Is(err, gone) {
		t.Fatalf("%d, %v", n, err)
	}
}
