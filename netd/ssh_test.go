package netd_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/crypto/ssh"

	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
)

// forge is an SSH server of the internet that runs whatever a key may ask for in a
// directory of repositories.
type forge struct {
	w    *web
	dir  string
	host ssh.Signer

	mu    sync.Mutex
	keys  []ssh.PublicKey
	ran   []string
	tries int // with keys that are not known
}

func newSigner(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, string(pem.EncodeToMemory(block))
}

func newForge(w *web) *forge {
	f := &forge{w: w, dir: w.t.TempDir()}
	f.host, _ = newSigner(w.t)
	for _, at := range []string{net.JoinHostPort(far4, "22"), net.JoinHostPort(far6, "22")} {
		w.must(in(w.beyond, func() error {
			l, err := net.Listen("tcp", at)
			if err != nil {
				return err
			}
			w.t.Cleanup(func() { l.Close() })
			go f.accept(l)
			return nil
		}))
	}
	return f
}

// allows lets one key in, and no other any more.
func (f *forge) allows(key ssh.PublicKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = []ssh.PublicKey{key}
}

func (f *forge) all() (ran []string, tries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ran), f.tries
}

func (f *forge) accept(l net.Listener) {
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if slices.ContainsFunc(f.keys, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) }) {
			return nil, nil
		}
		f.tries++
		return nil, fmt.Errorf("no")
	}}
	config.AddHostKey(f.host)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, channels, requests, err := ssh.NewServerConn(conn, config)
			if err != nil {
				return
			}
			go ssh.DiscardRequests(requests)
			for c := range channels {
				go f.session(c)
			}
		}()
	}
}

func (f *forge) session(c ssh.NewChannel) {
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

func (f *forge) run(ch ssh.Channel, command string, env []string) uint32 {
	f.mu.Lock()
	f.ran = append(f.ran, strings.Join(append(env, command), " "))
	f.mu.Unlock()
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir, cmd.Env = f.dir, append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
	in, err := cmd.StdinPipe()
	if err != nil {
		return 1
	}
	go func() {
		_, _ = io.Copy(in, ch)
		in.Close()
	}()
	if cmd.Run() != nil {
		return 1
	}
	return 0
}

// shell is a sandbox with an SSH client.
type shell struct {
	*box
	f     *forge
	known string
	dir   string
}

const sshPolicy = `{"mode":"block-all","egress":{"allowedDomains":["git.example"],
	"credentialRules":[{"name":"code","credentialRef":"key","protocol":"ssh","domains":["git.example"]}]},
	"credentialBindings":[{"ref":"key","sourceRef":"src","projection":{"type":"ssh_proxy","sshProxy":%s}}]}`

func (f *forge) sandbox() *shell {
	f.w.t.Helper()
	s := &shell{box: f.w.sandbox(), f: f, dir: f.w.t.TempDir()}
	s.known = filepath.Join(s.dir, "known")
	ca, err := f.w.client.CA(f.w.t.Context(), s.slot.ID)
	f.w.must(err)
	f.w.must(os.WriteFile(s.known, []byte("git.example "+ca.SSHHost), 0o600))
	return s
}

// binds gives the sandbox a version of the key.
func (s *shell) binds(version int64, key, projection string) {
	s.f.w.t.Helper()
	w := s.f.w
	blob, err := w.public.SealSecret(sealed.Of{Team: "team", Source: "src", Kind: policy.StaticSSH, Version: version}, sealed.Secret{PrivateKeyPEM: key})
	w.must(err)
	w.must(w.client.SetPolicy(w.t.Context(), netdapi.Policy{
		ID: s.slot.ID, Generation: 1, Team: "team", Policy: json.RawMessage(fmt.Sprintf(sshPolicy, projection)),
		Credentials: []sealed.Credential{{Source: "src", Kind: policy.StaticSSH, Version: version, Blob: blob}},
	}))
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} { // a name's addresses are known when it was asked for
		if m, err := s.ask("1.2.3.4:53", "git.example.", kind); err != nil || len(m.Answer) != 1 {
			w.t.Fatalf("git.example: %v, %v", m, err)
		}
	}
}

func (f *forge) projection(extra string) string {
	return fmt.Sprintf(`{"upstreamUsername":"git","knownHosts":["git.example %s"]%s}`, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(f.host.PublicKey()))), extra)
}

