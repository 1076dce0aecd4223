package httpproxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
)

const (
	// maxHead bounds a request's head, maxLine a chunk's size line.
	maxHead = 64 << 10
	maxLine = 1 << 10
	// maxDigits keeps a length within 60 bits.
	maxDigits = 15
)

// guard lets HTTP/1 requests through to net/http that can be read in one way
// alone (E10). net/http is lenient where others are, too, differently: two
// lengths, a length and chunks, bare line feeds, folded lines. Whoever proxies has
// to refuse those. A head that is refused becomes one that net/http answers with
// 400 and a closed connection, in its turn; chunks that are refused break the
// request they belong to.
type guard struct {
	net.Conn
	br *bufio.Reader

	state   func(p []byte) (int, error)
	partial []byte // of a line or a head that is not whole yet
	ready   []byte // may be given
	left    int64  // of the body or the chunk
}

var errAmbiguous = errors.New("HTTP that can be read in more than one way")

// refused is a head that net/http answers with 400, and nothing follows it.
const refused = "refused\r\n\r\n"

func newGuard(c net.Conn) *guard {
	g := &guard{Conn: c, br: bufio.NewReaderSize(c, 8<<10)}
	g.state = g.head
	return g
}

func (g *guard) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if len(g.ready) > 0 {
			n := copy(p, g.ready)
			g.ready = g.ready[n:]
			return n, nil
		}
		if n, err := g.state(p); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, nil
}

