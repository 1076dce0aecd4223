package sniff

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// helloOf is the ClientHello that crypto/tls sends.
func helloOf(tb testing.TB, config *tls.Config) []byte {
	tb.Helper()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	go tls.Client(client, config).HandshakeContext(context.Background()) //nolint:errcheck // ends when the pipe does
	buf := make([]byte, MaxHello)
	n := 0
	for {
		m, err := server.Read(buf[n:])
		if err != nil {
			tb.Fatal(err)
		}
		n += m
		if _, err := ParseHello(buf[:n]); err == nil {
			return buf[:n]
		}
	}
}

// rerecord cuts the one handshake message of b into records of n bytes.
func rerecord(b []byte, n int) (out []byte) {
	for part := range slices.Chunk(b[recordHeader:], n) {
		out = append(append(out, recordHandshake, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
	}
	return out
}

func TestHelloAsCryptoTLSReadsIt(t *testing.T) {
	t.Parallel()
	for _, config := range []*tls.Config{
		{ServerName: "example.com"},
		{ServerName: "a.b.example.org", NextProtos: []string{"h2", "http/1.1"}},
		{InsecureSkipVerify: true},
		{ServerName: "old.example", MaxVersion: tls.VersionTLS12},
		{ServerName: "pq.example", CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}},
	} {
		raw := helloOf(t, config)
		got, err := ParseHello(raw)
		if err != nil || got.ServerName != config.ServerName || !slices.Equal(got.ALPN, config.NextProtos) || got.ECH {
			t.Errorf("%q: %+v, %v", config.ServerName, got, err)
		}
		for _, n := range []int{1, 3, 100} {
			again, err := ParseHello(rerecord(raw, n))
			if err != nil || again.ServerName != got.ServerName {
				t.Errorf("in records of %d bytes: %+v, %v", n, again, err)
			}
		}
		for n := range raw {
			if _, err := ParseHello(raw[:n]); !errors.Is(err, ErrMore) {
				t.Fatalf("%d of %d bytes: %v", n, len(raw), err)
			}
		}
	}
}

func TestE08_ServerNamesThatAreNone(t *testing.T) {
	t.Parallel()
	build := func(extensions ...byte) []byte {
		body := append([]byte{3, 3}, make([]byte, 32)...)
		body = append(body, 0, 0, 2, 0x13, 1, 1, 0, byte(len(extensions)>>8), byte(len(extensions)))
		body = append(body, extensions...)
		message := append([]byte{typeClientHello, 0, byte(len(body) >> 8), byte(len(body))}, body...)
		return append([]byte{recordHandshake, 3, 1, byte(len(message) >> 8), byte(len(message))}, message...)
	}
	if hello, err := ParseHello(build(0x0a, 0x0a, 0, 1, 0, 0xfe, 0x0d, 0, 1, 0)); err != nil || !hello.ECH || hello.ServerName != "" {
		t.Errorf("GREASE and ECH: %+v, %v", hello, err)
	}
	if hello, err := ParseHello(build(0xff, 0xce, 0, 0)); err != nil || !hello.ECH {
		t.Errorf("ESNI: %+v, %v", hello, err)
	}
	for name, extensions := range map[string][]byte{
		"two names":           {0, 0, 0, 10, 0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b'},
		"two extensions":      {0, 0, 0, 6, 0, 4, 0, 0, 1, 'a', 0, 0, 0, 6, 0, 4, 0, 0, 1, 'b'},
		"another kind":        {0, 0, 0, 6, 0, 4, 1, 0, 1, 'a'},
		"an empty name":       {0, 0, 0, 5, 0, 3, 0, 0, 0},
		"bytes behind":        {0, 0, 0, 7, 0, 4, 0, 0, 1, 'a', 9},
		"a length that lies":  {0, 0, 0, 6, 0, 9, 0, 0, 1, 'a'},
		"an empty list":       {0, 0, 0, 2, 0, 0},
		"an extension cut":    {0, 0, 0, 60, 0, 4, 0, 0, 1, 'a'},
		"ALPN without one":    {0, 16, 0, 2, 0, 0},
		"ALPN with empty one": {0, 16, 0, 3, 0, 1, 0},
	} {
		if _, err := ParseHello(build(extensions...)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	mongo := "\x30\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00more"
	for text, want := range map[string]Kind{
		"GET / HTTP/1.1\r\n": HTTP, "get / HTTP/1.0\n": HTTP, "OPTIONS * HTTP/1.1\r\nHost: a\r\n": HTTP,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": HTTP2, "SSH-2.0-OpenSSH_9\r\n": SSH, "\x05\x01\x00": SOCKS5, "\x05\x02\x00\x02": SOCKS5,
		"\x10\x0c\x00\x04MQTT\x04": MQTT, "\x10\xff\x01\x00\x06MQIsdp": MQTT, "*1\r\n$4\r\nPING\r\n": Redis, "AMQP\x00\x00\x09\x01": AMQP, mongo: MongoDB,
		"USER me\r\n": Unknown, "GET /\r\n": Unknown, "\r\n\nGET / HTTP/1.1\r\n": HTTP, "\r\nUSER me\r\n": Unknown, "\x05\x01\x00more": Unknown, "\x05\x00\xff\xff\xff": Unknown, "*x\r\n": Unknown,
		"\x10\xff\xff\xff\xff\x01": Unknown, "\x00\x00\x00\x00": Unknown, "AMQPS\r\n": Unknown, strings.Repeat("a", 30): Unknown,
		strings.Replace(mongo, "\xdd", "\xde", 1): Unknown, "GET " + strings.Repeat("x", maxRequestLine): Unknown,
	} {
		got, err := Classify([]byte(text))
		if err != nil || got.Kind != want {
			t.Errorf("%.30q: %v, %v, want %v", text, got.Kind, err, want)
		}
	}
	for _, begun := range []string{"", "\r\n", "\r\nG", "G", "GET ", "GET / HTTP/1.1", "PRI * HT", "SS", "\x05", "\x05\x02\x00", "\x10", "\x10\x0c\x00", "*", "*12", "*12\r", "AMQ", mongo[:15], "\x16\x03"} {
		if got, err := Classify([]byte(begun)); !errors.Is(err, ErrMore) {
			t.Errorf("%q: %v, %v", begun, got.Kind, err)
		}
	}
	for _, bad := range []string{"\x16\x02", "\x16\x03\x01\x00\x00", "\x16\x03\x01\xff\xff", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", "\x16\x03\x01\x00\x04\x01\x02\x00\x00"} {
		if got, err := Classify([]byte(bad)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v, %v", bad, got.Kind, err)
		}
	}
}

func TestE09_HelloByteByByte(t *testing.T) {
	t.Parallel()
	raw := append(rerecord(helloOf(t, &tls.Config{ServerName: "slow.example"}), 7), "behind"...)
	client, server := net.Pipe()
	go func() {
		for i := range raw {
			client.Write(raw[i : i+1])
		}
		client.Close()
	}()
	result, conn, err := Peek(server, Limits{Bytes: MaxHello, Timeout: time.Minute, Quiet: time.Minute}, anyRoom)
	if err != nil || result.Hello.ServerName != "slow.example" {
		t.Fatalf("%+v, %v", result, err)
	}
	if all, err := io.ReadAll(conn); err != nil || !bytes.Equal(all, raw) {
		t.Errorf("%d of %d bytes came back: %v", len(all), len(raw), err)
	}
}

func TestE09_TheBudgetIsKept(t *testing.T) {
	t.Parallel()
	client, server := net.Pipe()
	sent := make(chan int)
	go func() {
		n, endless := 0, append([]byte{recordHandshake, 3, 1, 0x40, 0}, make([]byte, maxRecord)...)
		endless[5], endless[6], endless[7] = typeClientHello, 0, 0xff
		copy(endless[8:], "\xff")
		for {
			m, err := client.Write(endless)
			if n += m; err != nil {
				break
			}
			endless = append([]byte{recordHandshake, 3, 1, 0x40, 0}, make([]byte, maxRecord)...)
		}
		sent <- n
	}()
	const budget = 40 << 10
	_, conn, err := Peek(server, Limits{Bytes: budget, Timeout: time.Minute, Quiet: time.Minute}, anyRoom)
	server.Close()
	if n := <-sent; err == nil || n > budget || len(conn.Take()) > budget {
		t.Errorf("%d bytes were read for a budget of %d: %v", n, budget, err)
	}
}

func TestE09_TimeIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		if result, _, err := Peek(server, Limits{Bytes: 100, Timeout: time.Minute, Quiet: time.Millisecond}, anyRoom); err != nil || result.Kind != Silent {
			t.Errorf("a silent client: %v, %v", result.Kind, err)
		}
		go client.Write([]byte("GET"))
		if result, _, err := Peek(server, Limits{Bytes: 100, Timeout: 20 * time.Millisecond, Quiet: time.Minute}, anyRoom); err == nil {
			t.Errorf("half a word: %v", result.Kind)
		}
		go func() { client.Write([]byte("GET")); client.Close() }()
		if result, _, err := Peek(server, DefaultLimits, anyRoom); err == nil {
			t.Errorf("half a word and the end: %v", result.Kind)
		}
	})
}

func FuzzClassify(f *testing.F) {
	for _, config := range []*tls.Config{{ServerName: "example.com", NextProtos: []string{"h2"}}, {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}} {
		raw := helloOf(f, config)
		f.Add(raw)
		f.Add(rerecord(raw, 50))
	}
	for _, s := range []string{"GET / HTTP/1.1\r\n\r\n", "\x05\x01\x00", "*1\r\n$4\r\nPING\r\n", "\x10\x0c\x00\x04MQTT\x04", "SSH-2.0-x\r\n", "AMQP\x00\x00\x09\x01", "\x16\x03\x01\x00\x01\x01"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, err := Classify(b)
		if err == nil && whole.Kind == "" {
			t.Fatal("no error and no kind")
		}
		// What was decided stays decided when more arrives, but for SOCKS5, whose
		// greeting is exact: a decision at n bytes must not depend on segmentation.
		for n := 1; n < len(b) && n < 600; n++ {
			part, early := Classify(b[:n])
			if early == nil && part.Kind != whole.Kind && part.Kind != SOCKS5 || early != nil && !errors.Is(early, ErrMore) && err == nil {
				t.Fatalf("%d bytes: %v, %v; %d bytes: %v, %v", n, part.Kind, early, len(b), whole.Kind, err)
			}
		}
		if err == nil && whole.Kind == TLS {
			agrees(t, b, whole.Hello)
		}
	})
}

