package e2e_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"s0.run/internal/s0test"
)

// TestServerCommands is what a person does with s0d: up, up again, doctor, down,
// a crash, reset.
func TestServerCommands(t *testing.T) {
	s := s0test.Prepare(t, s0test.Options{Pool: 1})
	wants := func(command string, args []string, wants ...string) {
		t.Helper()
		out, err := s.S0D(command, args...)
		if err != nil {
			t.Errorf("s0d %s: %v", command, err)
		}
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("s0d %s does not say %q:\n%s", command, want, out)
			}
		}
	}
	refuses := func(command string, args []string, want string) {
		t.Helper()
		if out, err := s.S0D(command, args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("s0d %s %v: %v, want a failure that says %q:\n%s", command, args, err, want, out)
		}
	}

	refuses("up", []string{"--bin-dir=" + t.TempDir()}, "make tools")
	refuses("status", nil, "not running")
	wants("down", nil, "not running")

	wants("up", nil, "s0 is up: "+s.URL, "admin@example.com", s0test.AdminPassword, "s0 auth login")
	wants("up", nil, "already up: "+s.URL)
	wants("status", nil, s.URL)
	wants("doctor", nil, "ready", "1 warm slots")
	s.CheckOwned()
	wants("down", nil, "ending 0 sandboxes and 1 warm slots", "s0 is down")
	if left := s.Settled(); len(left) > 0 {
		t.Errorf("down left\n\t%s", strings.Join(left, "\n\t"))
	}

	wants("up", nil, "s0 is up: "+s.URL)
	if out, err := s.S0D("up"); err != nil || strings.Contains(out, s0test.AdminPassword) {
		t.Errorf("the password is shown again: %v\n%s", err, out)
	}
	crash(t, s)
	refuses("reset", nil, "nothing was removed") // it asks, and nobody answers
	wants("reset", []string{"--yes"}, "everything is removed")
	for _, dir := range []string{s.DataDir, s.RunDir} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("reset left %s: %v", dir, err)
		}
	}
	if left := s.Settled(); len(left) > 0 {
		t.Errorf("reset left\n\t%s", strings.Join(left, "\n\t"))
	}
}

// crash kills a server that runs in the background.
func crash(t *testing.T, s *s0test.Stack) {
	t.Helper()
	st, err := s.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the server to be gone", func() error {
		if _, err := s.Status(context.Background()); err == nil {
			return errors.New("it answers")
		}
		return nil
	})
}