// line adds to partial up to a line's end. A timeout in between loses nothing:
// net/http interrupts reads to take a connection over.
func (g *guard) line(limit int) error {
	for {
		part, err := g.br.ReadSlice('\n')
		g.partial = append(g.partial, part...)
		switch {
		case len(g.partial) > limit:
			return errAmbiguous
		case err == nil:
			return nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}

func (g *guard) head(p []byte) (int, error) {
	for {
		err := g.line(maxHead)
		if errors.Is(err, errAmbiguous) {
			return g.refuse()
		}
		if err != nil {
			if err == io.EOF && len(g.partial) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		if bytes.HasSuffix(g.partial, []byte("\r\n\r\n")) || bytes.Equal(g.partial, []byte("\r\n")) || bytes.HasSuffix(g.partial, []byte("\n\n")) {
			break
		}
	}
	framing, err := parseHead(g.partial)
	if err != nil {
		return g.refuse()
	}
	g.ready, g.partial = g.partial, nil
	switch {
	case framing.upgrade:
		g.state = g.open
	case framing.chunked:
		g.state = g.chunkSize
	case framing.length > 0:
		g.left, g.state = framing.length, g.body
	}
	return 0, nil
}

func (g *guard) refuse() (int, error) {
	g.ready, g.partial = []byte(refused), nil
	g.state = func([]byte) (int, error) { return 0, io.EOF }
	return 0, nil
}

func (g *guard) open(p []byte) (int, error) { return g.br.Read(p) }

func (g *guard) body(p []byte) (int, error) {
	n, err := g.br.Read(p[:min(int64(len(p)), g.left)])
	if g.left -= int64(n); g.left == 0 {
		g.state = g.head
	}
	return n, err
}

func (g *guard) chunkSize([]byte) (int, error) {
	if err := g.line(maxLine); err != nil {
		return 0, err
	}
	digits, ok := bytes.CutSuffix(g.partial, []byte("\r\n"))
	size, valid := hexadecimal(digits)
	if !ok || !valid {
		return 0, errAmbiguous
	}
	g.ready, g.partial = g.partial, nil
	if g.left = size; size == 0 {
		g.state = g.trailer
	} else {
		g.state = g.chunk
	}
	return 0, nil
}

func (g *guard) chunk(p []byte) (int, error) {
	n, err := g.br.Read(p[:min(int64(len(p)), g.left)])
	if g.left -= int64(n); g.left == 0 {
		g.state = g.chunkEnd
	}
	return n, err
}

func (g *guard) chunkEnd([]byte) (int, error) {
	if err := g.line(2); err != nil {
		return 0, err
	}
	if !bytes.Equal(g.partial, []byte("\r\n")) {
		return 0, errAmbiguous
	}
	g.ready, g.partial, g.state = g.partial, nil, g.chunkSize
	return 0, nil
}

// trailer lets none through but the end: what comes after a body was judged by
// nobody.
func (g *guard) trailer([]byte) (int, error) {
	if err := g.line(2); err != nil {
		return 0, err
	}
	if !bytes.Equal(g.partial, []byte("\r\n")) {
		return 0, errAmbiguous
	}
	g.ready, g.partial, g.state = g.partial, nil, g.head
	return 0, nil
}

func hexadecimal(digits []byte) (n int64, ok bool) {
	if len(digits) == 0 || len(digits) > maxDigits {
		return 0, false
	}
	for _, c := range digits {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | int64(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			n = n<<4 | int64(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

// framing is how a request's body ends.
type framing struct {
	length  int64
	chunked bool
	upgrade bool
}

// parseHead judges a head by its letters.
func parseHead(head []byte) (f framing, err error) {
	text, ok := strings.CutSuffix(string(head), "\r\n\r\n")
	if !ok {
		return f, errAmbiguous
	}
	lines := strings.Split(text, "\r\n")
	target, minor, ok := requestLine(lines[0])
	if !ok {
		return f, errAmbiguous
	}
	seen := map[string]string{}
	for _, line := range lines[1:] {
		name, value, ok := headerLine(line)
		if !ok {
			return f, errAmbiguous
		}
		if single[name] {
			if _, twice := seen[name]; twice {
				return f, errAmbiguous
			}
			seen[name] = value
		}
	}
	return framed(seen, target, minor)
}

// single are the headers of which there is one or none.
var single = map[string]bool{"host": true, "content-length": true, "transfer-encoding": true, "upgrade": true}

func framed(h map[string]string, target string, minor byte) (f framing, err error) {
	host, hasHost := h["host"]
	length, hasLength := h["content-length"]
	encoding, hasEncoding := h["transfer-encoding"]
	upgrade, hasUpgrade := h["upgrade"]
	switch {
	case !hasHost || strings.ContainsAny(host, " \t") || hasLength && hasEncoding,
		hasEncoding && (minor == '0' || !strings.EqualFold(encoding, "chunked")),
		hasUpgrade && !strings.EqualFold(upgrade, "websocket"),
		hasUpgrade && (hasLength || hasEncoding),
		!agree(target, host):
		return f, errAmbiguous
	}
	for _, c := range length {
		if c < '0' || c > '9' || len(length) > maxDigits {
			return f, errAmbiguous
		}
		f.length = f.length*10 + int64(c-'0')
	}
	if hasLength && length == "" {
		return f, errAmbiguous
	}
	f.chunked, f.upgrade = hasEncoding, hasUpgrade
	return f, nil
}

// agree says whether a target is a path, an asterisk, or a URL of the host that
// the request names.
func agree(target, host string) bool {
	if target == "*" || strings.HasPrefix(target, "/") {
		return true
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return false
	}
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		rest = rest[:i]
	}
	return strings.EqualFold(rest, host)
}

func requestLine(line string) (target string, minor byte, ok bool) {
	method, rest, ok := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || !token(method) || method == "CONNECT" || method == "TRACE" || target == "" ||
		version != "HTTP/1.1" && version != "HTTP/1.0" {
		return "", 0, false
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return "", 0, false
		}
	}
	return target, version[len(version)-1], true
}

func headerLine(line string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(line, ":")
	if !ok || !token(name) || strings.Contains(name, "_") {
		return "", "", false
	}
	value = strings.Trim(value, " \t")
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "", "", false
		}
	}
	return strings.ToLower(name), value, true
}

// token is RFC 9110's.
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}
