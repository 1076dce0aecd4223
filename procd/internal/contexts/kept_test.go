package contexts

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// again is a table of a later life: what the earlier one told travels as JSON.
func (b *bundle) again(t *testing.T) *bundle {
	t.Helper()
	raw, err := json.Marshal(procapi.KeptContexts{Contexts: b.Kept()})
	if err != nil {
		t.Fatal(err)
	}
	var kept procapi.KeptContexts
	if err := json.Unmarshal(raw, &kept); err != nil {
		t.Fatal(err)
	}
	next := newTable(t)
	next.Revive(kept.Contexts)
	return next
}

func TestContextsOutliveTheirProcesses(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	repl := b.create(t, procapi.CreateContext{
		Type: "repl", REPL: &procapi.REPLRequest{Alias: "bash", Input: "A=1\n"}, WaitUntilDone: true, EnvVars: map[string]string{"MINE": "x"}, TTLSec: 1000,
	})
	ran := b.create(t, sh("sleep 1000"))
	failed := b.create(t, waiting(sh("exit 7")))
	dead := b.create(t, procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "bash"}})
	if _, err := b.Exec(ctx, dead.ID, "exit 3\n"); err != nil {
		t.Fatal(err)
	}
	warm, err := b.StartWarm(sh("sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	next := b.again(t)

	got, err := next.Exec(ctx, repl.ID, "echo \"[$A$MINE]\"\n")
	if err != nil || !strings.Contains(got.OutputRaw, "[x]") {
		t.Errorf("the REPL has no new interpreter with its variables: %q, %v", got.OutputRaw, err)
	}
	for id, want := range map[string]procapi.Exit{
		ran.ID:    {ExitCode: proc.KilledExitCode, State: proc.StateKilled},
		failed.ID: {ExitCode: 7, State: proc.StateCrashed},
		dead.ID:   {ExitCode: 3, State: proc.StateCrashed},
	} {
		c, err := next.Get(id)
		if err != nil || c.Running || c.State != want.State || c.ExitCode == nil || *c.ExitCode != want.ExitCode {
			t.Errorf("%+v, want %+v: %v", c, want, err)
		}
		if err := next.Signal(id, "KILL"); err == nil {
			t.Error("what has ended can be signalled")
		}
		if s, err := next.Stats(id); err != nil || s.PID != 0 || s.Processes != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	}
	if c, err := next.Get(warm.entry.id); err == nil {
		t.Errorf("the template's own is kept: %+v", c)
	}
	if c, err := next.Restart(ran.ID); err != nil || !c.Running || c.ID != ran.ID {
		t.Errorf("restart of what had ended: %+v, %v", c, err)
	}
	if err := next.Delete(failed.ID); err != nil {
		t.Error(err)
	}
	next.clock.Store(1001)
	next.sweep()
	if _, err := next.Get(repl.ID); err == nil {
		t.Error("a life without processes has made its ttl longer")
	}
}

func TestWhatIsKeptIsBounded(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	repl := b.create(t, procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "bash"}})
	var last string
	for range 5 {
		b.clock.Add(1)
		last = b.create(t, waiting(sh("# "+strings.Repeat("x", procapi.MaxKeptBytes/3)))).ID
	}
	kept := b.Kept()
	if raw, _ := json.Marshal(kept); len(raw) > procapi.MaxKeptBytes {
		t.Errorf("%d bytes", len(raw))
	}
	if len(kept) != 3 || kept[0].ID != repl.ID || kept[2].ID != last {
		t.Errorf("not the REPL and the newest: %d contexts", len(kept))
	}
}

// What procd is told to keep came from a sandbox.
func TestB01_NonsenseIsNotRevived(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	b.Revive([]procapi.KeptContext{
		{}, {ID: "ctx-1", Request: procapi.CreateContext{Type: "neither"}},
		{ID: strings.Repeat("x", 1000), Request: sh("true")},
		{ID: "ctx-2", Request: procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: "bash"}, EnvVars: map[string]string{"=": ""}}},
		{ID: "ctx-3", Request: sh("true")}, {ID: "ctx-3", Request: sh("false")},
	})
	if list := b.List().Contexts; len(list) != 1 || list[0].ID != "ctx-3" || list[0].Command[2] != "true" {
		t.Errorf("%+v", list)
	}
}
