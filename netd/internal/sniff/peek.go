package sniff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// Limits bound what [Peek] waits for.
type Limits struct {
	Bytes   int           // what may be read until the protocol is known
	Timeout time.Duration // how long that may take
	Quiet   time.Duration // how long a client may say nothing before it is Silent
}

// DefaultLimits are those of E09. Quiet is short, for it is what every connection
// of a protocol whose server speaks first waits for.
var DefaultLimits = Limits{Bytes: MaxHello, Timeout: 5 * time.Second, Quiet: time.Second}

// Conn is a connection of which a head was read; Read gives it again.
type Conn struct {
	net.Conn
	head []byte
}

func (c *Conn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	if c.head = c.head[n:]; len(c.head) == 0 {
		c.head = nil
	}
	return n, nil
}

// CloseWrite tells the client that nothing more comes, where the connection can.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Take gives the head to a caller that goes on with the connection below.
func (c *Conn) Take() []byte {
	head := c.head
	c.head = nil
	return head
}

// smallPeek is what every connection may be looked at with; what is longer needs room.
const smallPeek = 4 << 10

// ErrNoRoom is what a long beginning ends in where there is no room for it.
var ErrNoRoom = errors.New("no room for so long a beginning")

// Peek says what a client begins c with. room is asked for more bytes than a few. It never reads more than the budget; a
// budget that is used up without an answer, in bytes or time, is an error, and so
// is an end: half a request line could become any protocol. The read deadline is
// cleared behind it. The returned Conn is never nil.
func Peek(c net.Conn, limits Limits, room func(bytes int) bool) (Result, *Conn, error) {
	conn := &Conn{Conn: c}
	defer c.SetReadDeadline(time.Time{})
	start := time.Now()
	buf := make([]byte, 0, min(smallPeek, limits.Bytes))
	c.SetReadDeadline(start.Add(min(limits.Quiet, limits.Timeout)))
	for {
		if len(buf) == cap(buf) {
			if !room(min(4*cap(buf), limits.Bytes) - cap(buf)) {
				return Result{}, conn, ErrNoRoom
			}
			buf = append(make([]byte, 0, min(4*cap(buf), limits.Bytes)), buf...)
		}
		n, err := c.Read(buf[len(buf):cap(buf)])
		if len(buf) == 0 && n > 0 {
			c.SetReadDeadline(start.Add(limits.Timeout))
		}
		buf = buf[:len(buf)+n]
		conn.head = buf
		if n > 0 {
			if result, more := Classify(buf); !errors.Is(more, ErrMore) {
				return result, conn, more
			}
		}
		switch {
		case err != nil && len(buf) == 0 && errors.Is(err, os.ErrDeadlineExceeded):
			return Result{Kind: Silent}, conn, nil
		case err != nil:
			return Result{}, conn, fmt.Errorf("reading the first bytes: %w", err)
		case len(buf) >= limits.Bytes:
			return Result{}, conn, fmt.Errorf("%w: nothing known in %d bytes", ErrMalformed, limits.Bytes)
		}
	}
}
