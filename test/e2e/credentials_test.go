package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// What must be found nowhere, and what must be found where memory is.
const (
	firstToken  = "canary-one-2c7e5d1fa9b04e66"
	secondToken = "canary-two-90b1c4d27f3e4a58"
	marker      = "marker-of-a-sandbox-6f1d0b"
	placeholder = "PLACEHOLDER-OF-A-KEY"
)

// sh runs a script to its end and returns what it printed.
func (u *user) sh(id, script string) string {
	u.t.Helper()
	c := u.run(id, "bash", "-c", script)
	out := ""
	for _, text := range []*string{c.Stdout, c.Stderr} {
		if text != nil {
			out += *text
		}
	}
	return out
}

func tokenSource(token string) client.CredentialSourceSpec {
	return client.CredentialSourceSpec{StaticHeaders: &client.StaticHeadersSource{Values: map[string]string{"token": token}}}
}

func (u *user) source(name string, kind client.CredentialResolverKind, spec client.CredentialSourceSpec) {
	u.t.Helper()
	_, err := u.c.CreateCredentialSource(u.ctx(), client.CredentialSourceWriteRequest{Name: name, ResolverKind: kind, Spec: spec})
	must(u, "creating the credential source "+name, name, err)
	u.t.Cleanup(func() {
		u.stack.Eventually("the source "+name+" to go", func() error {
			if err := u.c.DeleteCredentialSource(u.ctx(), name); !isStatus(err, 404) { // it may be gone, and its answer lost
				return err
			}
			return nil
		})
	})
}

const opened = `"tlsMode":"terminate-reoriginate"`

// credentialed is a policy with a credential of each kind that goes into TLS.
func (w *internet) credentialed() string {
	return fmt.Sprintf(`{"mode":"block-all","egress":{"allowedCidrs":["%s/32","%s/128"],"allowedDomains":["*.test"],"credentialRules":[
		{"name":"headers","credentialRef":"headers","protocol":"https",`+opened+`,"domains":["api.test"]},
		{"name":"placeholders","credentialRef":"placeholders","protocol":"https",`+opened+`,"domains":["keys.test"]},
		{"name":"certificate","credentialRef":"certificate","protocol":"tls",`+opened+`,"domains":["mtls.test"]}],
		"protocolRules":[{"name":"tools","protocol":"mcp","domains":["mcp.test"],"mcp":{"tools":{"allowed":["read"]}}}]},
		"credentialBindings":[
		{"ref":"headers","sourceRef":"token","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"Bearer {{ .token }}"}]}}},
		{"ref":"placeholders","sourceRef":"token","projection":{"type":"placeholder_substitution","placeholderSubstitution":{"replacements":[{"placeholder":"`+placeholder+`","valueTemplate":"{{ .token }}","locations":["header","body"]}]}}},
		{"ref":"certificate","sourceRef":"client","projection":{"type":"tls_client_certificate","tlsClientCertificate":{}}}]}`, w.near, w.near6)
}

// Credentials of real sandboxes: E05, E06, F01–F05, F10–F13.
func testCredentials(t *testing.T, s *s0test.Stack, w *internet, o *origin) {
	u := newUser(t, s)
	certificate, key := o.signer.client("the team's client")
	u.source("token", client.CredentialResolverKindStaticHeaders, tokenSource(firstToken))
	u.source("client", client.CredentialResolverKindStaticTLSClientCertificate, client.CredentialSourceSpec{
		StaticTLSClientCertificate: &client.StaticTLSClientCertificateSource{CertificatePem: certificate, PrivateKeyPem: key},
	})
	id := u.claimWith(w.credentialed())
	py := u.python(id)
	u.wantExec(id, py, "held = '"+marker[:10]+"' + '"+marker[10:]+"'", "")
	t.Run("F05: what leaves", func(t *testing.T) { (&user{t, s, u.c}).leaves(id, o) })
	t.Run("F01: and what does not", func(t *testing.T) { (&user{t, s, u.c}).doesNotLeave(id, w, o) })
	t.Run("F12: rotation", func(t *testing.T) { (&user{t, s, u.c}).rotates(id, o) })
	t.Run("F10: nothing of it is anywhere", func(t *testing.T) { (&user{t, s, u.c}).isNowhere(id, secretsOf(key)) })
}

