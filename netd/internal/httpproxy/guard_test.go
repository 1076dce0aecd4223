package httpproxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// bytesConn is a connection that says what it was given, in pieces.
type bytesConn struct {
	net.Conn
	r io.Reader
}

func (c bytesConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func guarded(text string, piece int) string {
	var r io.Reader = strings.NewReader(text)
	if piece > 0 {
		r = &slow{r, piece}
	}
	out, _ := io.ReadAll(newGuard(bytesConn{r: r}))
	return string(out)
}

type slow struct {
	r io.Reader
	n int
}

func (s *slow) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.n)]) }

func TestGuardPassesWhatIsPlain(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /x?y=z HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x00any\nthing",
		"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX-Y: \t a b \r\nEmpty:\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		for _, piece := range []int{0, 1, 7} {
			if got := guarded(text, piece); got != text {
				t.Errorf("in pieces of %d, %q became %q", piece, text, got)
			}
		}
	}
}

// What is refused in the middle leaves what came before whole.
func TestE10_GuardRefusesTheSecond(t *testing.T) {
	t.Parallel()
	first := "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, second := range []string{"GET / HTTP/1.1\nHost: a\n\n", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", "get\t/ HTTP/1.1\r\nHost: a\r\n\r\n"} {
		if got := guarded(first+second+first, 0); got != first+refused {
			t.Errorf("%q: %q", second, got)
		}
	}
}

// net/http interrupts a read to take a connection over, and reads on.
func TestGuardGoesOnAfterATimeout(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	defer client.Close()
	g := newGuard(server)
	const half, rest = "GET / HTTP/1.1\r\nHo", "st: a\r\n\r\n"
	sent := make(chan struct{})
	go func() { io.WriteString(client, half); close(sent) }()
	read := make(chan error, 1)
	go func() { _, err := g.Read(make([]byte, 1)); read <- err }()
	<-sent
	server.SetReadDeadline(time.Unix(1, 0))
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	server.SetReadDeadline(time.Time{})
	go io.WriteString(client, rest)
	buf := make([]byte, 100)
	n, err := g.Read(buf)
	if err != nil || string(buf[:n]) != half+rest {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// What the guard lets through, net/http reads in one way: as many requests, with
// one host and one body each, wherever the bytes are cut.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /b HTTP/1.0\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := guarded(string(b), 0)
		if whole != guarded(string(b), 1) {
			t.Fatal("what passes depends on how it is cut")
		}
		if head, _, ok := strings.Cut(whole, refused); ok {
			whole = head
		}
		if !bytes.HasPrefix(b, []byte(whole)) {
			t.Fatalf("%q became %q", b, whole)
		}
		r := bufio.NewReader(strings.NewReader(whole))
		for r.Buffered() > 0 || peekable(r) {
			req, err := http.ReadRequest(r)
			if err != nil {
				return // net/http is stricter, or the last is not whole
			}
			if req.Header.Get("Upgrade") != "" {
				return
			}
			if len(req.TransferEncoding) > 0 && req.Header.Get("Content-Length") != "" || strings.ContainsAny(req.Host, "\r\n \t") {
				t.Fatalf("ambiguous: %+v", req)
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
		}
	})
}

func peekable(r *bufio.Reader) bool {
	_, err := r.Peek(1)
	return err == nil
}

// FuzzFindCalls holds what is found against a reader that does not look at keys' case
// and takes the last of two: it must not see a call that was not found.
func FuzzFindCalls(f *testing.F) {
	f.Add([]byte(`{"method":"tools/call","id":1,"params":{"name":"x"}}`))
	f.Add([]byte(`[{"method":"tools/list"},{"result":{}}]`))
	f.Add([]byte(`{"method":"a","Method":"tools/call"}`))
	f.Add([]byte(`{"method":"tools/call","params":{"name":"x","arguments":{"name":"y","NAME":"z"}}}`))
	f.Add([]byte(`{"method":"tools/call","param\u017f":{"name":"x"}}`))
	type message struct {
		Method string
		Params struct{ Name string }
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		calls, err := findCalls(b)
		if err != nil {
			return
		}
		var all []json.RawMessage
		if json.Unmarshal(b, &all) != nil {
			all = []json.RawMessage{b}
		}
		var seen []string
		for _, raw := range all {
			var m message
			if json.Unmarshal(raw, &m) == nil && m.Method == "tools/call" {
				seen = append(seen, m.Params.Name)
			}
		}
		for _, name := range seen {
			if !slices.ContainsFunc(calls, func(c call) bool { return c.tool == name }) {
				t.Fatalf("a call of %q was not found in %q", name, b)
			}
		}
	})
}
