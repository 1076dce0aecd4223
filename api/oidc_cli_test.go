package api_test

import (
	"bufio"
	"bytes"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/internal/s0test"
	"s0.run/internal/s0test/oidctest"
)

// s0Login is an `s0 auth login --mode device` that waits to be confirmed.
type s0Login struct {
	*osexec.Cmd
	home string
	out  bytes.Buffer
	page string        // where to confirm
	said chan struct{} // closed when it will say no more
}

// startS0 runs the real command line until it has said where to confirm.
func (o *oidcTest) startS0(binary string) *s0Login {
	o.t.Helper()
	home := o.t.TempDir()
	s := &s0Login{Cmd: osexec.Command(binary, "--api-url", o.url, "auth", "login", "--mode", "device"), home: home, said: make(chan struct{})}
	s.Env = append(os.Environ(), "HOME="+home)
	s.Stdout = &s.out
	stderr, err := s.StderrPipe()
	if err != nil {
		o.t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = s.Process.Kill() }) // it may have ended
	page := make(chan string, 1)
	go func() {
		defer close(s.said)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if line := strings.TrimSpace(lines.Text()); strings.Contains(line, "user_code=") {
				page <- line
			}
		}
	}()
	select {
	case s.page = <-page:
	case <-s.said:
		o.t.Fatal("s0 ended without saying where to confirm")
	}
	return s
}

func (s *s0Login) finish() error {
	<-s.said
	return s.Wait()
}

func (s *s0Login) config() string {
	b, _ := os.ReadFile(filepath.Join(s.home, ".s0", "config.yaml")) // there may be none
	return string(b)
}

// TestOIDC_CommandLine signs in with the real s0 on a device without a browser.
func TestOIDC_CommandLine(t *testing.T) {
	t.Parallel()
	p := oidctest.Start(t, publicURL+"/auth/oidc/corp/callback", accounts)
	o := &oidcTest{instance: start(t, oidcFile(t, p)), provider: p}
	binary := filepath.Join(t.TempDir(), "s0")
	build := osexec.Command("go", "build", "-o", binary, "./cmd/s0")
	build.Dir = s0test.ModuleRoot(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building s0: %v\n%s", err, out)
	}

	interrupted := o.startS0(binary)
	if err := interrupted.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := interrupted.finish(); interrupted.ProcessState.ExitCode() != 1 || interrupted.config() != "" {
		t.Errorf("interrupted: %v, and kept %q", err, interrupted.config())
	}

	s := o.startS0(binary)
	oidctest.NewBrowser(t).Go(s.page, oidctest.As("alice"), publicURL)
	if err := s.finish(); err != nil || !strings.Contains(s.out.String(), "as alice@example.com") {
		t.Fatalf("s0 auth login: %v\n%s", err, &s.out)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := osexec.Command(binary, args...)
		cmd.Env = s.Env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("s0 %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if who := run("user", "get"); !strings.Contains(who, "alice@example.com") {
		t.Errorf("s0 user get: %s", who)
	}
	run("auth", "logout")
	if kept := s.config(); strings.Contains(kept, "eyJ") || strings.Contains(kept, "refresh-token") {
		t.Errorf("after the logout it keeps %s", kept)
	}
	if n := o.count("SELECT count(*) FROM refresh_tokens"); n != 0 {
		t.Errorf("after the logout there are %d refresh tokens", n)
	}
}
