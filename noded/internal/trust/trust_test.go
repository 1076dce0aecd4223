package trust

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/policy"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

// node is a directory of slots on a machine that believes certain roots.
func node(t *testing.T, roots string) Dir {
	t.Helper()
	file := filepath.Join(t.TempDir(), "system.pem")
	if err := os.WriteFile(file, []byte(roots), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", file)
	d := Dir(filepath.Join(t.TempDir(), "sandboxes"))
	if err := os.Mkdir(string(d), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Prepare(); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d Dir) begin(t *testing.T) sandbox.ID {
	t.Helper()
	id, err := sandbox.NewID("t")
	if err == nil {
		err = os.Mkdir(filepath.Join(string(d), string(id)), 0o711)
	}
	if err == nil {
		err = d.Begin(id)
	}
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (d Dir) has(t *testing.T, id sandbox.ID, path string) string {
	t.Helper()
	info, err := os.Lstat(d.in(id, path))
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o444 {
		t.Fatalf("%s of %s: %v, %v", path, id, info, err)
	}
	b, err := os.ReadFile(d.in(id, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestF09_ASandboxBelievesItsOwnAndNoOther(t *testing.T) {
	d := node(t, "roots\n")
	one, two := d.begin(t), d.begin(t)
	if err := d.Believe(one, Identity{Certificate: "first\n"}, nil); err != nil {
		t.Fatal(err)
	}
	if got := d.has(t, one, procapi.CABundle); got != "first\nroots\n" {
		t.Errorf("its bundle is %q", got)
	}
	if got := d.has(t, two, procapi.CABundle); got != "roots\n" {
		t.Errorf("its neighbour's bundle is %q", got)
	}
	if err := d.Believe(one, Identity{Certificate: "second\n"}, nil); err != nil {
		t.Fatal(err)
	}
	if got := d.has(t, one, procapi.CABundle); got != "second\nroots\n" {
		t.Errorf("who answered before is still believed: %q", got)
	}
	if three := d.begin(t); d.has(t, three, procapi.CABundle) != "roots\n" {
		t.Error("a new slot believes somebody")
	}
	if _, err := os.Lstat(d.in(one, procapi.KnownHosts)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ssh believes somebody: %v", err)
	}
}

// A slot's directory holds what is named here and nothing else: it is emptied by name.
func TestNothingIsLeft(t *testing.T) {
	d := node(t, "roots\n")
	if err := os.WriteFile(filepath.Join(d.shared(), unfinished+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Prepare(); err != nil {
		t.Fatal(err)
	}
	id := d.begin(t)
	if err := d.Believe(id, Identity{"c", "ssh-ed25519 k\n"}, []policy.Server{{}}); err != nil {
		t.Fatal(err)
	}
	for _, path := range d.Paths(id) {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	if err := os.Remove(filepath.Join(string(d), string(id))); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(d.shared()); err != nil || len(entries) != 1 || entries[0].Name() != rootsFile {
		t.Errorf("there are %v, %v", entries, err)
	}
	// Whose directory is gone has nobody to believe anything.
	if err := d.Believe(id, Identity{Certificate: "c"}, nil); err != nil {
		t.Error(err)
	}
}

func TestSSHBelievesWhereARuleHasItAnswered(t *testing.T) {
	d := node(t, "")
	id := d.begin(t)
	servers := []policy.Server{
		{Domains: []string{"Git.example.", "*.forge.example"}, Ports: []policy.Port{{Port: 22}, {Port: 2222}}},
		{Domains: []string{"all.example"}},
		{Domains: []string{"range.example"}, Ports: []policy.Port{{Port: 1000, EndPort: 2000}}},
	}
	if err := d.Believe(id, Identity{"c", "ssh-ed25519 k\n"}, servers); err != nil {
		t.Fatal(err)
	}
	want := "git.example,[git.example]:2222,*.forge.example,[*.forge.example]:2222,forge.example,[forge.example]:2222 ssh-ed25519 k\n" +
		"all.example,[all.example]:* ssh-ed25519 k\n" +
		"range.example,[range.example]:* ssh-ed25519 k\n"
	if got := d.has(t, id, procapi.KnownHosts); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestAMachineThatBelievesNobody(t *testing.T) {
	d := node(t, "")
	t.Setenv("SSL_CERT_FILE", filepath.Join(t.TempDir(), "none"))
	if err := d.Prepare(); err != nil {
		t.Fatal(err)
	}
	id := d.begin(t)
	if err := d.Believe(id, Identity{Certificate: "c"}, nil); err != nil || d.has(t, id, procapi.CABundle) != "c" {
		t.Errorf("its sandbox: %v", err)
	}
	t.Setenv("SSL_CERT_FILE", filepath.Join(t.TempDir(), "large"))
	if err := os.WriteFile(os.Getenv("SSL_CERT_FILE"), bytes.Repeat([]byte("x"), maxRoots+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Prepare(); err == nil {
		t.Error("a bundle without end")
	}
}

func TestTheEnvironmentNamesWhatAPolicyNeeds(t *testing.T) {
	t.Parallel()
	const (
		binding = `"credentialBindings":[{"ref":"r","sourceRef":"s","projection":{"type":"http_headers"}}]`
		rule    = `{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"r",%s}]},` + binding + `}`
	)
	for text, want := range map[string]string{
		`{"mode":"allow-all"}`:                                                                                                      "",
		strings.Replace(rule, "%s", `"protocol":"https"`, 1):                                                                        "SSL_CERT_FILE",
		strings.Replace(rule, "%s", `"protocol":"http"`, 1):                                                                         "",
		strings.Replace(rule, "%s", `"protocol":"ssh"`, 1):                                                                          "GIT_SSH_COMMAND",
		strings.Replace(rule, "%s", `"protocol":"https","rollout":"disabled"`, 1):                                                   "",
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{}}]}}`:                                           "NODE_EXTRA_CA_CERTS",
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{},"tlsMode":"passthrough"}]}}`:                   "",
		`{"mode":"block-all","egress":{"allowedDomains":["x.example"],"trafficRules":[{"action":"allow","appProtocols":["ssh"]}]}}`: "",
	} {
		p, err := policy.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		env := Environment(p)
		if want == "" && len(env) > 0 || want != "" && env[want] == "" {
			t.Errorf("%s: %v, want %q", text, env, want)
		}
	}
}

// C10: what a sandbox sees of its bundle's file tells nothing of its neighbours.
func TestC10_ABundleTellsOfNoOtherSandbox(t *testing.T) {
	d := node(t, "roots\n")
	seen := func(id sandbox.ID) (st unix.Stat_t) {
		t.Helper()
		if err := unix.Lstat(d.in(id, procapi.CABundle), &st); err != nil {
			t.Fatal(err)
		}
		st.Atim = unix.Timespec{} // its own reading
		return st
	}
	one := d.begin(t)
	before := seen(one)
	other := d.begin(t)
	if err := d.Believe(other, Identity{Certificate: "c"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.in(d.begin(t), procapi.CABundle)); err != nil {
		t.Fatal(err)
	}
	if after := seen(one); before.Nlink != 1 || after != before {
		t.Errorf("its bundle was %+v and is %+v", before, after)
	}
}
