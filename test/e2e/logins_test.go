package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/forge"
)

// testLogins: credentials of connections. git over SSH, and a SOCKS5 proxy's.
func testLogins(t *testing.T, s *s0test.Stack, w *internet, o *origin) {
	t.Run("git over SSH", func(t *testing.T) { testGitOverSSH(t, s, w) })
	t.Run("a proxy", func(t *testing.T) { testEgressProxy(t, s, w, o) })
}

// F05, F10, E01 over SSH: git works in a sandbox, its key is not there, and nothing but git
// does.
func testGitOverSSH(t *testing.T, s *s0test.Stack, w *internet) {
	f := forge.New(t)
	f.Repository("team.git")
	for _, a := range []netip.Addr{w.near, w.near6} {
		go f.Serve(listenIn(t, w.ns, netip.AddrPortFrom(a, 22).String()))
	}
	key, text := forge.NewKey(t)
	f.Allow(key.PublicKey())
	u := newUser(t, s)
	u.source("deploy", client.CredentialResolverKindStaticSSHPrivateKey, client.CredentialSourceSpec{StaticSSHPrivateKey: &client.StaticSSHPrivateKeySource{PrivateKeyPem: text}})
	id := u.claimWith(fmt.Sprintf(`{"mode":"block-all","egress":{"allowedDomains":["git.test"],"allowedCidrs":["%s/32","%s/128"],
		"credentialRules":[{"credentialRef":"deploy","protocol":"ssh","domains":["git.test"]}]},
		"credentialBindings":[{"ref":"deploy","sourceRef":"deploy","projection":{"type":"ssh_proxy","sshProxy":{"upstreamUsername":"git","knownHosts":["git.test %s"]}}}]}`,
		w.near, w.near6, forge.Line(f.HostKey())))
	out := u.sh(id, `set -e; export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@a
git clone -q git@git.test:team.git /tmp/team; cd /tmp/team; echo from inside >file; git add file; git commit -qm one; git push -q origin HEAD:main; echo pushed
export GIT_SSH_COMMAND="$GIT_SSH_COMMAND -6"; git ls-remote origin; rm -rf /tmp/again; git clone -q -b main git@git.test:team.git /tmp/again; cat /tmp/again/file`)
	if !strings.Contains(out, "pushed") || !strings.Contains(out, "refs/heads/main") || !strings.Contains(out, "from inside") {
		t.Errorf("git in a sandbox: %s", out)
	}
	ran, _ := f.Seen()
	options := `-o GlobalKnownHostsFile=/run/s0/ssh_known_hosts -o BatchMode=yes`
	out = u.sh(id, `ssh `+options+` git@git.test id || echo command $?; ssh `+options+` -W 127.0.0.1:22 git@git.test </dev/null || echo forward $?
grep -rsl 'PRIVATE KEY' /run/s0 /tmp /root /home /workspace; env; ls -l /run/s0`)
	if after, tries := f.Seen(); len(ran) == 0 || !slices.Equal(ran, after) || tries != 0 || !strings.Contains(out, "command 255") || !strings.Contains(out, "forward") || strings.Contains(out, "uid=") {
		t.Errorf("what is not git: the server ran %q after %q; the sandbox got %s", after, ran, out)
	}
}

// The credential of a proxy never meets the sandbox, whose connections all go through it.
func testEgressProxy(t *testing.T, s *s0test.Stack, w *internet, o *origin) {
	p := &socks{w: w}
	go p.serve(listenIn(t, w.ns, netip.AddrPortFrom(w.near, 1080).String()))
	u := newUser(t, s)
	u.source("proxy", client.CredentialResolverKindStaticUsernamePassword, client.CredentialSourceSpec{
		StaticUsernamePassword: &client.StaticUsernamePasswordSource{Username: "team", Password: firstToken},
	})
	id := u.claimWith(fmt.Sprintf(`{"mode":"block-all","egress":{"allowedDomains":["*.test"],"allowedCidrs":["%s/32","%s/128"],
		"proxy":{"type":"socks5","address":"%s:1080","credentialRef":"p"}},
		"credentialBindings":[{"ref":"p","sourceRef":"proxy","projection":{"type":"username_password","usernamePassword":{}}}]}`, w.near, w.near6, w.near))
	out := u.sh(id, `curl -sS -k https://plain.test/proxied; env`)
	if got := o.got("/proxied"); len(got) != 1 || !strings.Contains(out, "answered plain.test") || strings.Contains(out, firstToken) {
		t.Errorf("over the proxy: %+v; %s", got, out)
	}
	if logins := p.all(); !slices.Contains(logins, "team:"+firstToken) || len(slices.Compact(logins)) != 1 {
		t.Errorf("the proxy saw %q", logins)
	}
}

// socks is a SOCKS5 proxy in the internet that wants a login (RFC 1928 and 1929).
type socks struct {
	w *internet

	mu     sync.Mutex
	logins []string
}

func (p *socks) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.logins)
}

func (p *socks) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = p.connection(c) // whoever connected sees it
		}()
	}
}

func (p *socks) connection(c net.Conn) error {
	field := func() (string, error) { // a byte says its length
		n := make([]byte, 1)
		if _, err := io.ReadFull(c, n); err != nil {
			return "", err
		}
		b := make([]byte, n[0])
		_, err := io.ReadFull(c, b)
		return string(b), err
	}
	version := make([]byte, 1)
	read := func() error { _, err := io.ReadFull(c, version); return err }
	if err := read(); err != nil {
		return err
	}
	methods, err := field()
	if err != nil || !strings.Contains(methods, "\x02") {
		return errors.New("no login is offered")
	}
	if _, err := c.Write([]byte{5, 2}); err != nil {
		return err
	}
	if err := read(); err != nil {
		return err
	}
	user, err1 := field()
	pass, err2 := field()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	p.mu.Lock()
	p.logins = append(p.logins, user+":"+pass)
	p.mu.Unlock()
	if _, err := c.Write([]byte{1, 0}); err != nil {
		return err
	}
	return p.pass(c)
}

// pass connects to an address and copies both ways.
func (p *socks) pass(c net.Conn) error {
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	addr := make([]byte, map[byte]int{1: 4, 4: 16}[head[3]]+2)
	if _, err := io.ReadFull(c, addr); err != nil {
		return err
	}
	ip, ok := netip.AddrFromSlice(addr[:len(addr)-2])
	if !ok {
		return errors.New("a name")
	}
	var up net.Conn
	err := inNamespace(p.w.ns, func() (err error) {
		up, err = net.Dial("tcp", netip.AddrPortFrom(ip, binary.BigEndian.Uint16(addr[len(addr)-2:])).String())
		return err
	})
	if err != nil {
		return err
	}
	defer up.Close()
	if _, err := c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(up, c)
		up.Close()
	}()
	_, err = io.Copy(c, up)
	return err
}
