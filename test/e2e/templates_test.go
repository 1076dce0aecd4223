package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestTemplates changes templates under real sandboxes and makes them from such.
func TestTemplates(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 1, MaxSandboxes: 12, Flags: []string{"--allow-runc", "--allow-old-runc"}})
	t.Run("a change", func(t *testing.T) { testRollout(t, s) })
	t.Run("runtime class runc", func(t *testing.T) { testRunc(t, s) })
	t.Run("from a sandbox", func(t *testing.T) { testFromSandbox(t, s) })
	t.Run("an image that was not built", func(t *testing.T) { testNotBuilt(t, s) })
	s.CheckOwned()
}

// put makes a template of the default one's image, or changes one.
func (u *user) put(id, greeting string, slots int) {
	u.t.Helper()
	base, err := u.c.GetTemplate(u.ctx(), "default")
	must(u, "reading the default template", base, err)
	spec := u.spec(`{"mainContainer":{"image":%q,"resources":{"memory":"512Mi"}},"envVars":{"GREETING":%q},"pool":{"minIdle":%d,"maxIdle":%[3]d}}`,
		base.Spec.MainContainer.Image, greeting, slots)
	_, err = u.c.UpdateTemplate(u.ctx(), id, spec)
	if isStatus(err, 404) {
		_, err = u.c.CreateTemplate(u.ctx(), id, spec)
		u.t.Cleanup(func() { _, _ = u.c.DeleteTemplate(u.ctx(), id) })
	}
	must(u, "storing template "+id, id, err)
}

func (u *user) spec(format string, args ...any) (spec client.TemplateSpec) {
	u.t.Helper()
	if err := json.Unmarshal(fmt.Appendf(nil, format, args...), &spec); err != nil {
		u.t.Fatal(err)
	}
	return spec
}

// claimAny takes a sandbox of a template, which goes with the test.
func (u *user) claimAny(template string) string {
	u.t.Helper()
	return u.claimed(client.ClaimRequest{Template: template})
}

// Every claim after a change gets the new spec, from the first on; the pool is full
// of it in the end, and of nothing else.
func testRollout(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	u.put("changing", "old", 2)
	ready := func() error {
		if idle, c := u.poolReady("changing"); idle != 2 || c.Status != "True" || c.LastTransitionTime == nil {
			return fmt.Errorf("%d idle, %s %s", idle, c.Status, text(c.Message))
		}
		return nil
	}
	s.Eventually("two slots of the old spec", ready)
	u.put("changing", "new", 2)
	for range 3 {
		id := u.claimAny("changing")
		if got := text(u.run(id, "sh", "-c", "echo -n $GREETING").Stdout); got != "new" {
			t.Errorf("a claim after the change sees %q", got)
		}
		u.remove(id)
	}
	s.Eventually("two slots of the new spec", ready)
	u.put("changing", "new", 0)
	s.Eventually("an empty pool", func() error {
		if tmpl, err := u.c.GetTemplate(u.ctx(), "changing"); err != nil || *tmpl.Status.IdleCount != 0 || *tmpl.Status.ActiveCount != 0 {
			return fmt.Errorf("%+v: %v", tmpl, err)
		}
		return nil
	})
}

// A sandbox of runc has the same API; that its kernel is the host's is what the
// operator has allowed.
func testRunc(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	base, err := u.c.GetTemplate(u.ctx(), "default")
	must(u, "reading the default template", base, err)
	create := func(class string) error {
		_, err := u.c.CreateTemplate(u.ctx(), class, u.spec(`{"mainContainer":{"image":%q,"resources":{"memory":"512Mi"}},"runtimeClassName":%q}`, base.Spec.MainContainer.Image, class))
		return err
	}
	if err := create("kata"); !isStatus(err, 400) {
		t.Errorf("C01: a class that no node offers: %v", err)
	}
	must(u, "creating a template of class runc", "", create("runc"))
	id := u.claimAny("runc")
	u.write(id, "/workspace/a", "written")
	if got := u.read(id, "/workspace/a"); got != "written" {
		t.Errorf("a file reads %q", got)
	}
	python := u.python(id)
	u.wantExec(id, python, "6*7", "42")
	if got := text(u.run(id, "sh", "-c", "grep -c gVisor /proc/version || true").Stdout); strings.TrimSpace(got) != "0" {
		t.Errorf("it runs in gVisor: %q", got)
	}
	// What a container must never do on the host's kernel (C05).
	for _, attack := range []string{"mount -t tmpfs none /mnt", "echo x > /proc/sys/kernel/core_pattern", "unshare -r true", "mount -o remount,rw /sys"} {
		if res := u.run(id, "sh", "-c", attack); res.ExitCode == nil || *res.ExitCode == 0 {
			t.Errorf("C05: %s succeeds: %s", attack, text(res.Stdout))
		}
	}
	if _, err := u.c.CreateTemplateFromSandbox(u.ctx(), client.TemplateFromSandboxRequest{TemplateID: "from-runc", SandboxID: id}); !isStatus(err, 400) {
		t.Errorf("a template from a sandbox of runc: %v", err)
	}
}

