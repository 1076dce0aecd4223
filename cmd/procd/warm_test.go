package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os/exec"
	"testing"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/proctest"
	"s0.run/internal/warm"
)

// statuses follows how the warm processes are.
type statuses struct{ *json.Decoder }

func followWarm(t *testing.T, c *proctest.Conn) *statuses {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	t.Cleanup(cancel)
	resp, err := c.Do(ctx, "GET", procapi.PathWarm, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &statuses{json.NewDecoder(resp.Body)}
}

func (s *statuses) until(t *testing.T, is func(procapi.WarmStatus) bool) procapi.WarmStatus {
	t.Helper()
	for {
		var status procapi.WarmStatus
		if err := s.Decode(&status); err != nil {
			t.Fatalf("following the warm processes: %v", err)
		}
		if is(status) {
			return status
		}
	}
}

// A warm process ends, and with it the sandbox: who follows learns why first.
func TestPID1EndsWithAWarmProcess(t *testing.T) {
	t.Parallel()
	cmd, _, c := startPID1(t)
	probe := warm.Probe{Exec: []string{"test", "-e", "/workspace/ready"}, PeriodSeconds: 1}.WithDefaults()
	c.Call(t, "POST", procapi.PathInit, procapi.Init{SandboxID: "s0-x", Generation: 1, Warm: []procapi.WarmProcess{
		{Name: "python", Type: warm.REPL},
		{Name: "web", Type: warm.CMD, Command: []string{"sh", "-c", "while ! test -e stop; do sleep 0.01; done; exit 7"}, Readiness: &probe},
	}}, nil)
	var hello procapi.Hello
	if c.Call(t, "GET", procapi.PathHello, nil, &hello); hello.Ready {
		t.Error("ready before its processes are")
	}
	s := followWarm(t, c)
	stdout(t, c, "touch ready")
	s.until(t, func(w procapi.WarmStatus) bool { return w.Ready })
	if c.Call(t, "GET", procapi.PathHello, nil, &hello); !hello.Ready {
		t.Error("not ready although its processes are")
	}
	var list procapi.ContextList
	if c.Call(t, "GET", procapi.PathContexts, nil, &list); len(list.Contexts) < 2 || list.Contexts[0].Alias != "python" || list.Contexts[1].Type != "cmd" {
		t.Errorf("contexts: %+v", list)
	}
	c.Call(t, "PUT", procapi.PathEnv, procapi.Env{Env: map[string]string{"CLAIM": "yes"}, RestartWarm: true}, nil)
	s.until(t, func(w procapi.WarmStatus) bool { return !w.Ready })
	s.until(t, func(w procapi.WarmStatus) bool { return w.Ready })
	stop := command("touch stop")
	stop.WaitUntilDone = false // the sandbox ends before the answer to one that waits
	c.Call(t, "POST", procapi.PathContexts, stop, nil)
	if w := s.until(t, func(w procapi.WarmStatus) bool { return w.Failed }); w.Reason != "warm process web exited with code 7" {
		t.Errorf("%+v", w)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("procd ended with %v", err)
	}
}
