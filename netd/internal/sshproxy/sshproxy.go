// Package sshproxy lets a sandbox use git over SSH with a key that it never has.
//
// To the sandbox it is the server, with the sandbox's own host key; to upstream it is the
// client, with the stored key, and only of a server whose host key the binding names.
// What passes is git's three programs, each with one repository, in words that are made
// anew here: no shell, no other command, no forwarding of anything, for a key that pushes
// code usually opens more. Upstream is dialled when there is something to run. The
// package owns the two ends of one connection and keeps nothing when it ends; who may
// connect where, and when that is over, is the caller's.
package sshproxy

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
)

const (
	// handshakeTimeout bounds each side's handshake, login included.
	handshakeTimeout = 20 * time.Second
	// farewell is how long a client whose command has ended may take to hang up, which ssh
	// does at once.
	farewell = 10 * time.Second
	// maxOperations bounds what is told of one connection.
	maxOperations = 32
	maxLogins     = 3
	version       = "SSH-2.0-s0"
)

// Config is what one connection needs.
type Config struct {
	HostKey    ed25519.PrivateKey // that the sandbox believes
	Projection *policy.SSHProxyProj
	Host       string // where the sandbox connects to: a name, or an address without one
	Port       uint16
	Key        string // PEM, upstream's
	Passphrase string
	// Dial connects to upstream.
	Dial func(ctx context.Context) (net.Conn, error)
}

// HostKeyLine is a host key's public half as a line of authorized_keys.
func HostKeyLine(key ed25519.PrivateKey) (string, error) {
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return "", err
	}
	return string(ssh.MarshalAuthorizedKey(public)), nil
}

// proxy is one connection.
type proxy struct {
	Config
	signer ssh.Signer
	pinned []ssh.PublicKey
	user   string // as whom the sandbox came

	up func() (ssh.Conn, error) // dialled once

	mu         sync.Mutex
	operations []string
}

// Serve answers a sandbox until either end hangs up, which is here soon after the one
// command of a connection, and says what ran. The caller closes the connection, when ctx
// ends at the latest.
func Serve(ctx context.Context, conn net.Conn, cfg Config) (operations []string, err error) {
	p := &proxy{Config: cfg}
	if err := p.prepare(); err != nil {
		return nil, err
	}
	server, err := p.server()
	if err != nil {
		return nil, err
	}
	client, channels, requests, err := handshake(conn, func() (*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
		return ssh.NewServerConn(conn, server)
	})
	if err != nil {
		return nil, errdefs.New(errdefs.PermissionDenied, "the sandbox's SSH client did not log in").WithCause(err)
	}
	p.user = client.User()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.up = sync.OnceValues(func() (ssh.Conn, error) { return p.connect(ctx) })
	err = p.serve(ctx, client, channels, requests)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.operations, err
}

// prepare reads what the binding and the source have. Its errors quote no key.
func (p *proxy) prepare() (err error) {
	if p.Projection == nil {
		return errdefs.New(errdefs.Unavailable, "the binding has no SSH projection")
	}
	if p.Passphrase != "" {
		p.signer, err = ssh.ParsePrivateKeyWithPassphrase([]byte(p.Key), []byte(p.Passphrase))
	} else {
		p.signer, err = ssh.ParsePrivateKey([]byte(p.Key))
	}
	if err != nil {
		return errdefs.New(errdefs.Unavailable, "the source holds no SSH key that opens")
	}
	p.pinned, err = hostKeys(p.Projection.KnownHosts, p.Host, p.Port)
	if err == nil && len(p.pinned) == 0 {
		err = errdefs.New(errdefs.PermissionDenied, "knownHosts has no key of %s", p.Host)
	}
	return err
}

