package e2e_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/internal/s0test"
)

// impostor dials the sandbox's own channel again and again, and is anything but
// procd on it: silent, garbage, a server that talks HTTP/1, one that floods.
const impostor = `
import socket, itertools
for i in itertools.count():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(0.2)
    try:
        s.connect("/run/s0/node.sock")
        s.sendall([b"", b"\x00" * 4096, b"HTTP/1.1 200 OK\r\n\r\n", b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 5000][i % 4])
        s.recv(1 << 16)
    except OSError:
        pass
    s.close()
    if i == 400: break
print("done")
`

// testHostileInside: what a sandbox does to its channel and to the directory that
// it shares with the host reaches nobody else (B05, B14).
func testHostileInside(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	bad, neighbour := u.claim(), u.claim()
	repl := u.python(neighbour)

	onHost := filepath.Join(s.RunDir, "noded", "sandboxes", bad)
	before := modes(t, onHost)
	// What the sandbox's own kernel believes is its own; the host is what counts.
	u.run(bad, "mount", "-o", "remount,rw", "/run/s0")
	u.run(bad, "chmod", "-R", "777", "/run/s0")
	for _, command := range []string{
		"touch /run/s0/x", "ln -s /etc/shadow /run/s0/y", "mkdir /run/s0/z", "rm /run/s0/node.sock", "mv /run/s0/node.sock /run/s0/other",
		"echo x >> /run/s0/bin/procd",
	} {
		if res := u.run(bad, "sh", "-c", command); res.ExitCode == nil || *res.ExitCode == 0 {
			t.Errorf("%q succeeds inside: %+v", command, res)
		}
	}
	if after := modes(t, onHost); !maps.Equal(before, after) {
		t.Errorf("on the host the sandbox's directory was %v, is %v", before, after)
	}

	u.write(bad, "impostor.py", impostor)
	u.start(bad, "python3", "/workspace/impostor.py")
	for range 30 {
		u.wantExec(neighbour, repl, "print(6 * 7)", "42")
	}
	if res := u.run(neighbour, "sh", "-c", "tr '\\0' '\\n' < /proc/1/environ; cat /proc/1/cmdline"); res.Stdout != nil && strings.Contains(*res.Stdout, bad) {
		t.Errorf("a sandbox knows of another: %q", *res.Stdout)
	}
	u.awaitAnswer(bad) // procd has its channel again
	u.remove(bad)
	u.wantExec(neighbour, repl, "print(6 * 7)", "42")
}

// modes lists what is in a directory, the directory itself included.
func modes(t *testing.T, dir string) map[string]os.FileMode {
	t.Helper()
	all := map[string]os.FileMode{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err == nil {
			all[path] = info.Mode()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
