package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

func isStatus(err error, status int) bool {
	var e *client.APIError
	return errors.As(err, &e) && e.StatusCode == status
}

// TestMachine is one life of a small machine: used, restarted, hurt, and left as
// it was found.
func TestMachine(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 2})
	t.Run("demo", func(t *testing.T) { testDemo(t, s) })
	t.Run("sandbox", func(t *testing.T) { testSandbox(t, s) })
	t.Run("TestA01_Tenants", func(t *testing.T) { testTenants(t, s) })
	t.Run("REPLs", func(t *testing.T) { testREPLs(t, s) })
	t.Run("TestB05_B14_HostileInside", func(t *testing.T) { testHostileInside(t, s) })
	t.Run("bad input", func(t *testing.T) { testBadInput(t, s) })
	t.Run("TestX42_MemoryPressure", func(t *testing.T) { testMemoryPressure(t, s) })
	t.Run("restarts", func(t *testing.T) { testRestarts(t, s) })
	t.Run("dead sandbox", func(t *testing.T) { testDeadSandbox(t, s) })
	t.Run("reboot", func(t *testing.T) { testReboot(t, s) })
	wantNoSandbox(s)
}

// wantNoSandbox ends a test of tests that each delete their own: nothing of them is left.
func wantNoSandbox(s *s0test.Stack) {
	s.Eventually("every sandbox to be gone", func() error {
		if left := s.Sandboxes(); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	s.CheckOwned()
}

// testDemo runs what `make demo` runs.
func testDemo(t *testing.T, s *s0test.Stack) {
	cmd := exec.Command("go", "run", "./hack/demo", "-api", s.URL, "-key-file", filepath.Join(s.DataDir, "admin.key"))
	cmd.Dir = s0test.ModuleRoot(t)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the demo: %v\n%s", err, out)
	}
	for _, want := range []string{"claimed ", " ms", "  42\n", "/workspace", "read it back: hello", "deleted "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}
}

func testSandbox(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()

	repl := u.python(id)
	u.exec(id, repl, "x = 41")
	u.wantExec(id, repl, "print(x + 1)", "42")

	res := u.run(id, "sh", "-c", "echo out; echo err >&2; exit 7")
	if res.ExitCode == nil || *res.ExitCode != 7 || res.Stdout == nil || *res.Stdout != "out\n" || res.Stderr == nil || *res.Stderr != "err\n" {
		t.Errorf("a command with output on both streams and exit code 7 left %+v", res)
	}
	if res := u.run(id, "dmesg"); res.Stdout == nil || !strings.Contains(*res.Stdout, "gVisor") {
		t.Errorf("dmesg does not tell of gVisor: %+v", res)
	}

	u.write(id, "notes/a.txt", "kept")
	if got := u.read(id, "/workspace/notes/a.txt"); got != "kept" {
		t.Errorf("the file holds %q", got)
	}

	list, err := u.c.ListSandboxes(u.ctx(), client.ListSandboxesOptions{Status: "running"})
	must(u, "listing", list, err)
	if !slices.ContainsFunc(list.Sandboxes, func(sb client.SandboxSummary) bool { return sb.ID == id }) {
		t.Errorf("the list of running sandboxes lacks %s", id)
	}

	u.remove(id)
	if _, err := u.c.GetSandbox(u.ctx(), id); !isStatus(err, 404) {
		t.Errorf("getting a deleted sandbox: %v, want 404", err)
	}
}

// testRestarts: sandboxes and the interpreters in them live through every
// restart and crash of what is around them (R1, R3).
func testRestarts(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	repl := u.python(id)
	u.exec(id, repl, "x = 41")
	answers := func(after string) {
		t.Helper()
		s.Eventually("the sandbox to answer after "+after, func() error {
			res, err := u.c.ExecContext(u.ctx(), id, repl, "print(x + 1)")
			if err == nil && printed(res.OutputRaw, "print(x + 1)") != "42" {
				t.Fatalf("after %s Python answers %q", after, res.OutputRaw)
			}
			return err
		})
		var fresh string // and new ones can be had, once what was killed is back
		s.Eventually("a claim after "+after, func() error {
			sb, err := u.c.CreateSandbox(u.ctx(), client.ClaimRequest{Template: "default"})
			if err == nil {
				fresh = sb.SandboxID
			} else if !isStatus(err, 503) && !isStatus(err, 429) {
				t.Fatalf("claiming after %s: %v, want a sandbox or to be told to wait", after, err)
			}
			return err
		})
		u.wantExec(fresh, u.python(fresh), "print('new')", "new")
		u.remove(fresh)
	}

	// Each slot and sandbox of before is there after, none made anew in its place.
	survives := func(name, what string, happen func()) {
		t.Run(name, func(t *testing.T) {
			s.CheckOwned() // quiet: the pool is full
			before, err := s.Live()
			if err != nil {
				t.Fatal(err)
			}
			happen()
			s.Eventually("all of before to be there after "+what, func() error {
				now, err := s.Live()
				for id, was := range before {
					if err == nil && now[id] != was {
						err = fmt.Errorf("%s %s is %q", was, id, now[id])
					}
				}
				return err
			})
			answers(what)
		})
	}
	survives("orderly stop and start", "a restart of s0d", func() {
		s.Down(true)
		s.Up()
	})
	survives("TestX25_KillServer", "kill -9 of s0d", func() {
		s.Kill()
		s.Up()
	})
	survives("TestX28_KillContainerd", "kill -9 of containerd", func() { s.KillChild("containerd") })
	survives("TestX34_KillPostgreSQL", "kill -9 of PostgreSQL", func() { s.KillChild("PostgreSQL") })

	u.remove(id)
	s.CheckOwned()
}

// testDeadSandbox: what dies is shown as dead, never as running (R6), and
// everything of it goes.
func testDeadSandbox(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	pids := s.Pids("sentry", id)
	if len(pids) == 0 {
		t.Fatalf("no sentry of %s was found", id)
	}
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	s.Eventually("the sandbox to be shown as failed", func() error {
		sb, err := u.c.GetSandbox(u.ctx(), id)
		if err == nil && sb.Status != "failed" {
			return errors.New("its status is " + string(sb.Status))
		}
		return err
	})
	u.remove(id)
	s.CheckOwned()
}

// testReboot: after a boot nothing of the old sandboxes runs; they are shown as
// dead, their files go, and new ones can be had.
func testReboot(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	s.Reboot()
	s.Up()
	fresh := u.claim()
	u.wantExec(fresh, u.python(fresh), "print('new')", "new")
	s.Eventually("the old sandbox to be shown as failed", func() error {
		sb, err := u.c.GetSandbox(u.ctx(), id)
		if err == nil && sb.Status != "failed" {
			return errors.New("its status is " + string(sb.Status))
		}
		return err
	})
	u.remove(fresh)
	u.remove(id)
	s.CheckOwned()
}