// ssh is the client's command line to reach an address under the forge's name.
func (s *shell) ssh(addr string, options ...string) []string {
	all := []string{"ssh", "-F", "none", "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "GlobalKnownHostsFile=" + s.known, "-o", "HostName=" + addr, "-o", "HostKeyAlias=git.example", "-o", "IdentityAgent=none", "-o", "LogLevel=ERROR"}
	return append(all, options...)
}

// command begins a program in the sandbox's network.
func (s *shell) command(addr string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	out := new(bytes.Buffer)
	cmd := exec.CommandContext(s.f.w.t.Context(), args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, out, out
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_SSH_COMMAND="+strings.Join(s.ssh(addr), " "), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@a")
	return cmd, out
}

func (s *shell) run(addr string, args ...string) (string, error) {
	s.f.w.t.Helper()
	cmd, out := s.command(addr, args...)
	if err := in(s.ns, cmd.Start); err != nil { // a child is where its thread was
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

func TestF05_F10_GitOverSSHWithAKeyThatTheSandboxNeverHas(t *testing.T) {
	w := newWeb(t)
	f := newForge(w)
	signer, key := newSigner(t)
	f.allows(signer.PublicKey())
	if out, err := exec.Command("git", "init", "-q", "--bare", filepath.Join(f.dir, "team repo.git")).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	s := f.sandbox()
	s.binds(1, key, f.projection(""))
	for i, addr := range []string{far4, far6} {
		script := fmt.Sprintf(`set -e; git clone -q 'git.example:team repo.git' %[1]d; cd %[1]d; echo %[1]d >f%[1]d; git add .; git commit -qm %[1]d; git push -q origin HEAD:refs/heads/b%[1]d; git ls-remote -q`, i)
		if out, err := s.run(addr, "sh", "-c", script); err != nil || !strings.Contains(out, fmt.Sprint("refs/heads/b", i)) {
			t.Fatalf("over %s: %s, %v", addr, out, err)
		}
	}
	ran, _ := f.all()
	if len(ran) != 6 || !slices.Contains(ran, "git-receive-pack 'team repo.git'") || !strings.HasPrefix(ran[0], "GIT_PROTOCOL=version=2 git-upload-pack") {
		t.Errorf("upstream ran %q", ran)
	}
	for name, args := range map[string][]string{
		"a command":     s.ssh(far4, "git.example", "id"),
		"two":           s.ssh(far4, "git.example", "git-upload-pack 'team repo.git'; id"),
		"a shell":       s.ssh(far4, "git.example"),
		"a subsystem":   s.ssh(far4, "-s", "git.example", "sftp"),
		"a forwarding":  s.ssh(far4, "-o", "ExitOnForwardFailure=yes", "-W", "127.0.0.1:22", "git.example"),
		"a return path": s.ssh(far4, "-o", "ExitOnForwardFailure=yes", "-N", "-R", "2222:127.0.0.1:22", "git.example"),
	} {
		if out, err := s.run(far4, args...); err == nil {
			t.Errorf("%s passed: %s", name, out)
		}
	}
	if after, tries := f.all(); len(after) != len(ran) || tries != 0 {
		t.Errorf("upstream ran %q, and was tried %d times", after[len(ran):], tries)
	}
}

func TestF04_F12_AnSSHKeyIsForItsServerAlone(t *testing.T) {
	w := newWeb(t)
	f := newForge(w)
	first, firstKey := newSigner(t)
	second, secondKey := newSigner(t)
	stranger, strangerKey := newSigner(t)
	f.allows(first.PublicKey())
	if out, err := exec.Command("git", "init", "-q", "--bare", filepath.Join(f.dir, "r.git")).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	s := f.sandbox()
	// A server that is another than knownHosts says is never shown the key.
	s.binds(1, strangerKey, strings.Replace(f.projection(""), strings.Fields(string(ssh.MarshalAuthorizedKey(f.host.PublicKey())))[1],
		strings.Fields(string(ssh.MarshalAuthorizedKey(stranger.PublicKey())))[1], 1))
	if out, err := s.run(far4, "git", "ls-remote", "git.example:r.git"); err == nil || !strings.Contains(out, "s0: git.example") {
		t.Errorf("another server: %s, %v", out, err)
	}
	if ran, tries := f.all(); len(ran) != 0 || tries != 0 {
		t.Errorf("it ran %q, and was tried %d times", ran, tries)
	}
	// Where the binding names keys, the sandbox has to have one.
	own := filepath.Join(s.dir, "own")
	ownSigner, ownKey := newSigner(t)
	w.must(os.WriteFile(own, []byte(ownKey), 0o600))
	s.binds(2, firstKey, f.projection(fmt.Sprintf(`,"sandboxPublicKeys":[%q]`, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ownSigner.PublicKey()))))))
	if out, err := s.run(far4, "git", "ls-remote", "git.example:r.git"); err == nil {
		t.Errorf("without its own key: %s", out)
	}
	if out, err := s.run(far4, s.ssh(far4, "-i", own, "git.example", "git-upload-archive 'r.git'")...); err == nil || strings.Contains(out, "Permission denied") {
		t.Errorf("with it: %s, %v", out, err) // upstream ran it, and it failed: the repository is empty
	}
	// A rotation ends what carries the old key, and the new one is used from then on.
	s.binds(3, firstKey, f.projection(""))
	cmd, out := s.command(far4, s.ssh(far4, "git.example", "git-receive-pack 'r.git'")...)
	stdin, err := cmd.StdinPipe()
	w.must(err)
	defer stdin.Close()
	before, _ := f.all()
	w.must(in(s.ns, cmd.Start))
	w.eventually("it runs", func() error {
		if ran, _ := f.all(); len(ran) == len(before) {
			return fmt.Errorf("%q", ran)
		}
		return nil
	})
	f.allows(second.PublicKey())
	s.binds(4, secondKey, f.projection(""))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("it ended well: %s", out)
		}
	case <-time.After(deadline):
		t.Error("it still runs")
	}
	if out, err := s.run(far4, "git", "ls-remote", "git.example:r.git"); err != nil {
		t.Errorf("with the new key: %s, %v", out, err)
	}
}
