package netd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/crypto/ssh"

	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/s0test/forge"
	"s0.run/internal/sealed"
)

// newForge makes an SSH server of git.example.
func newForge(w *web) *forge.Forge {
	f := forge.New(w.t)
	for _, at := range []string{net.JoinHostPort(far4, "22"), net.JoinHostPort(far6, "22")} {
		w.must(in(w.beyond, func() error {
			l, err := net.Listen("tcp", at)
			if err != nil {
				return err
			}
			w.t.Cleanup(func() { l.Close() })
			go f.Serve(l)
			return nil
		}))
	}
	return f
}

// shell is a sandbox with an SSH client.
type shell struct {
	*box
	w     *web
	known string
	dir   string
}

const sshPolicy = `{"mode":"block-all","egress":{"allowedDomains":["git.example"],
	"credentialRules":[{"name":"code","credentialRef":"key","protocol":"ssh","domains":["git.example"]}]},
	"credentialBindings":[{"ref":"key","sourceRef":"src","projection":{"type":"ssh_proxy","sshProxy":%s}}]}`

func (w *web) shell() *shell {
	w.t.Helper()
	s := &shell{box: w.sandbox(), w: w, dir: w.t.TempDir()}
	s.known = filepath.Join(s.dir, "known")
	ca, err := w.client.CA(w.t.Context(), s.slot.ID)
	w.must(err)
	w.must(os.WriteFile(s.known, []byte("git.example "+ca.SSHHost), 0o600))
	return s
}

// binds gives the sandbox a version of the key.
func (s *shell) binds(version int64, key, projection string) {
	w := s.w
	w.t.Helper()
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

func projection(host ssh.PublicKey, extra string) string {
	return fmt.Sprintf(`{"upstreamUsername":"git","knownHosts":["git.example %s"]%s}`, forge.Line(host), extra)
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
	cmd := exec.CommandContext(s.w.t.Context(), args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, out, out
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_SSH_COMMAND="+strings.Join(s.ssh(addr), " "), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@a")
	return cmd, out
}

func (s *shell) run(addr string, args ...string) (string, error) {
	s.w.t.Helper()
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
	signer, key := forge.NewKey(t)
	f.Allow(signer.PublicKey())
	f.Repository("team repo.git")
	s := w.shell()
	s.binds(1, key, projection(f.HostKey(), ""))
	for i, addr := range []string{far4, far6} {
		script := fmt.Sprintf(`set -e; git clone -q 'git.example:team repo.git' %[1]d; cd %[1]d; echo %[1]d >f%[1]d; git add .; git commit -qm %[1]d; git push -q origin HEAD:refs/heads/b%[1]d; git ls-remote -q`, i)
		if out, err := s.run(addr, "sh", "-c", script); err != nil || !strings.Contains(out, fmt.Sprint("refs/heads/b", i)) {
			t.Fatalf("over %s: %s, %v", addr, out, err)
		}
	}
	ran, _ := f.Seen()
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
	if after, tries := f.Seen(); len(after) != len(ran) || tries != 0 {
		t.Errorf("upstream ran %q, and was tried %d times", after[len(ran):], tries)
	}
}

func TestF04_F12_AnSSHKeyIsForItsServerAlone(t *testing.T) {
	w := newWeb(t)
	f := newForge(w)
	first, firstKey := forge.NewKey(t)
	second, secondKey := forge.NewKey(t)
	stranger, strangerKey := forge.NewKey(t)
	f.Allow(first.PublicKey())
	f.Repository("r.git")
	s := w.shell()
	// A server that is another than knownHosts says is never shown the key.
	s.binds(1, strangerKey, projection(stranger.PublicKey(), ""))
	if out, err := s.run(far4, "git", "ls-remote", "git.example:r.git"); err == nil || !strings.Contains(out, "s0: git.example") {
		t.Errorf("another server: %s, %v", out, err)
	}
	if ran, tries := f.Seen(); len(ran) != 0 || tries != 0 {
		t.Errorf("it ran %q, and was tried %d times", ran, tries)
	}
	// Where the binding names keys, the sandbox has to have one.
	own := filepath.Join(s.dir, "own")
	ownSigner, ownKey := forge.NewKey(t)
	w.must(os.WriteFile(own, []byte(ownKey), 0o600))
	s.binds(2, firstKey, projection(f.HostKey(), fmt.Sprintf(`,"sandboxPublicKeys":[%q]`, forge.Line(ownSigner.PublicKey()))))
	if out, err := s.run(far4, "git", "ls-remote", "git.example:r.git"); err == nil {
		t.Errorf("without its own key: %s", out)
	}
	if out, err := s.run(far4, s.ssh(far4, "-i", own, "git.example", "git-upload-archive 'r.git'")...); err == nil || strings.Contains(out, "Permission denied") {
		t.Errorf("with it: %s, %v", out, err) // upstream ran it, and it failed: the repository is empty
	}
	// A rotation ends what carries the old key, and the new one is used from then on.
	s.binds(3, firstKey, projection(f.HostKey(), ""))
	cmd, out := s.command(far4, s.ssh(far4, "git.example", "git-receive-pack 'r.git'")...)
	stdin, err := cmd.StdinPipe()
	w.must(err)
	defer stdin.Close()
	before, _ := f.Seen()
	w.must(in(s.ns, cmd.Start))
	w.eventually("it runs", func() error {
		if ran, _ := f.Seen(); len(ran) == len(before) {
			return fmt.Errorf("%q", ran)
		}
		return nil
	})
	f.Allow(second.PublicKey())
	s.binds(4, secondKey, projection(f.HostKey(), ""))
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