// agrees compares with what crypto/tls makes of a ClientHello: what it accepts, it
// must read as we do.
func agrees(t *testing.T, b []byte, hello Hello) {
	stop := errors.New("seen")
	server := tls.Server(&script{Reader: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		if strings.TrimSuffix(hello.ServerName, ".") != info.ServerName || !slices.Equal(hello.ALPN, info.SupportedProtos) {
			t.Errorf("we read %+v, crypto/tls %q %q", hello, info.ServerName, info.SupportedProtos)
		}
		return nil, stop
	}})
	server.Handshake()
}

// script is a connection that says what its reader has and hears nothing.
type script struct {
	net.Conn
	io.Reader
}

func (s *script) Read(p []byte) (int, error)     { return s.Reader.Read(p) }
func (*script) Write(p []byte) (int, error)      { return len(p), nil }
func (*script) Close() error                     { return nil }
func (*script) SetDeadline(time.Time) error      { return nil }
func (*script) SetWriteDeadline(time.Time) error { return nil }
func (*script) SetReadDeadline(time.Time) error  { return nil }

func anyRoom(int) bool { return true }

// E09: what a long beginning takes is asked for before it is taken.
func TestE09_ALongHelloNeedsRoom(t *testing.T) {
	t.Parallel()
	hello := helloOf(t, &tls.Config{ServerName: "good.example", NextProtos: protocols16k()})
	if len(hello) <= smallPeek {
		t.Fatalf("a hello of %d bytes", len(hello))
	}
	asked := 0
	take := func(allowed int) error {
		asked = 0
		_, _, err := Peek(&script{Reader: bytes.NewReader(hello)}, DefaultLimits, func(n int) bool { asked += n; return asked <= allowed })
		return err
	}
	if err := take(MaxHello); err != nil || asked+smallPeek < len(hello) {
		t.Errorf("with room: %v; for %d bytes it asked for %d", err, len(hello), asked)
	}
	if err := take(0); !errors.Is(err, ErrNoRoom) {
		t.Errorf("without: %v", err)
	}
}

func protocols16k() (all []string) {
	for i := range 100 {
		all = append(all, fmt.Sprintf("%0100d", i))
	}
	return all
}
