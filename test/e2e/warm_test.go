package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestWarmProcesses keeps pools of sandboxes in which something runs already.
func TestWarmProcesses(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 0, MaxSandboxes: 12, Flags: []string{"--volumes", "--buckets-allow-private"}})
	t.Run("ready before the claim", func(t *testing.T) { testWarmClaim(t, s) })
	t.Run("what a claim changes", func(t *testing.T) { testWarmEnv(t, s) })
	t.Run("what a claim mounts", func(t *testing.T) { testWarmMounts(t, s) })
	t.Run("instants of a volume", func(t *testing.T) { testVolumeInstants(t, s) })
	t.Run("programs in a volume", func(t *testing.T) { testVolumePrograms(t, s) })
	t.Run("TestD04_AVolumeIsFull", func(t *testing.T) { testVolumeFull(t, s) })
	t.Run("TestB04_B05_C06_HostileInAVolume", func(t *testing.T) { testVolumeHostile(t, s) })
	t.Run("a volume and its replica", func(t *testing.T) { testVolumeSync(t, s) })
	t.Run("a bucket", func(t *testing.T) { testBucket(t, s) })
	t.Run("a cold start", func(t *testing.T) { testWarmCold(t, s) })
	t.Run("never ready", func(t *testing.T) { testNeverReady(t, s) })
	t.Run("ends in the pool", func(t *testing.T) { testWarmEnds(t, s) })
	t.Run("ends in a claimed sandbox", func(t *testing.T) { testWarmEndsClaimed(t, s) })
	t.Run("noded restarts", func(t *testing.T) { testWarmRestart(t, s) })
	t.Run("TestR7_X46_DeathsBesideAWriter", func(t *testing.T) { testVolumeDeaths(t, s) })
	wantNoSandbox(s)
}

// web is an HTTP server with a probe, repl a Python that waits.
const (
	web = `{"name":"web","type":"cmd","command":["sh","-c","echo \"$GREETING\" > /tmp/greeting; exec python3 -m http.server 8000"],
		"probes":{"readiness":{"httpGet":{"port":8000,"path":"/"},"periodSeconds":1},"liveness":{"tcpSocket":{"port":8000}}}}`
	repl = `{"name":"python","type":"repl","alias":"python"}`
)

// warmTemplate makes a template with a pool of so many slots, which goes with the test.
func (u *user) warmTemplate(id string, slots int, processes ...string) {
	u.t.Helper()
	base, err := u.c.GetTemplate(u.ctx(), "default")
	must(u, "reading the default template", base, err)
	spec := fmt.Sprintf(`{"mainContainer":{"image":%q,"resources":{"memory":"512Mi"}},"envVars":{"GREETING":"template"},
		"pool":{"minIdle":%d,"maxIdle":%[2]d},"warmProcesses":[%s]}`, base.Spec.MainContainer.Image, slots, strings.Join(processes, ","))
	var decoded client.TemplateSpec
	if err := json.Unmarshal([]byte(spec), &decoded); err != nil {
		u.t.Fatal(err)
	}
	tmpl, err := u.c.CreateTemplate(u.ctx(), id, decoded)
	must(u, "creating template "+id, tmpl, err)
	u.t.Cleanup(func() {
		if _, err := u.c.DeleteTemplate(u.ctx(), id); err != nil {
			u.t.Errorf("deleting template %s: %v", id, err)
		}
	})
}

// poolReady is the condition of a template's pool.
func (u *user) poolReady(id string) (idle int32, ready client.TemplateCondition) {
	u.t.Helper()
	tmpl, err := u.c.GetTemplate(u.ctx(), id)
	must(u, "reading template "+id, tmpl, err)
	for _, c := range tmpl.Status.Conditions {
		if c.Type == "PoolReady" {
			return *tmpl.Status.IdleCount, c
		}
	}
	u.t.Fatalf("template %s has no condition PoolReady: %+v", id, tmpl.Status)
	return 0, ready
}

func (u *user) awaitIdle(template string) {
	u.t.Helper()
	u.stack.Eventually("a free slot of "+template, func() error {
		if idle, ready := u.poolReady(template); idle < 1 {
			return fmt.Errorf("%d idle, %s %s", idle, ready.Status, text(ready.Message))
		}
		return nil
	})
}

