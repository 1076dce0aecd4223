package stdio

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func fifo(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// client opens the other end of a FIFO the way containerd's client does.
func client(t *testing.T, path string, mode int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return f
}

func run(t *testing.T, s *Stdio, tty bool, script string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	if s.In != nil {
		cmd.Stdin = s.In
	}
	if s.Out != nil {
		cmd.Stdout = s.Out
	}
	if s.Err != nil {
		cmd.Stderr = s.Err
	}
	if tty {
		cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.Started()
	go func() { _ = cmd.Wait(); s.Close() }()
}

func TestFIFOs(t *testing.T) {
	t.Parallel()
	in, out, errs := fifo(t, "in"), fifo(t, "out"), fifo(t, "err")
	s, err := Open(Paths{In: in, Out: out, Err: errs})
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := client(t, out, os.O_RDONLY), client(t, errs, os.O_RDONLY)
	stdin := client(t, in, os.O_WRONLY)
	run(t, s, false, "cat; echo bad >&2")

	if _, err := io.WriteString(stdin, "one\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "one\n" {
		t.Fatalf("read %q, %v", line, err)
	}
	stdin.Close() // not the end: the client may come back
	stdin = client(t, in, os.O_WRONLY)
	if _, err := io.WriteString(stdin, "two"); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	s.CloseStdin()
	for want, f := range map[string]*os.File{"two": stdout, "bad\n": stderr} {
		if got, err := io.ReadAll(f); err != nil || string(got) != want {
			t.Errorf("read %q, %v; want %q and EOF", got, err, want)
		}
	}
}

func TestFileURI(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "log")
	for range 2 { // it appends
		s, err := Open(Paths{Out: "file://" + path, Err: "file://" + path})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", "-c", "echo a; echo b >&2")
		cmd.Stdout, cmd.Stderr = s.Out, s.Err
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != "a\nb\na\nb\n" {
		t.Errorf("file has %q, %v", got, err)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	in, out := fifo(t, "in"), fifo(t, "out")
	s, err := Open(Paths{In: in, Out: out, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	stdout, stdin := client(t, out, os.O_RDONLY), client(t, in, os.O_WRONLY)
	if err := s.Resize(33, 44); err != nil {
		t.Fatal(err)
	}
	run(t, s, true, "stty size; read x; echo got $x")
	if _, err := io.WriteString(stdin, "word\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"33 44", "got word"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("terminal printed %q, want %q in it", got, want)
		}
	}
}

func TestB09_TerminalKeptByBackgroundChild(t *testing.T) {
	t.Parallel()
	out := fifo(t, "out")
	s, err := Open(Paths{Out: out, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	stdout := client(t, out, os.O_RDONLY)
	run(t, s, true, "echo x; trap '' HUP; sleep 1000 & echo $!")
	got, err := io.ReadAll(stdout) // ends drainTimeout after the process
	if err != nil || !strings.HasPrefix(string(got), "x") {
		t.Errorf("read %q, %v", got, err)
	}
	exec.Command("kill", strings.TrimSpace(strings.TrimPrefix(string(got), "x"))).Run()
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, p := range []Paths{{Out: "binary:///bin/sh"}, {In: "/no/such"}, {Out: "/no/such"}} {
		if s, err := Open(p); err == nil {
			s.Close()
			t.Errorf("Open(%+v) succeeded", p)
		}
	}
	s, err := Open(Paths{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Resize(1, 1); !errors.Is(err, ErrTerminal) {
		t.Errorf("Resize without a terminal: %v", err)
	}
}
