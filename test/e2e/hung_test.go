package e2e_test

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestX30_HungSandbox: one that neither answers nor ends is not shown as running,
// comes back when it does, and can be deleted in any case.
func TestX30_HungSandbox(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 1})
	u := newUser(t, s)
	id := u.claim()
	python := u.python(id)
	u.exec(id, python, "x = 41")
	u.signal(id, syscall.SIGSTOP)
	t.Cleanup(func() { u.signal(id, syscall.SIGCONT) })
	began := time.Now()
	s.Eventually("nobody to say that it runs", func() error {
		sb, err := u.c.GetSandbox(u.ctx(), id)
		switch {
		case err == nil:
			return errors.New("its status is " + string(sb.Status))
		case !isStatus(err, 503):
			t.Fatalf("a hung sandbox answers %v", err)
		}
		return nil
	})
	t.Logf("it was noticed after %s", time.Since(began).Round(time.Second))
	list, err := u.c.ListSandboxes(u.ctx(), client.ListSandboxesOptions{})
	must(u, "listing", list, err)
	if !slices.ContainsFunc(list.Sandboxes, func(sb client.SandboxSummary) bool { return sb.ID == id && sb.Unreachable != nil && *sb.Unreachable }) {
		t.Errorf("the list does not mark it: %+v", list.Sandboxes)
	}
	began = time.Now()
	if _, err := u.c.ListContexts(u.ctx(), id); !isStatus(err, 503) || time.Since(began) > 10*time.Second {
		t.Errorf("a call into it took %s: %v", time.Since(began), err)
	}

	u.signal(id, syscall.SIGCONT)
	s.Eventually("the sandbox to be back", func() error {
		sb, err := u.c.GetSandbox(u.ctx(), id)
		if err == nil && sb.Status != "running" {
			return errors.New("its status is " + string(sb.Status))
		}
		return err
	})
	u.wantExec(id, python, "print(x + 1)", "42")

	u.signal(id, syscall.SIGSTOP)
	u.remove(id)
	s.CheckOwned()
}

// signal signals a sandbox's sentry from outside.
func (u *user) signal(id string, sig syscall.Signal) {
	for _, pid := range u.stack.Pids("sentry", id) {
		if err := syscall.Kill(pid, sig); err != nil {
			u.t.Errorf("signal %d to the sentry %d: %v", sig, pid, err)
		}
	}
}
