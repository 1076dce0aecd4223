// Package sniff says what a connection's first bytes are.
//
// Everything here is a pure function of bytes but [Peek], which reads a
// connection's beginning within a budget of bytes and time and gives it back
// unread. The bytes are an attacker's: what cannot be understood is an error,
// never a guess, and what they say of themselves (a server name, a host) is a
// claim that the caller judges. The package keeps no state and connects nowhere.
package sniff

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Kind is a protocol as its first bytes show it, in the contract's words.
type Kind string

// The kinds. A connection whose client says nothing first is Silent; one whose
// bytes are none of the known protocols' is Unknown.
const (
	Unknown Kind = "unknown"
	Silent  Kind = "silent"
	TLS     Kind = "tls"
	HTTP    Kind = "http"  // HTTP/1.x
	HTTP2   Kind = "http2" // HTTP/2 without TLS, by prior knowledge
	SSH     Kind = "ssh"
	SOCKS5  Kind = "socks5"
	MQTT    Kind = "mqtt"
	Redis   Kind = "redis"
	AMQP    Kind = "amqp"
	MongoDB Kind = "mongodb"
)

// What parsers answer beside a result.
var (
	ErrMore      = errors.New("more bytes are needed")
	ErrMalformed = errors.New("the first bytes are malformed")
)

// Result is what the first bytes say.
type Result struct {
	Kind  Kind
	Hello Hello // of TLS alone
}

const (
	// maxRequestLine bounds what is looked at to tell HTTP/1 from other text.
	maxRequestLine = 16 << 10
	maxMethod      = 20
	// maxMongo is the largest message of MongoDB's protocol.
	maxMongo = 48 << 20
)

var preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

// Classify says what b begins. [ErrMore] says that b is the beginning of several
// things, or of a ClientHello that is not complete.
func Classify(b []byte) (Result, error) {
	if len(b) == 0 {
		return Result{}, ErrMore
	}
	if b[0] == recordHandshake {
		hello, err := ParseHello(b)
		return Result{Kind: TLS, Hello: hello}, err
	}
	for _, is := range [...]struct {
		kind Kind
		test func([]byte) verdict
	}{
		{HTTP2, func(b []byte) verdict { return startsWith(b, preface) }},
		{SSH, func(b []byte) verdict { return startsWith(b, []byte("SSH-")) }},
		{AMQP, func(b []byte) verdict { return startsWith(b, []byte("AMQP\x00")).or(startsWith(b, []byte("AMQP\x03"))) }},
		{HTTP, isHTTP}, {SOCKS5, isSOCKS5}, {MQTT, isMQTT}, {Redis, isRedis}, {MongoDB, isMongo},
	} {
		switch is.test(b) {
		case yes:
			return Result{Kind: is.kind}, nil
		case maybe:
			return Result{}, ErrMore
		}
	}
	return Result{Kind: Unknown}, nil
}

type verdict uint8

const (
	no verdict = iota
	maybe
	yes
)

func (v verdict) or(w verdict) verdict { return max(v, w) }

func startsWith(b, want []byte) verdict {
	n := min(len(b), len(want))
	switch {
	case !bytes.Equal(b[:n], want[:n]):
		return no
	case n < len(want):
		return maybe
	}
	return yes
}

// isHTTP wants a whole request line: a method, a target and a version. Text of
// other protocols (IRC, FTP) begins with a word, too. Servers skip empty lines
// before it (RFC 9112, 2.2), so nobody may hide a request behind them.
func isHTTP(b []byte) verdict {
	if b = bytes.TrimLeft(b, "\r\n"); len(b) == 0 {
		return maybe
	}
	method := 0
	for method < len(b) && isLetter(b[method]) {
		method++
	}
	switch {
	case method == 0 || method > maxMethod:
		return no
	case method == len(b):
		return maybe
	case b[method] != ' ':
		return no
	}
	line, _, whole := bytes.Cut(b[:min(len(b), maxRequestLine)], []byte("\n"))
	if !whole {
		if len(b) >= maxRequestLine {
			return no
		}
		return maybe
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	at := bytes.LastIndexByte(line, ' ')
	if at > method && bytes.HasPrefix(line[at+1:], []byte("HTTP/1.")) {
		return yes
	}
	return no
}

func isLetter(c byte) bool { c |= 0x20; return 'a' <= c && c <= 'z' }

// isSOCKS5 wants exactly the list of methods that a client begins with.
func isSOCKS5(b []byte) verdict {
	switch {
	case b[0] != 5:
		return no
	case len(b) < 2:
		return maybe
	case b[1] == 0 || len(b) > 2+int(b[1]):
		return no
	case len(b) < 2+int(b[1]):
		return maybe
	}
	return yes
}

// isMQTT wants a CONNECT packet with the protocol's name.
func isMQTT(b []byte) verdict {
	if b[0] != 0x10 {
		return no
	}
	const maxLengthBytes = 4
	for i := 1; i <= maxLengthBytes; i++ {
		if i >= len(b) {
			return maybe
		}
		if b[i] < 0x80 {
			name := b[i+1:]
			return startsWith(name, []byte("\x00\x04MQTT")).or(startsWith(name, []byte("\x00\x06MQIsdp")))
		}
	}
	return no
}

// isRedis wants the beginning of a RESP array of bulk strings.
func isRedis(b []byte) verdict {
	if b[0] != '*' {
		return no
	}
	const maxDigits = 7
	i := 1
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	switch {
	case i > 1+maxDigits:
		return no
	case i == len(b):
		return maybe
	case i == 1:
		return no
	}
	return startsWith(b[i:], []byte("\r\n$"))
}

// isMongo wants the header of a request: a length, an id, no answer-to, and one
// of the operations a client begins with.
func isMongo(b []byte) verdict {
	if len(b) >= 4 {
		if n := binary.LittleEndian.Uint32(b); n < 16 || n > maxMongo {
			return no
		}
	}
	if len(b) < 16 {
		return maybe
	}
	const opQuery, opCompressed, opMsg = 2004, 2012, 2013
	switch op := binary.LittleEndian.Uint32(b[12:]); {
	case binary.LittleEndian.Uint32(b[8:]) != 0:
		return no
	case op == opQuery, op == opCompressed, op == opMsg:
		return yes
	}
	return no
}