// What a sandbox has written, changed and removed is in the template made from it.
func testFromSandbox(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	for _, command := range []string{
		"mkdir -p /opt/made && echo made > /opt/made/a && ln /opt/made/a /opt/made/b && ln -s /etc/shadow /opt/made/s",
		"echo changed > /etc/motd && rm /etc/debian_version && rm -r /usr/share/doc && mkdir /usr/share/doc && touch /usr/share/doc/mine",
		"echo kept > /tmp/kept && mkfifo /opt/made/pipe && chown 7:8 /opt/made/a && chmod 4750 /opt/made/a",
	} {
		if res := u.run(id, "sh", "-c", command); *res.ExitCode != 0 {
			t.Fatalf("%s: %s", command, text(res.Stderr))
		}
	}
	made, err := u.c.CreateTemplateFromSandbox(u.ctx(), client.TemplateFromSandboxRequest{
		TemplateID: "made", SandboxID: id, SpecOverrides: &client.TemplateFromSandboxOverrides{Tags: []string{"made"}},
	})
	must(u, "making a template", made, err)
	t.Cleanup(func() { _, _ = u.c.DeleteTemplate(u.ctx(), "made") })
	if c := made.Status.Creation; c == nil || c.State != client.TemplateCreationStateCreating {
		t.Errorf("at first: %+v", c)
	}
	if _, err := u.c.CreateTemplateFromSandbox(u.ctx(), client.TemplateFromSandboxRequest{TemplateID: "made", SandboxID: id}); !isStatus(err, 409) {
		t.Errorf("the same name again: %v", err)
	}
	s.Eventually("a template made from a sandbox", func() error {
		made, err = u.c.GetTemplate(u.ctx(), "made")
		must(u, "reading the template", made, err)
		switch c := made.Status.Creation; {
		case c.State == client.TemplateCreationStateReady:
			return nil
		case c.State == client.TemplateCreationStateFailed:
			t.Fatalf("it failed: %s", text(c.Message))
			return nil
		default:
			return fmt.Errorf("%s", c.Stage)
		}
	})
	if image := made.Spec.MainContainer.Image; !strings.Contains(image, "/t-") || !strings.Contains(image, "/made@sha256:") || made.Spec.Pool.MaxIdle != 0 || !slices.Equal(made.Spec.Tags, []string{"made"}) {
		t.Errorf("%+v", made.Spec)
	}
	u.remove(id)
	another := u.claimAny("made")
	for command, want := range map[string]string{
		"cat /opt/made/a /etc/motd /tmp/kept":       "made\nchanged\nkept\n",
		"stat -c '%h %u:%g %a' /opt/made/b":         "2 7:8 4750\n",
		"readlink /opt/made/s":                      "/etc/shadow\n",
		"ls /usr/share/doc":                         "mine\n",
		"ls /opt/made":                              "a\nb\ns\n",
		"test ! -e /etc/debian_version && echo yes": "yes\n",
		"python3 -c 'print(6*7)'":                   "42\n",
	} {
		if got := text(u.run(another, "sh", "-c", command).Stdout); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

// A builtin template without an image is listed and says what to run.
func testNotBuilt(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	tmpl, err := u.c.GetTemplate(u.ctx(), "browser")
	must(u, "reading template browser", tmpl, err)
	if _, err := u.c.CreateSandbox(u.ctx(), client.ClaimRequest{Template: "browser"}); !isStatus(err, 503) || !strings.Contains(err.Error(), "make images-all") {
		t.Errorf("claiming it: %v", err)
	}
}
