// Package forge is an SSH server for tests that runs, for whoever has the right key,
// whatever it is asked to in a directory of repositories: a forge without its own care.
package forge

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Forge is safe for concurrent use.
type Forge struct {
	t    testing.TB
	dir  string
	host ssh.Signer

	mu    sync.Mutex
	key   ssh.PublicKey
	ran   []string
	tries int // with keys that are not known
}

// NewKey makes a key, and its PEM.
func NewKey(t testing.TB) (signer ssh.Signer, text string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	if signer, err = ssh.NewSignerFromKey(key); err != nil {
		t.Fatal(err)
	}
	return signer, string(pem.EncodeToMemory(block))
}

// Line is a public key as in authorized_keys.
func Line(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }

// New makes a server that serves nobody yet.
func New(t testing.TB) *Forge {
	t.Helper()
	f := &Forge{t: t, dir: t.TempDir()}
	f.host, _ = NewKey(t)
	return f
}

// HostKey is the server's.
func (f *Forge) HostKey() ssh.PublicKey { return f.host.PublicKey() }

// Repository makes an empty one.
func (f *Forge) Repository(name string) {
	f.t.Helper()
	if out, err := exec.Command("git", "init", "-q", "--bare", filepath.Join(f.dir, name)).CombinedOutput(); err != nil {
		f.t.Fatalf("git init: %s: %v", out, err)
	}
}

// Allow lets one key in, and no other any more.
func (f *Forge) Allow(key ssh.PublicKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.key = key
}

// Seen is what ran, and how often a key was not known.
func (f *Forge) Seen() (ran []string, tries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ran), f.tries
}

// Serve takes connections until the listener is closed.
func (f *Forge) Serve(l net.Listener) {
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.key != nil && bytes.Equal(f.key.Marshal(), key.Marshal()) {
			return nil, nil
		}
		f.tries++
		return nil, errors.New("the key is not known")
	}}
	config.AddHostKey(f.host)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go f.connection(conn, config)
	}
}

func (f *Forge) connection(conn net.Conn, config *ssh.ServerConfig) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		go f.session(c)
	}
}

func (f *Forge) session(c ssh.NewChannel) {
	ch, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	var env []string
	for r := range requests {
		var pair struct{ Name, Value string }
		var one struct{ Command string }
		switch {
		case r.Type == "env" && ssh.Unmarshal(r.Payload, &pair) == nil:
			env = append(env, pair.Name+"="+pair.Value)
		case r.Type == "exec" && ssh.Unmarshal(r.Payload, &one) == nil:
			_ = r.Reply(true, nil)
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{f.run(ch, one.Command, env)}))
			return
		}
		_ = r.Reply(r.Type == "env", nil)
	}
}

func (f *Forge) run(ch ssh.Channel, command string, env []string) uint32 {
	f.mu.Lock()
	f.ran = append(f.ran, strings.Join(append(slices.Clone(env), command), " "))
	f.mu.Unlock()
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir, cmd.Env = f.dir, append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
	in, err := cmd.StdinPipe()
	if err != nil {
		return 1
	}
	go func() { // ends with the channel
		_, _ = io.Copy(in, ch)
		in.Close()
	}()
	if cmd.Run() != nil {
		return 1
	}
	return 0
}