// server is how the sandbox logs in: with one of the keys that its binding names, or, as
// nobody else can connect from its address, with nothing.
func (p *proxy) server() (*ssh.ServerConfig, error) {
	config := &ssh.ServerConfig{ServerVersion: version, MaxAuthTries: maxLogins, NoClientAuth: len(p.Projection.SandboxPublicKeys) == 0}
	if !config.NoClientAuth {
		config.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if !slices.ContainsFunc(p.Projection.SandboxPublicKeys, func(k string) bool { return is(k, key) }) {
				return nil, errors.New("the key is not one of the binding's")
			}
			return &ssh.Permissions{}, nil
		}
	}
	host, err := ssh.NewSignerFromKey(p.HostKey)
	if err != nil {
		return nil, err
	}
	config.AddHostKey(host)
	return config, nil
}

// connect logs in upstream. Its connection ends with ctx.
func (p *proxy) connect(ctx context.Context) (ssh.Conn, error) {
	conn, err := p.Dial(ctx)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	user := p.Projection.UpstreamUsername
	if user == "" {
		user = p.user
	}
	config := &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(p.signer)}, ClientVersion: version,
		HostKeyCallback: p.pin, HostKeyAlgorithms: algorithms(p.pinned),
	}
	up, channels, requests, err := handshake(conn, func() (ssh.Conn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
		return ssh.NewClientConn(conn, p.Host, config)
	})
	if err != nil {
		conn.Close()
		return nil, errdefs.New(errdefs.BadGateway, "%s: the key or the server's host key was not accepted", p.Host).WithCause(err)
	}
	go ssh.DiscardRequests(requests) // both end with the connection
	go func() {
		for c := range channels {
			_ = c.Reject(ssh.Prohibited, "nothing is opened from there")
		}
	}()
	return up, nil
}

// handshake bounds a handshake's time.
func handshake[C any](conn net.Conn, shake func() (C, <-chan ssh.NewChannel, <-chan *ssh.Request, error)) (C, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	t := time.AfterFunc(handshakeTimeout, func() { conn.Close() })
	defer t.Stop()
	return shake()
}

// pin refuses every host key that is not the binding's.
func (p *proxy) pin(_ string, _ net.Addr, key ssh.PublicKey) error {
	if slices.ContainsFunc(p.pinned, func(k ssh.PublicKey) bool { return same(k, key) }) {
		return nil
	}
	return fmt.Errorf("%s has another host key than knownHosts says", p.Host)
}

// serve runs one command and takes the sandbox's channels until it hangs up. A channel
// that was accepted keeps up to 2 MiB that nobody reads until the sandbox closes it, also
// when its command has ended: it is the connection's only one, and the connection ends
// behind it. One that is refused keeps nothing.
func (p *proxy) serve(ctx context.Context, client ssh.Conn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) (err error) {
	var wg sync.WaitGroup
	wg.Go(func() { ssh.DiscardRequests(requests) })
	gone := make(chan struct{})
	taken := false
	for c := range channels {
		switch {
		case c.ChannelType() != "session":
			_ = c.Reject(ssh.Prohibited, "only git's commands pass")
		case taken:
			_ = c.Reject(ssh.ResourceShortage, "a connection has one command")
		default:
			taken = true
			wg.Go(func() {
				err = p.session(ctx, c)
				dismiss(client, gone)
			})
		}
	}
	close(gone)
	wg.Wait()
	return err
}

// dismiss hangs up on a client that does not: what it was sent last it can read by then.
func dismiss(client ssh.Conn, gone <-chan struct{}) {
	select {
	case <-gone:
	case <-time.After(farewell):
		client.Close()
	}
}

func (p *proxy) ran(command Command) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.operations) < maxOperations {
		p.operations = append(p.operations, command.Program+" "+command.Repository)
	}
}

// tellable is what the sandbox's user reads of a failure.
func tellable(err error) string {
	var known *errdefs.Error
	if errors.As(err, &known) {
		return known.Message
	}
	return "the connection to upstream failed"
}

func line(text string) string { return "s0: " + strings.TrimSpace(text) + "\r\n" }