// secretsOf are the texts that must not be found.
func secretsOf(key string) []string {
	return []string{firstToken, secondToken, strings.Split(key, "\n")[2]}
}

func (u *user) leaves(id string, o *origin) {
	out := u.sh(id, `curl -sS -4 https://api.test/four; curl -sS -6 https://api.test/six
python3 -c "import urllib.request; print(urllib.request.urlopen('https://api.test/python').read())"
node -e "fetch('https://api.test/node').then(r => r.text()).then(console.log)"
curl -sS -H 'Authorization: mine' -H 'authorization: twice' -H 'Connection: authorization' https://api.test/own
curl -sS --resolve api.test:443:9.9.9.9 https://api.test/elsewhere
curl -sS -H 'X-Key: `+placeholder+`' -d '{"key":"`+placeholder+`"}' https://keys.test/key
curl -sS https://mtls.test/certificate`)
	for _, path := range []string{"/four", "/six", "/python", "/node", "/own", "/elsewhere"} {
		got := o.got(path)
		if len(got) != 1 || !slices.Equal(got[0].Auth, []string{"Bearer " + firstToken}) || got[0].Host != "api.test" {
			u.t.Errorf("%s: the server got %+v; the sandbox %s", path, got, out)
		}
	}
	if got := o.got("/key"); len(got) != 1 || got[0].Key != firstToken || got[0].Body != `{"key":"`+firstToken+`"}` {
		u.t.Errorf("placeholders: %+v; %s", got, out)
	}
	if got := o.got("/certificate"); len(got) != 1 || got[0].Client != "the team's client" {
		u.t.Errorf("client certificate: %+v; %s", got, out)
	}
}

func (u *user) doesNotLeave(id string, w *internet, o *origin) {
	out := u.sh(id, `curl -sS -H 'X-Key: `+placeholder+`' https://other.test/unbound; echo
curl -sS -L https://api.test/redirect; echo
echo fronted $(curl -sS -o /dev/null -w '%{http_code}' -H 'Host: other.test' https://api.test/fronted)
echo pinned; curl -sS --cacert /etc/ssl/certs/ca-certificates.crt https://api.test/pinned; echo exit $?
echo nameless; curl -sS -k https://`+w.near.String()+`/nameless || echo exit again $?
echo tool $(curl -sS -H 'Content-Type: application/json' -d '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write"}}' https://mcp.test/mcp)
echo tool $(curl -sS -H 'Content-Type: application/json' -d '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"}}' https://mcp.test/mcp)
curl -sS https://api.test/reflect`)
	for _, c := range []struct {
		what string
		ok   bool
	}{
		{"F01: a placeholder leaves as it is where it is not bound", len(o.got("/unbound")) == 1 && o.got("/unbound")[0].Key == placeholder && o.got("/unbound")[0].Auth == nil},
		{"F03: a redirect takes nothing along", len(o.got("/stolen")) == 1 && o.got("/stolen")[0].Auth == nil},
		{"E05: another host on the connection", strings.Contains(out, "fronted 421") && o.got("/fronted") == nil},
		{"F13: who does not believe netd is not answered", strings.Contains(out, "exit 60") && o.got("/pinned") == nil},
		{"E08: TLS without a name", strings.Contains(out, "exit again") && o.got("/nameless") == nil},
		{"MCP: a tool that is not allowed", strings.Contains(out, `"error"`) && strings.Contains(out, `"result"`) && len(o.got("/mcp")) == 1},
		{"F02: what is reflected", len(o.got("/reflect")) == 1 && strings.Contains(out, "***") && !strings.Contains(out, firstToken)},
	} {
		if !c.ok {
			u.t.Errorf("%s: the sandbox got %s", c.what, out)
		}
	}
}

