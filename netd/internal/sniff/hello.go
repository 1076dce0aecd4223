package sniff

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Hello is what of a ClientHello matters to judge a connection.
type Hello struct {
	ServerName string   // as sent; "" when there is none. A claim: canonicalise and judge it
	ALPN       []string // as sent, in order
	ECH        bool     // an encrypted ClientHello (or ESNI) hides the real name
}

const (
	recordHandshake   = 22
	recordHeader      = 5
	maxRecord         = 1 << 14
	typeClientHello   = 1
	handshakeHeader   = 4
	extServerName     = 0
	extALPN           = 16
	extECH            = 0xfe0d
	extESNI           = 0xffce
	nameTypeHost      = 0
	maxSessionID      = 32
	maxExtensionCount = 256
)

// MaxHello bounds a ClientHello, record headers included (E09).
const MaxHello = 64 << 10

// ParseHello reads a ClientHello off the beginning of a TLS connection, over any
// number of records. Bytes behind it are left alone.
func ParseHello(b []byte) (Hello, error) {
	message, err := handshake(b)
	if err != nil {
		return Hello{}, err
	}
	return parseHello(message)
}

// handshake joins the records' contents until the first handshake message is
// whole, and returns its body.
func handshake(b []byte) ([]byte, error) {
	var message []byte
	for {
		if len(message) >= handshakeHeader {
			n := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
			if message[0] != typeClientHello || n > MaxHello {
				return nil, fmt.Errorf("%w: no ClientHello of at most %d bytes", ErrMalformed, MaxHello)
			}
			if len(message) >= handshakeHeader+n {
				return message[handshakeHeader : handshakeHeader+n], nil
			}
		}
		content, rest, err := record(b)
		if err != nil {
			return nil, err
		}
		message, b = append(message, content...), rest
	}
}

// record takes one handshake record off b. Of an incomplete one it refuses what
// can be refused already.
func record(b []byte) (content, rest []byte, err error) {
	if len(b) > 0 && b[0] != recordHandshake || len(b) > 1 && b[1] != 3 {
		return nil, nil, fmt.Errorf("%w: not a handshake record", ErrMalformed)
	}
	if len(b) < recordHeader {
		return nil, nil, ErrMore
	}
	n := int(b[3])<<8 | int(b[4])
	if n == 0 || n > maxRecord {
		return nil, nil, fmt.Errorf("%w: a record of %d bytes", ErrMalformed, n)
	}
	if len(b) < recordHeader+n {
		return nil, nil, ErrMore
	}
	return b[recordHeader : recordHeader+n], b[recordHeader+n:], nil
}

func parseHello(message []byte) (Hello, error) {
	var version uint16
	var random []byte
	var session, suites, compression cryptobyte.String
	s := cryptobyte.String(message)
	if !s.ReadUint16(&version) || !s.ReadBytes(&random, 32) ||
		!s.ReadUint8LengthPrefixed(&session) || len(session) > maxSessionID ||
		!s.ReadUint16LengthPrefixed(&suites) || len(suites) == 0 || len(suites)%2 != 0 ||
		!s.ReadUint8LengthPrefixed(&compression) || len(compression) == 0 || version>>8 != 3 {
		return Hello{}, fmt.Errorf("%w: ClientHello", ErrMalformed)
	}
	if s.Empty() {
		return Hello{}, nil
	}
	var extensions cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return Hello{}, fmt.Errorf("%w: extensions", ErrMalformed)
	}
	return parseExtensions(extensions)
}

func parseExtensions(s cryptobyte.String) (hello Hello, err error) {
	seen := map[uint16]bool{}
	for !s.Empty() {
		var id uint16
		var body cryptobyte.String
		if !s.ReadUint16(&id) || !s.ReadUint16LengthPrefixed(&body) || seen[id] || len(seen) >= maxExtensionCount {
			return Hello{}, fmt.Errorf("%w: extension", ErrMalformed)
		}
		seen[id] = true
		switch id {
		case extServerName:
			hello.ServerName, err = serverName(body)
		case extALPN:
			hello.ALPN, err = protocols(body)
		case extECH, extESNI:
			hello.ECH = true
		}
		if err != nil {
			return Hello{}, err
		}
	}
	return hello, nil
}

// serverName wants exactly one name, and that a host's: what two readers could
// read differently has no place here.
func serverName(s cryptobyte.String) (string, error) {
	var list, name cryptobyte.String
	var kind uint8
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || !list.ReadUint8(&kind) || kind != nameTypeHost ||
		!list.ReadUint16LengthPrefixed(&name) || !list.Empty() || name.Empty() {
		return "", fmt.Errorf("%w: server name", ErrMalformed)
	}
	return string(name), nil
}

func protocols(s cryptobyte.String) (all []string, err error) {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return nil, fmt.Errorf("%w: ALPN", ErrMalformed)
	}
	for !list.Empty() {
		var p cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&p) || p.Empty() {
			return nil, fmt.Errorf("%w: ALPN", ErrMalformed)
		}
		all = append(all, string(p))
	}
	return all, nil
}
