package netdapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// Held is a connection of a sandbox that one netd has left and another may go on with:
// while there is none, noded has its sockets. Nobody passes its bytes on then. What the
// next netd finds that it may not be any more, it ends; noded ends what belongs to a
// sandbox that has ended.
type Held struct {
	Sandbox    sandbox.ID         `json:"sandbox"`
	Generation sandbox.Generation `json:"generation"`
	State      json.RawMessage    `json:"state"` // netd's own words

	Client   int `json:"-"` // sockets, which whoever has the value closes; -1: closed
	Upstream int `json:"-"`
}

// heldBytes bounds a message about one.
const heldBytes = 16 << 10

// HeldSocket is where they pass, beside netd's socket: one message for each, in packets.
func HeldSocket(socket string) string { return socket + ".held" }

// Close closes both sockets, which ends the connection if nobody else has them. It may
// be repeated: their numbers may be somebody else's by then.
func (h *Held) Close() {
	for _, fd := range []*int{&h.Client, &h.Upstream} {
		if *fd >= 0 {
			_ = syscall.Close(*fd)
		}
		*fd = -1
	}
}

// Cut ends the connection in a way that both sides take for no ordinary end.
func (h *Held) Cut() {
	for _, fd := range []int{h.Client, h.Upstream} { // a closed one fails
		_ = syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	}
	h.Close()
}

// A HeldConn carries them between noded and netd, either way.
type HeldConn struct{ conn *net.UnixConn }

// NewHeldConn is for the side that accepts.
func NewHeldConn(conn *net.UnixConn) *HeldConn { return &HeldConn{conn} }

// DialHeld connects to netd. It hands over what was held, and gets what is to be.
func (c *Client) DialHeld(ctx context.Context) (*HeldConn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unixpacket", HeldSocket(c.socket))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDown, err)
	}
	err = conn.SetReadDeadline(time.Now().Add(answerTimeout))
	if err == nil {
		err = awaitReady(conn)
	}
	if err = errors.Join(err, conn.SetReadDeadline(time.Time{})); err != nil {
		conn.Close()
		return nil, fmt.Errorf("netd does not take connections: %w", err)
	}
	return &HeldConn{conn.(*net.UnixConn)}, nil
}

// ready is netd's first word: from then on it hands connections over when it stops.
var ready = []byte("ready")

func awaitReady(conn net.Conn) error {
	word := make([]byte, len(ready)+1)
	n, err := conn.Read(word)
	if err == nil && !bytes.Equal(word[:n], ready) {
		err = fmt.Errorf("its first word is %q", word[:n])
	}
	return err
}

// Ready says so.
func (c *HeldConn) Ready() error {
	_, err := c.conn.Write(ready)
	return err
}

// Close ends it.
func (c *HeldConn) Close() error { return c.conn.Close() }

// Send hands a connection to the other side, which has sockets of its own for it from
// then on. The caller's stay open.
func (c *HeldConn) Send(h Held) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(b) > heldBytes {
		return fmt.Errorf("a connection of %s takes %d bytes to tell", h.Sandbox, len(b))
	}
	_, _, err = c.conn.WriteMsgUnix(b, syscall.UnixRights(h.Client, h.Upstream), nil)
	return err
}

// Receive waits for a connection. It returns io.EOF when the other side has gone.
func (c *HeldConn) Receive() (Held, error) {
	b, oob := make([]byte, heldBytes), make([]byte, syscall.CmsgSpace(2*4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return Held{}, err
	}
	if n == 0 && oobn == 0 {
		return Held{}, io.EOF
	}
	fds, err := rights(oob[:oobn])
	if err == nil && (len(fds) != 2 || flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0) {
		err = errdefs.New(errdefs.InvalidArgument, "a connection with %d sockets, or cut off", len(fds))
	}
	var h Held
	if err == nil {
		err = json.Unmarshal(b[:n], &h)
	}
	if err == nil {
		err = validIdentity(h.Sandbox, h.Generation)
	}
	if err != nil {
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
		return Held{}, err
	}
	h.Client, h.Upstream = fds[0], fds[1]
	return h, nil
}

// rights are the descriptors that came with a message.
func rights(oob []byte) (fds []int, err error) {
	all, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range all {
		some, err := syscall.ParseUnixRights(&all[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, some...)
	}
	return fds, nil
}
