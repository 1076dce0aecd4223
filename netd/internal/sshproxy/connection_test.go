package sshproxy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"s0.run/internal/policy"
	"s0.run/internal/s0test/forge"
)

// queued is an end of a pipe whose writes wait for no reader: in SSH both ends write at
// any time.
type queued struct {
	net.Conn
	writes chan []byte
	closed chan struct{}
	close  func()
}

func queue(conn net.Conn) *queued {
	q := &queued{Conn: conn, writes: make(chan []byte, 1024), closed: make(chan struct{})}
	q.close = sync.OnceFunc(func() { close(q.closed) })
	go func() {
		for {
			select {
			case b := <-q.writes:
				if _, err := conn.Write(b); err != nil {
					return
				}
			case <-q.closed:
				return
			}
		}
	}()
	return q
}

func (q *queued) Write(b []byte) (int, error) {
	select {
	case q.writes <- bytes.Clone(b):
		return len(b), nil
	case <-q.closed:
		return 0, net.ErrClosed
	}
}

func (q *queued) Close() error {
	q.close()
	return q.Conn.Close()
}

// connect is a sandbox's connection to a proxy that reaches nobody. What Serve returned
// comes when it has.
func connect(t *testing.T) (client ssh.Conn, served <-chan error) {
	t.Helper()
	upstream, key := forge.NewKey(t)
	here, there := net.Pipe()
	done := make(chan error, 1)
	go func() {
		defer there.Close()
		_, err := Serve(t.Context(), there, Config{
			HostKey:    ed25519.NewKeyFromSeed([]byte(strings.Repeat("k", ed25519.SeedSize))),
			Projection: &policy.SSHProxyProj{KnownHosts: []string{"git.example " + forge.Line(upstream.PublicKey())}},
			Host:       "git.example", Port: 22, Key: key,
			Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("nobody is there") },
		})
		done <- err
	}()
	client, channels, requests, err := ssh.NewClientConn(queue(here), "git.example", &ssh.ClientConfig{
		User: "git", HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	go ssh.DiscardRequests(requests)
	go func() {
		for c := range channels {
			_ = c.Reject(ssh.Prohibited, "")
		}
	}()
	return client, done
}

// exit has a command run, and returns what it ended with once its channel is closed.
func exit(t *testing.T, client ssh.Conn, command string) (status exitStatus) {
	t.Helper()
	channel, requests, err := client.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := channel.SendRequest("exec", true, ssh.Marshal(execRequest{command})); err != nil || !ok {
		t.Fatalf("exec: %v, %v", ok, err)
	}
	for r := range requests {
		if err := ssh.Unmarshal(r.Payload, &status); r.Type != "exit-status" || err != nil {
			t.Errorf("%s: %v", r.Type, err)
		}
	}
	return status
}

// What a channel was sent after its end is kept as long as the connection: there is one,
// and who does not hang up behind it is cut.
func TestD08_ChannelAfterChannel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, served := connect(t)
		if got := exit(t, client, "x"); got.Status != refused {
			t.Errorf("it ended with %d", got.Status)
		}
		for range 100 {
			var full *ssh.OpenChannelError
			if _, _, err := client.OpenChannel("session", nil); !errors.As(err, &full) || full.Reason != ssh.ResourceShortage {
				t.Fatalf("another channel: %v", err)
			}
		}
		start := time.Now()
		if err := <-served; err == nil {
			t.Error("a command that is not git's ran")
		}
		if err := client.Wait(); err == nil || time.Since(start) != farewell {
			t.Errorf("cut after %v: %v", time.Since(start), err)
		}
	})
}

// Who hangs up is not waited for.
func TestTheClientHangsUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, served := connect(t)
		start := time.Now()
		if got := exit(t, client, "git-upload-pack 'r'"); got.Status != refused {
			t.Errorf("it ended with %d", got.Status)
		}
		client.Close()
		if err := <-served; err == nil || time.Since(start) != 0 {
			t.Errorf("over after %v: %v", time.Since(start), err)
		}
	})
}
