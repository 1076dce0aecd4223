package procd

import (
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/vsock"
)

const (
	// tokenWait bounds the wait for a caller's token, which he has at hand: behind each
	// that has none noded waits as long.
	tokenWait = time.Second
	// acceptPause is the pause after a failed accept, such as for want of descriptors.
	acceptPause = 200 * time.Millisecond
)

// door is where noded comes in when procd can't go to it: a listener that the host
// reaches, and the token that noded has and other processes of the host do not.
type door struct {
	listener net.Listener
	token    []byte
	wait     time.Duration // for a caller's
}

func openDoor() (*door, error) {
	token, err := os.ReadFile(procapi.TokenFile)
	if err != nil {
		return nil, err
	}
	if len(token) != procapi.TokenBytes {
		return nil, fmt.Errorf("%s has %d bytes, want %d", procapi.TokenFile, len(token), procapi.TokenBytes)
	}
	l, err := vsock.Listen(procapi.GuestPort)
	if err != nil {
		return nil, fmt.Errorf("listening for noded: %w", err)
	}
	return &door{l, token, tokenWait}, nil
}

// serve serves whoever shows the token until ctx ends. The latest is noded: an
// earlier connection of its may have ended without a word. Who shows none is asked
// alone, so that nobody can fill the doorway.
func (d *door) serve(ctx context.Context, l *link) {
	stop := context.AfterFunc(ctx, func() { d.listener.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	for ctx.Err() == nil {
		conn, err := d.listener.Accept()
		if err != nil {
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		if err := d.check(conn); err != nil {
			conn.Close()
			continue
		}
		l.hold(conn) // in the order in which they came
		serving.Go(func() { l.attend(conn) })
	}
}

// check reads a caller's token.
func (d *door) check(conn net.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(d.wait)); err != nil {
		return err
	}
	shown := make([]byte, len(d.token))
	if _, err := io.ReadFull(conn, shown); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(shown, d.token) != 1 {
		return fmt.Errorf("a token of nobody's")
	}
	return conn.SetReadDeadline(time.Time{})
}
