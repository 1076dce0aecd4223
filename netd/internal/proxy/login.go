package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/netd/internal/relay"
	"s0.run/netd/internal/share"
	"s0.run/netd/internal/sniff"
	"s0.run/netd/internal/sshproxy"
)

const handshakeTimeout = 10 * time.Second

// shells is how many connections over SSH are answered at once, of a sandbox and of all:
// each may have 4 MiB in memory that nobody reads.
var shells = share.Config{Sure: 2, Most: 16, Spare: 128}

// tunnel ends the sandbox's TLS here and begins one to upstream that presents a
// client certificate. What is inside passes as it is.
func (s *session) tunnel(ctx context.Context, head *sniff.Conn, to policy.Flow, cred *policy.Credential) error {
	s.record.Adapter = "terminate"
	ready, err := s.prepare(cred)
	if err != nil {
		reset(s.conn)
		return err
	}
	cert, roots := ready.Certificate()
	if cert == nil {
		reset(s.conn)
		return errdefs.New(errdefs.Unavailable, "the credential %q is no client certificate", ready.Ref)
	}
	if roots == nil {
		roots = s.p.config.Roots
	}
	raw, err := s.dial(ctx, to)
	if err != nil {
		reset(s.conn)
		return err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { reset(raw.TCPConn) })()
	upstream := &tls.Config{ServerName: to.Name, Certificates: []tls.Certificate{*cert}, RootCAs: roots, MinVersion: tls.VersionTLS12}
	return s.retls(ctx, relay.Counted{Conn: head, Flow: s.flow}, raw, upstream)
}

// retls shakes hands with upstream first: the sandbox gets the protocol that
// upstream chose of those it offers, and no connection that leads nowhere.
func (s *session) retls(ctx context.Context, client, raw net.Conn, upstream *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var up *tls.Conn
	down := tls.Server(client, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		config := upstream.Clone()
		config.NextProtos = hello.SupportedProtos
		up = tls.Client(raw, config)
		if err := up.HandshakeContext(hello.Context()); err != nil {
			return nil, fmt.Errorf("upstream's handshake: %w", err)
		}
		leaf, err := s.leaf(upstream.ServerName)
		if err != nil {
			return nil, err
		}
		answer := &tls.Config{Certificates: []tls.Certificate{*leaf}, MinVersion: tls.VersionTLS12}
		if chosen := up.ConnectionState().NegotiatedProtocol; chosen != "" {
			answer.NextProtos = []string{chosen}
		}
		return answer, nil
	}})
	if err := down.HandshakeContext(ctx); err != nil {
		reset(s.conn)
		return err
	}
	done := make(chan error, 1)
	go func() { done <- half(down, up) }()
	err := half(up, down)
	if back := <-done; err == nil {
		err = back
	}
	down.Close()
	up.Close()
	return err
}

// half copies one way and passes its end on. A failure ends the other way, too.
func half(dst, src *tls.Conn) error {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		dst.Close()
		src.Close()
	}
	return err
}

// login is for protocols that have a login of their own: SSH's. No other is spoken, and
// without its credential nothing leaves (F14).
func (s *session) login(ctx context.Context, head *sniff.Conn, to policy.Flow, cred *policy.Credential) error {
	if to.App != policy.SSH {
		reset(s.conn)
		s.authorised(cred.Rule, cred.Binding.Ref, false, false, nil)
		s.deny("a credential for " + to.App + " cannot be placed")
		return nil
	}
	s.record.Adapter = "ssh"
	if !s.p.shells.Take(s.guest.ID, 1) {
		reset(s.conn)
		s.deny("too many connections over SSH at once")
		return nil
	}
	defer s.p.shells.Give(s.guest.ID, 1)
	ready, err := s.prepare(cred)
	if err != nil {
		reset(s.conn)
		return err
	}
	conf := sshproxy.Config{Projection: cred.Binding.Projection.SSHProxy, Host: to.Name, Port: to.Port}
	if to.Name == "" {
		conf.Host = to.Addr.String()
	}
	conf.Key, conf.Passphrase = ready.SSHKey()
	if conf.HostKey, err = s.p.config.Identities.HostKey(s.guest.ID); err != nil {
		reset(s.conn)
		return err
	}
	conf.Dial = func(ctx context.Context) (net.Conn, error) {
		up, err := s.dial(ctx, to)
		if err != nil {
			return nil, err
		}
		return up.TCPConn, nil
	}
	s.record.ProtocolOperations, err = sshproxy.Serve(ctx, relay.Counted{Conn: head, Flow: s.flow}, conf)
	return err
}
