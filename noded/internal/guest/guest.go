// Package guest finds the way to procd in a sandbox that is a virtual machine.
//
// No socket of the host can be bound into such a sandbox, so there noded dials and
// procd listens: on a port of the socket between the machine and its host. Where that
// socket is, Kata Containers' shim of the sandbox tells, on a socket of its own that is
// named by the sandbox's id. What it tells is the hypervisor's: the machine's context
// id (vhost-vsock, as QEMU has it), or a unix socket of the hypervisor's that passes on
// (hybrid vsock: Cloud Hypervisor, Firecracker, Dragonball).
//
// The package keeps nothing, and trusts the shim, which is the host's. It decides
// nothing about who may call whom: its user shows a token, see package procd.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/vsock"
)

const (
	// dialTimeout bounds one attempt, which is made again.
	dialTimeout = 3 * time.Second
	// maxURL bounds what a shim says.
	maxURL = 4 << 10
	// maxGreeting bounds the line that a hypervisor lets one in with, "OK <port>".
	maxGreeting = 32
	shimSocket  = "shim-monitor.sock"
)

// shimDirs are where the shims of Kata's two runtimes have their sockets, the one in
// Go and the one in Rust.
var shimDirs = []string{"/run/vc/sbs", "/run/kata"}

// Guests are the machines of a node. The zero Guests is theirs; tests have others.
type Guests struct {
	Dirs []string // defaults to where Kata Containers has them
}

// Dial connects to procd in a sandbox.
func (g Guests) Dial(ctx context.Context, id sandbox.ID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	where, err := g.agentURL(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("asking the shim of %s where its machine is: %w", id, err)
	}
	conn, err := dial(ctx, where)
	if err != nil {
		return nil, fmt.Errorf("dialling procd of %s by %s: %w", id, where.Scheme, err)
	}
	return conn, nil
}

// agentURL asks the sandbox's shim for the address of its machine's agent.
func (g Guests) agentURL(ctx context.Context, id sandbox.ID) (*url.URL, error) {
	dirs := g.Dirs
	if dirs == nil {
		dirs = shimDirs
	}
	var all error
	for _, dir := range dirs {
		answer, err := ask(ctx, filepath.Join(dir, string(id), shimSocket))
		if err == nil {
			return url.Parse(strings.TrimSpace(answer))
		}
		if !errors.Is(err, fs.ErrNotExist) || all == nil {
			all = err
		}
	}
	return nil, all
}

// ask asks one shim.
func ask(ctx context.Context, socket string) (string, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://shim/agent-url", http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxURL))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answers %d: %.200q", resp.StatusCode, body)
	}
	return string(body), err
}

// dial connects to procd's port in the machine whose agent is at where.
func dial(ctx context.Context, where *url.URL) (net.Conn, error) {
	switch where.Scheme {
	case "vsock": // vsock://<context id>:<the agent's port>
		cid, err := strconv.ParseUint(where.Hostname(), 10, 32)
		if err != nil || cid <= unix.VMADDR_CID_HOST || cid == unix.VMADDR_CID_ANY {
			return nil, fmt.Errorf("%q is no machine's context id", where.Hostname())
		}
		return vsock.Dial(vsock.Addr{CID: uint32(cid), Port: procapi.GuestPort})
	case "hvsock": // hvsock://<the hypervisor's socket>:<the agent's port>
		socket, _, _ := strings.Cut(where.Path, ":")
		if !filepath.IsAbs(socket) || filepath.Clean(socket) != socket {
			return nil, fmt.Errorf("%q is no socket's path", socket)
		}
		return dialHybrid(ctx, socket)
	}
	return nil, fmt.Errorf("a machine behind %q can't be reached", where.Scheme)
}

// dialHybrid has a hypervisor pass on a connection: it is asked for a port in a line,
// and lets one in with another.
func dialHybrid(ctx context.Context, socket string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = knock(conn)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline may have been set since
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func knock(conn net.Conn) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", procapi.GuestPort); err != nil {
		return err
	}
	// Byte by byte: what comes after the line is procd's.
	var line []byte
	for b := make([]byte, 1); len(line) < maxGreeting; line = append(line, b[0]) {
		if _, err := io.ReadFull(conn, b); err != nil {
			return err // nobody listens in there: the hypervisor hangs up
		}
		if b[0] == '\n' {
			break
		}
	}
	if word, _, _ := strings.Cut(string(line), " "); word != "OK" {
		return fmt.Errorf("the hypervisor answers %q", line)
	}
	return nil
}