func text(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

func (u *user) claimOf(template string, env map[string]string) (id string) {
	u.t.Helper()
	began := time.Now()
	id = u.claimed(client.ClaimRequest{Template: template, Config: &client.SandboxConfig{EnvVars: env}})
	u.t.Logf("a claim of %s with %d variables took %s", template, len(env), time.Since(began).Round(100*time.Microsecond))
	return id
}

const ask = `import urllib.request; print(urllib.request.urlopen("http://localhost:8000").status)`

func testWarmClaim(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	u.warmTemplate("warm", 1, web, repl)
	u.awaitIdle("warm")
	id := u.claimOf("warm", nil)

	list, err := u.c.ListContexts(u.ctx(), id)
	must(u, "listing contexts", list, err)
	if len(list.Contexts) != 2 || list.Contexts[0].Type != client.ContextTypeCMD || text(list.Contexts[1].Alias) != "python" || !list.Contexts[0].Running || !list.Contexts[1].Running {
		t.Fatalf("contexts %+v", list.Contexts)
	}
	began := time.Now()
	if first := u.python(id); first != list.Contexts[1].ID {
		t.Errorf("a client that asks for Python got %s, not %s, which waits", first, list.Contexts[1].ID)
	}
	u.wantExec(id, list.Contexts[1].ID, "print(6 * 7)", "42")
	t.Logf("the first code took %s", time.Since(began).Round(100*time.Microsecond))
	u.wantExec(id, list.Contexts[1].ID, ask, "200")
	if second := u.python(id); second == list.Contexts[1].ID {
		t.Error("two clients share an interpreter that neither asked to share")
	}
	if got := u.read(id, "/tmp/greeting"); got != "template\n" {
		t.Errorf("the server saw %q", got)
	}
}

func testWarmEnv(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	u.warmTemplate("env", 1, web, repl)
	u.awaitIdle("env")
	id := u.claimOf("env", map[string]string{"GREETING": "claim"})
	python := u.python(id)
	u.wantExec(id, python, `import os; print(os.environ["GREETING"])`, "claim")
	s.Eventually("the server's new view", func() error {
		if got := u.read(id, "/tmp/greeting"); got != "claim\n" {
			return fmt.Errorf("it saw %q", got)
		}
		return nil
	})
	// The old server is gone: the new one has its port.
	s.Eventually("the server", func() error {
		if got := u.exec(id, python, ask); got != "200" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	sb, err := u.c.UpdateSandbox(u.ctx(), id, client.SandboxUpdateConfig{EnvVars: map[string]string{"GREETING": "update"}})
	must(u, "updating "+id, sb, err)
	if got := u.run(id, "sh", "-c", "echo $GREETING; cat /tmp/greeting"); text(got.Stdout) != "update\nclaim\n" {
		t.Errorf("after an update a new process and the old server saw %q", text(got.Stdout))
	}
}

// What a claim mounts is there when it is answered. What ran before is started anew for it,
// or finds it when it looks again if it is to be kept; in a life without memory, too,
// nothing starts before it is there.
func testWarmMounts(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	volume, err := u.c.CreateVolume(u.ctx(), "", client.CreateSandboxVolumeRequest{})
	must(u, "making a volume", volume, err)
	t.Cleanup(func() {
		if err := u.c.DeleteVolume(u.ctx(), volume.ID, true); err != nil {
			t.Errorf("deleting the volume: %v", err)
		}
	})
	first := u.claimMounted("default", volume.ID)
	u.run(first, "sh", "-c", "echo content > /data/file")
	u.remove(first)

	const looks = `{"name":"looks","type":"cmd","command":["sh","-c","echo $(cat /data/file 2>&1) >> /tmp/starts; exec sleep 100000"],
		"probes":{"readiness":{"exec":{"command":["test","-s","/tmp/starts"]},"periodSeconds":1}}}`
	const again = `{"name":"again","type":"cmd","restartOnClaim":false,
		"command":["sh","-c","echo x >> /tmp/kept; until cat /data/file > /tmp/again 2>&1; do sleep 0.2; done; exec sleep 100000"]}`
	u.warmTemplate("mounts", 1, looks, again, repl)
	u.awaitIdle("mounts")
	id := u.claimMounted("mounts", volume.ID)
	if got := u.read(id, "/data/file"); got != "content\n" {
		t.Errorf("at the claim's answer there is %q", got)
	}
	const missing = "cat: /data/file: No such file or directory\n"
	starts := func(want string) {
		t.Helper()
		s.Eventually("what the process saw at its starts", func() error {
			if got := u.read(id, "/tmp/starts"); got != want {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
	starts(missing + "content\n")
	s.Eventually("what the other one sees", func() error {
		if got := u.read(id, "/tmp/again"); got != "content\n" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	if got := u.read(id, "/tmp/kept"); got != "x\n" {
		t.Errorf("it was started %d times", len(got)/2)
	}
	p, err := u.c.PauseSandboxFiles(u.ctx(), id)
	must(u, "pausing", p, err)
	u.resume(id)
	starts(missing + "content\ncontent\n")
}

// A sandbox that is started for its claim is given away when its processes are
// healthy, and they never saw anything but the claim.
func testWarmCold(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	u.warmTemplate("cold", 0, strings.Replace(web, "> /tmp/greeting", ">> /tmp/greeting", 1), repl)
	id := u.claimOf("cold", map[string]string{"GREETING": "claim"})
	u.wantExec(id, u.python(id), ask, "200")
	if got := u.read(id, "/tmp/greeting"); got != "claim\n" {
		t.Errorf("the server saw %q", got)
	}
}

func testNeverReady(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	u.warmTemplate("never", 1, strings.Replace(web, `"port":8000,"path":"/"`, `"port":8000,"path":"/missing"`, 1))
	s.Eventually("the reason", func() error {
		idle, ready := u.poolReady("never")
		if idle != 0 {
			t.Fatalf("a slot that is not ready can be claimed")
		}
		if ready.Status != "False" || text(ready.Message) != "warm process web is not ready: GET http://localhost:8000/missing: status 404" {
			return fmt.Errorf("%s %s %q", ready.Status, text(ready.Reason), text(ready.Message))
		}
		return nil
	})
	u.warmTemplate("broken", 1, `{"name":"app","type":"cmd","command":["python3","-c","import nothing_of_this_name"],
		"probes":{"startup":{"tcpSocket":{"port":9000},"periodSeconds":1,"failureThreshold":60}}}`)
	s.Eventually("the reason", func() error {
		_, ready := u.poolReady("broken")
		if text(ready.Reason) != "WarmUpFailed" || text(ready.Message) != "warm process app exited with code 1: ModuleNotFoundError: No module named 'nothing_of_this_name'" {
			return fmt.Errorf("%s %s %q", ready.Status, text(ready.Reason), text(ready.Message))
		}
		return nil
	})
	if sb, err := u.c.CreateSandbox(u.ctx(), client.ClaimRequest{Template: "broken"}); !isStatus(err, 503) {
		t.Errorf("a claim of a template that can't start: %+v, %v", sb, err)
	}
}

// slots are the free slots of the node.
func (u *user) slots() []string {
	u.t.Helper()
	live, err := u.stack.Live()
	must(u, "asking the node", live, err)
	maps.DeleteFunc(live, func(_, what string) bool { return what != "slot" })
	return slices.Sorted(maps.Keys(live))
}

// onlySlot is the free slot of the node, once those of templates that went are gone, too.
func (u *user) onlySlot() (id string) {
	u.t.Helper()
	u.stack.Eventually("one free slot", func() error {
		all := u.slots()
		if len(all) != 1 {
			return fmt.Errorf("slots %v", all)
		}
		id = all[0]
		return nil
	})
	return id
}

func testWarmEnds(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	// The server is killed once it was ready for a while, and it alone.
	killer := `{"name":"killer","type":"cmd","command":["sh","-c","until curl -sf -o /dev/null http://localhost:8000; do sleep 1; done; sleep 5; pkill -f [h]ttp.server; sleep 1000"]}`
	u.warmTemplate("ends", 1, web, killer)
	u.awaitIdle("ends")
	first := u.onlySlot()
	s.Eventually("why the slot went", func() error {
		_, ready := u.poolReady("ends")
		if !strings.HasPrefix(text(ready.Message), "warm process web was killed") {
			return fmt.Errorf("%s %s %q", ready.Status, text(ready.Reason), text(ready.Message))
		}
		return nil
	})
	s.Eventually("another slot in its place", func() error {
		if now := u.slots(); len(now) != 1 || now[0] == first {
			return fmt.Errorf("slots %v", now)
		}
		return nil
	})
}

func testWarmEndsClaimed(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	u.warmTemplate("claimed", 1, web, repl)
	u.awaitIdle("claimed")
	id := u.claimOf("claimed", nil)
	python := u.python(id)
	if _, err := u.c.ExecContext(u.ctx(), id, python, "exit()"); err != nil { // a used REPL is its user's to end
		t.Fatal(err)
	}
	if got := u.run(id, "echo", "alive"); text(got.Stdout) != "alive\n" {
		t.Errorf("after the end of a used REPL: %+v", got)
	}
	began := time.Now()
	kill := []string{"pkill", "-f", "http.server"}
	_, _ = u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: kill}})
	s.Eventually("the sandbox's failure", func() error {
		sb, err := u.c.GetSandbox(u.ctx(), id)
		if err != nil {
			return err
		}
		if sb.Status != "failed" {
			return errors.New(string(sb.Status))
		}
		return nil
	})
	t.Logf("it was known after %s", time.Since(began).Round(time.Millisecond))
	_, err := u.c.ListContexts(u.ctx(), id)
	var refused *client.APIError
	if !errors.As(err, &refused) || refused.StatusCode != 503 || !strings.Contains(refused.Message, "it is failed (warm process web was killed") {
		t.Errorf("a failed sandbox answers %v", err)
	}
}

func testWarmRestart(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	u.warmTemplate("restart", 1, web, repl)
	u.awaitIdle("restart")
	slot := u.onlySlot()
	s.Kill()
	s.Up()
	u.awaitIdle("restart")
	if now := u.slots(); !slices.Equal(now, []string{slot}) {
		t.Errorf("before the restart the slots were %v, now they are %v", slot, now)
	}
	id := u.claimOf("restart", nil)
	u.wantExec(id, u.python(id), ask, "200")
}
