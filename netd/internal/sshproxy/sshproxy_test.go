package sshproxy

import (
	"crypto/ed25519"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestOnlyGitsCommandsAreUnderstood(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`git-upload-pack 'team/repo.git'`:                `git-upload-pack 'team/repo.git'`,
		`git-receive-pack '/srv/a b.git'`:                `git-receive-pack '/srv/a b.git'`,
		`git upload-pack 'r'`:                            `git-upload-pack 'r'`,
		`git-upload-archive 'it'\''s'`:                   `git-upload-archive 'it'\''s'`,
		`git-upload-pack 'wow'\!''`:                      `git-upload-pack 'wow'\!''`,
		`git-upload-pack '$(id);` + "`id`" + `&&|\ "'`:   `git-upload-pack '$(id);` + "`id`" + `&&|\ "'`, // one word, whatever is in it
		`git-upload-pack 'a';id`:                         "",
		`git-upload-pack 'a' 'b'`:                        "",
		`git-upload-pack 'a'$(id)`:                       "",
		`git-upload-pack a`:                              "",
		`git-upload-pack '--upload-pack=id'`:             "",
		`git-upload-pack ''`:                             "",
		`git-upload-pack 'a`:                             "",
		"git-upload-pack 'a\nid'":                        "",
		`git-lfs-authenticate 'r' upload`:                "",
		`git-shell -c 'x'`:                               "",
		`/bin/sh`:                                        "",
		`bash -c 'git-upload-pack'`:                      "",
		``:                                               "",
		`git-upload-pack ` + strings.Repeat("'a'", 2000): "",
	} {
		command, err := ParseCommand(text)
		if (err == nil) != (want != "") || err == nil && command.String() != want {
			t.Errorf("%.60q: %q, %v", text, command, err)
		}
	}
}

// A shell reads what is written here as the one word that was understood.
func TestAShellReadsTheSame(t *testing.T) {
	t.Parallel()
	for _, repository := range []string{"a b", `it's`, `wow!'!`, "$(id) `id` \\ \"", "ü/ß", "'", "*"} {
		out, err := exec.Command("sh", "-c", strings.Replace(Command{"printf", repository}.String(), "printf", "printf '<%s>'", 1)).Output()
		if err != nil || string(out) != "<"+repository+">" {
			t.Errorf("%q: %s, %v", repository, out, err)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{`git-upload-pack 'a'`, `git receive-pack 'it'\''s'\!'x'`, `git-upload-pack 'a' b`, `'`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCommand(text)
		if err != nil {
			return
		}
		if again, err := ParseCommand(c.String()); err != nil || again != c {
			t.Errorf("%q is %+v, and that %+v, %v", text, c, again, err)
		}
		if strings.ContainsAny(c.Repository, "\x00\n\r") || strings.HasPrefix(c.Repository, "-") || !strings.HasPrefix(c.Program, "git-") {
			t.Errorf("%q is %+v", text, c)
		}
	})
}

func TestPinnedHosts(t *testing.T) {
	t.Parallel()
	key := func(n byte) string {
		line, err := HostKeyLine(ed25519.NewKeyFromSeed([]byte(strings.Repeat(string('a'+n), ed25519.SeedSize))))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	lines := []string{
		"git.example,[git.example]:2222 " + key(0),
		"*.forge.example,!bad.forge.example " + key(1),
		"192.0.2.7 " + key(2),
		"[2001:db8::7]:2222 " + key(3),
		"2001:db8::8 " + key(4),
	}
	for at, want := range map[string]int{
		"git.example 22": 0, "git.example 2222": 0, "git.example 2223": -1, "evil.example 22": -1, "gitXexample 22": -1,
		"a.forge.example 22": 1, "bad.forge.example 22": -1, "forge.example 22": -1, "a.forge.example 2222": -1,
		"192.0.2.7 22": 2, "2001:db8::7 2222": 3, "2001:db8::7 22": -1, "2001:db8::8 22": 4,
	} {
		var host string
		var port uint16
		if _, err := fmt.Sscan(at, &host, &port); err != nil {
			t.Fatal(err)
		}
		keys, err := hostKeys(lines, host, port)
		if err != nil {
			t.Fatal(err)
		}
		if want < 0 && len(keys) > 0 || want >= 0 && (len(keys) != 1 || !is(key(byte(want)), keys[0])) {
			t.Errorf("%s has %d keys", at, len(keys))
		}
		if want >= 0 && algorithms(keys)[0] != ssh.KeyAlgoED25519 {
			t.Errorf("%s is asked for a key of kind %v", at, algorithms(keys))
		}
	}
	for _, wrong := range []string{"@revoked git.example " + key(0), "@cert-authority * " + key(0), "git.example", "# nothing"} {
		if _, err := hostKeys([]string{lines[0], wrong}, "git.example", 22); err == nil {
			t.Errorf("%s: the lines are understood", wrong)
		}
	}
}