func (u *user) rotates(id string, o *origin) {
	began := time.Now()
	_, err := u.c.UpdateCredentialSource(u.ctx(), "token", client.CredentialSourceUpdateRequest{ResolverKind: client.CredentialResolverKindStaticHeaders, Spec: tokenSource(secondToken)})
	must(u, "rotating", id, err)
	tries := 0
	u.stack.Eventually("the new value", func() error {
		tries++
		path := fmt.Sprint("/rotated", tries)
		out := u.sh(id, "curl -sS https://api.test"+path)
		if got := o.got(path); len(got) != 1 || !slices.Equal(got[0].Auth, []string{"Bearer " + secondToken}) {
			return fmt.Errorf("it carried %+v; %s", got, out)
		}
		return nil
	})
	u.t.Logf("the new value was carried %v after it was told", time.Since(began))
}

// isNowhere looks for secrets inside the sandbox, in the API's answers, and in all that the
// machine keeps: logs, database, journal, and the memory of the paused sandbox.
func (u *user) isNowhere(id string, secrets []string) {
	inside := u.sh(id, `env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\0' '\n'; cat /run/s0/ca-bundle.pem /run/s0/instance; ls -l /run/s0
grep -rslE 'canary-(one|two)-' /etc /home /root /run /tmp /var /workspace`)
	network, err := u.c.SandboxNetwork(u.ctx(), id)
	must(u, "the network of "+id, network, err)
	sources, err := u.c.ListCredentialSources(u.ctx())
	must(u, "the sources", sources, err)
	answers, err := json.Marshal([]any{network, sources, u.status(id)})
	must(u, "answers", answers, err)
	for _, secret := range append(secrets, "PRIVATE KEY") {
		if strings.Contains(inside, secret) || strings.Contains(string(answers), secret) {
			u.t.Errorf("%q is inside, or answered:\n%s\n%s", secret, inside, answers)
		}
	}
	u.stack.Eventually("a pause", func() error { _, err := u.c.PauseSandbox(u.ctx(), id); return err })
	found := map[string][]string{}
	for _, dir := range []string{u.stack.DataDir, u.stack.RunDir, filepath.Join(u.stack.Root, "output")} {
		if err := search(dir, append(secrets, marker), found); err != nil {
			u.t.Fatal(err)
		}
	}
	if !slices.ContainsFunc(found[marker], func(path string) bool { return strings.Contains(path, id) }) {
		u.t.Errorf("what the sandbox had in memory was found in %q, and not in its image: this search finds nothing", found[marker])
	}
	for _, secret := range secrets {
		if len(found[secret]) > 0 {
			u.t.Errorf("%.12s… is in %q", secret, found[secret])
		}
	}
	u.stack.Eventually("a resume", func() error { _, err := u.c.ResumeSandbox(u.ctx(), id); return err })
	if out := u.sh(id, "curl -sS https://api.test/resumed"); !strings.Contains(out, "answered api.test") {
		u.t.Errorf("after the resume: %s", out)
	}
}

// search adds where texts are found below a directory; images of containers, which are the
// same as before, are left out, and the mount of JuiceFS, whose log of accesses never ends.
func search(dir string, texts []string, found map[string][]string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has gone meanwhile
		}
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "containerd" || d.Name() == "registry" || d.Name() == "netns" || d.Name() == "bpf" || d.Name() == "jfs") {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil //nolint:nilerr // it has gone meanwhile
		}
		defer f.Close()
		err = within(f, texts, func(text string) {
			if !slices.Contains(found[text], path) {
				found[text] = append(found[text], path)
			}
		})
		if errors.Is(err, syscall.EINVAL) {
			return nil // a namespace that is mounted there
		}
		return err
	})
}

