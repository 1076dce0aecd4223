package wsapi

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/internal/procapi"
)

const (
	fin, rsv1   = 0x80, 0x40
	opText      = 1
	opReserved  = 3
	opClose     = 8
	opPing      = 9
	maxControls = 125
)

// rawFrame is a client's frame as it stands on the wire, with a mask of zeroes
// and whatever length it claims.
func rawFrame(first byte, claimed uint64, payload []byte) []byte {
	b := []byte{first, 0x80 | 127}
	if claimed <= maxControls {
		b[1] = 0x80 | byte(claimed)
	} else {
		b = binary.BigEndian.AppendUint64(b, claimed)
	}
	b = append(b, 0, 0, 0, 0)
	return append(b, payload...)
}

func whole(first byte, payload []byte) []byte { return rawFrame(first, uint64(len(payload)), payload) }

// TestA11_BrokenProtocol: whatever breaks the protocol is told so and costs
// nothing.
func TestA11_BrokenProtocol(t *testing.T) {
	t.Parallel()
	f := serve(t, silent)
	for name, c := range map[string]struct {
		send []byte
		code int
	}{
		"a frame that claims 1 GiB":        {rawFrame(fin|opText, 1<<30, []byte("x")), 1009},
		"a frame that claims 2^63":         {rawFrame(fin|opText, 1<<63, nil), 1009},
		"compressed without agreement":     {whole(fin|rsv1|opText, []byte("\xf2\x48\xcd\xc9\xc9\x07\x00")), 1002},
		"an unknown opcode":                {whole(fin|opReserved, nil), 1002},
		"a continuation of nothing":        {whole(fin, []byte("x")), 1002},
		"a message within another":         {append(whole(opText, []byte("a")), whole(fin|opText, []byte("b"))...), 1002},
		"a long control frame":             {whole(fin|opPing, make([]byte, maxControls+1)), 1002},
		"a control frame in pieces":        {whole(opPing, nil), 1002},
		"a close with a code that is none": {whole(fin|opClose, []byte{0, 1}), 1002},
		"bad UTF-8 in pieces":              {append(whole(opText, []byte("\xe2")), whole(fin, []byte("\xff"))...), 1007},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := f.dial(t, "ctx-00000001")
			// More follows, as from a client that does not listen.
			if _, err := conn.NetConn().Write(append(c.send, make([]byte, 1<<20)...)); err != nil {
				t.Logf("writing: %v", err)
			}
			if _, code, text := rest(conn); code != c.code {
				t.Errorf("closed with %d %q, want %d", code, text, c.code)
			}
		})
	}
}

// TestA11_EndlessFragments: a message that never ends is cut off at the limit.
func TestA11_EndlessFragments(t *testing.T) {
	t.Parallel()
	f := serve(t, silent)
	conn := f.dial(t, "ctx-00000001")
	sent := make(chan int, 1)
	go func() {
		n := 0
		piece := whole(0, []byte(strings.Repeat("x", 1000)))
		for _, err := conn.NetConn().Write(whole(opText, nil)); err == nil && n < 64<<20; n += 1000 {
			_, err = conn.NetConn().Write(piece)
		}
		sent <- n
	}()
	if _, code, text := rest(conn); code != 1009 {
		t.Errorf("closed with %d %q, want 1009", code, text)
	}
	conn.Close()
	if n := <-sent; n > maxMessageBytes+lingerBytes+(8<<20) { // and what the kernel buffers
		t.Errorf("%d bytes were taken", n)
	}
}

// TestA11_PingFlood: pings are answered one by one, with nothing queued.
func TestA11_PingFlood(t *testing.T) {
	t.Parallel()
	const pings = 20_000
	f := serve(t, silent)
	conn := f.dial(t, "ctx-00000001")
	pongs := 0
	conn.SetPongHandler(func(string) error {
		if pongs++; pongs == pings {
			return io.EOF // enough
		}
		return nil
	})
	go func() {
		flood := []byte(strings.Repeat(string(whole(fin|opPing, []byte("are you there?"))), 100))
		for range pings / 100 {
			if _, err := conn.NetConn().Write(flood); err != nil {
				return
			}
		}
	}()
	if rest(conn); pongs != pings {
		t.Errorf("%d pongs for %d pings", pongs, pings)
	}
}

// TestA11_PingsWithoutReading: a client that asks and never listens is dropped.
func TestA11_PingsWithoutReading(t *testing.T) {
	t.Parallel()
	f := serve(t, silent)
	f.writeTimeout = 100 * time.Millisecond
	conn := f.dial(t, "ctx-00000001").NetConn()
	flood := []byte(strings.Repeat(string(whole(fin|opPing, make([]byte, maxControls))), 1000))
	if err := conn.SetWriteDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := conn.Write(flood)
		if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Fatal("the server goes on reading and nobody reads its answers")
		}
		if err != nil {
			return
		}
	}
}

// TestA11_NoCompression: nothing to unpack, so no bomb.
func TestA11_NoCompression(t *testing.T) {
	t.Parallel()
	f := serve(t, func(_ io.Reader, p *procd) { p.exit(0, "stopped") })
	d := websocket.Dialer{EnableCompression: true}
	conn, resp, err := d.Dial(f.address("ctx-00000001"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if ext := resp.Header.Get("Sec-Websocket-Extensions"); ext != "" {
		t.Errorf("the server agreed to %q", ext)
	}
}

// TestA11_AHandshakeThatIsNone is answered in HTTP, before anything is attached.
func TestA11_AHandshakeThatIsNone(t *testing.T) {
	t.Parallel()
	f := serve(t, silent)
	u, err := url.Parse(f.address("ctx-00000001"))
	if err != nil {
		t.Fatal(err)
	}
	for name, headers := range map[string]string{
		"no key":      "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
		"old version": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
		"no upgrade":  "Connection: keep-alive\r\n",
	} {
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", u.RequestURI(), u.Host, headers)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
		conn.Close()
	}
}

// TestIdleSessionsAreSmall: what a thousand readers that have nothing to read cost
// this server: both ends of their connections and the fake sandbox included, and
// the race detector, if it is on. Before frames and buffers shrank it was 600 KiB.
func TestIdleSessionsAreSmall(t *testing.T) {
	const sessions, most = 300, 300 << 10
	f := serve(t, func(in io.Reader, p *procd) {
		p.output(procapi.FrameStdout, strings.Repeat("x", 60<<10))
		io.Copy(io.Discard, in)
	})
	memory := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := memory()
	for range sessions {
		conn := f.dial(t, "ctx-00000001")
		if _, _, err := conn.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	if each := (memory() - before) / sessions; each > most {
		t.Errorf("%d KiB for each session, want at most %d", each>>10, most>>10)
	} else {
		t.Logf("%d KiB for each session", each>>10)
	}
}