// within tells which texts a file has, holes and all.
func within(r io.Reader, texts []string, tell func(string)) error {
	const overlap = 256
	buf := make([]byte, overlap+4<<20)
	kept := 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		for _, text := range texts {
			if bytes.Contains(buf[:kept+n], []byte(text)) {
				tell(text)
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return err
		}
		kept = copy(buf, buf[kept+n-overlap:kept+n])
	}
}

// testTrust: F08, F09, F13 over a sandbox's whole life: whom it believes when its policy
// comes later, after a pause, after netd's death, and in a fork.
func testTrust(t *testing.T, s *s0test.Stack, w *internet, o *origin) {
	u := newUser(t, s)
	u.source("trust", client.CredentialResolverKindStaticHeaders, tokenSource(firstToken))
	policy := fmt.Sprintf(`{"mode":"block-all","egress":{"allowedCidrs":["%s/32","%s/128"],"allowedDomains":["*.test"],"credentialRules":[
		{"credentialRef":"r","protocol":"https",`+opened+`,"domains":["api.test"]}]},"credentialBindings":[
		{"ref":"r","sourceRef":"trust","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"{{ .token }}"}]}}}]}`, w.near, w.near6)
	id := u.claim()
	if out := u.sh(id, "env; ls -l /run/s0"); strings.Contains(out, "SSL_CERT_FILE") || !strings.Contains(out, "ca-bundle.pem") {
		t.Errorf("without a policy: %s", out)
	}
	u.setNetwork(id, policy)
	py := u.python(id)
	u.exec(id, py, "import ssl, urllib.request; ctx = ssl.create_default_context()") // reads the bundle now and never again
	const asks = "print(urllib.request.urlopen('https://api.test/held', context=ctx).read().decode())"
	answered := func(when, of string) {
		t.Helper()
		s.Eventually("answers "+when, func() error {
			if out := u.sh(of, "curl -sS https://api.test/trust; echo; curl -sS -6 https://api.test/trust"); strings.Count(out, "answered api.test") != 2 {
				return fmt.Errorf("curl got %s", out)
			}
			return nil
		})
		u.wantExec(of, py, asks, "answered api.test")
	}
	answered("after a change of the policy", id)
	if out := u.sh(id, `echo x >/run/s0/ca-bundle.pem; rm -f /run/s0/ca-bundle.pem; mv /run/s0/instance /run/s0/x
python3 -c "import os; os.setuid(65534); import urllib.request; print(urllib.request.urlopen('https://api.test/nobody').read())"`); strings.Count(out, "Read-only file system") != 3 || !strings.Contains(out, "answered api.test") {
		t.Errorf("who is root, and who is nobody: %s", out)
	}
	s.Eventually("a pause", func() error { _, err := u.c.PauseSandbox(u.ctx(), id); return err })
	s.Eventually("a resume", func() error { _, err := u.c.ResumeSandbox(u.ctx(), id); return err })
	answered("after a pause", id)
	status, err := s.Status(u.ctx())
	must(u, "status", status, err)
	if err := syscall.Kill(status.Children["netd"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	answered("after netd's death", id)
	u.wantForkToBelieve(id)
}

// wantForkToBelieve: a child has an authority of its own, and its parent's answers it never.
func (u *user) wantForkToBelieve(id string) {
	u.t.Helper()
	u.sh(id, "cp /run/s0/ca-bundle.pem /tmp/parents.pem")
	memory := true
	child := u.fork(id, client.ForkRequest{Config: &client.ForkConfig{Memory: &memory}})[0]
	u.resumeAll([]string{child})
	u.stack.Eventually("the child to be answered", func() error {
		out := u.sh(child, `curl -sS https://api.test/child; curl -sS --cacert /tmp/parents.pem https://api.test/child; echo exit $?
cmp -s /tmp/parents.pem /run/s0/ca-bundle.pem || echo differs`)
		if strings.Count(out, "answered api.test") != 1 || !strings.Contains(out, "exit 60") || !strings.Contains(out, "differs") {
			return errors.New(out)
		}
		return nil
	})
}
