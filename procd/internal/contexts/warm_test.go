package contexts

import (
	"strings"
	"testing"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

func python(alias string) procapi.CreateContext {
	return procapi.CreateContext{Type: "repl", REPL: &procapi.REPLRequest{Alias: alias}}
}

func (b *bundle) warm(t *testing.T, req procapi.CreateContext) *Warm {
	t.Helper()
	w, err := b.StartWarm(req)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// A client that asks for nothing but Python gets the one that waits; the next one
// gets its own.
func TestAWarmREPLIsGivenAwayOnce(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	w := b.warm(t, python("python3"))
	if list := b.List().Contexts; len(list) != 1 || list[0].Alias != "python" || !list[0].Running {
		t.Fatalf("a warm REPL must be listed: %+v", list)
	}
	with := func(change func(*procapi.CreateContext)) procapi.CreateContext {
		req := python("")
		change(&req)
		return req
	}
	for _, other := range []procapi.CreateContext{
		python("bash"), sh("sleep 1000"),
		with(func(r *procapi.CreateContext) { r.EnvVars = map[string]string{"A": "b"} }),
		with(func(r *procapi.CreateContext) { r.Cwd = "/" }),
		with(func(r *procapi.CreateContext) { r.PTYSize = &procapi.PTYSize{Rows: 1, Cols: 1} }),
		with(func(r *procapi.CreateContext) { r.TTLSec = 1000 }),
		with(func(r *procapi.CreateContext) { r.REPL.Input = "1" }),
	} {
		if c := b.create(t, other); c.ID == w.entry.id {
			t.Errorf("the warm REPL was given for %+v", other)
		}
	}
	if !w.Kept() {
		t.Error("nobody has used it yet")
	}
	first, second := b.create(t, python("")), b.create(t, python("python"))
	if first.ID != w.entry.id || second.ID == first.ID || w.Kept() {
		t.Errorf("two clients got %s and %s, the warm one is %s", first.ID, second.ID, w.entry.id)
	}
	if res, err := b.Exec(t.Context(), first.ID, "print(6 * 7)"); err != nil || !strings.Contains(res.OutputRaw, "42") {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestAUsedWarmREPLIsSomebodys(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	for name, use := range map[string]func(id string) error{
		"exec":   func(id string) error { _, err := b.Exec(t.Context(), id, "x = 1"); return err },
		"input":  func(id string) error { return b.Input(t.Context(), id, "x = 1\n") },
		"attach": func(id string) error { _, detach, err := b.Attach(id); detach(); return err },
		"delete": b.Delete,
	} {
		w := b.warm(t, python("python"))
		if err := use(w.entry.id); err != nil {
			t.Fatal(err)
		}
		if w.Kept() {
			t.Errorf("%s: kept", name)
		}
		if c := b.create(t, python("python")); c.ID == w.entry.id {
			t.Errorf("%s: another client got it", name)
		}
	}
	c := b.warm(t, sh("sleep 1000"))
	if err := b.Input(t.Context(), c.entry.id, "x\n"); err != nil || !c.Kept() {
		t.Errorf("a command stays the template's: %v", err)
	}
}

func TestWarmProcessesKnowWhenTheyAreStale(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	own := sh("echo $CLAIM $OWN; sleep 1000")
	own.EnvVars = map[string]string{"OWN": "mine"}
	w := b.warm(t, own)
	for i, c := range []struct {
		env   map[string]string
		stale bool
	}{
		{map[string]string{"OWN": "theirs"}, false}, // it does not see this
		{map[string]string{"CLAIM": "yes"}, true},
		{nil, false},
	} {
		if err := b.SetEnv(c.env); err != nil || w.Stale() != c.stale {
			t.Errorf("%d: stale %v, %v", i, w.Stale(), err)
		}
	}
	if err := b.SetEnv(map[string]string{"CLAIM": "yes"}); err != nil {
		t.Fatal(err)
	}
	before := w.Live()
	if err := w.Restart(); err != nil || w.Stale() || w.Next(before) != w.Live() || w.Next(w.Live()) != nil {
		t.Errorf("after a restart: stale %v, %v", w.Stale(), err)
	}
	if !before.ended() {
		t.Error("the old process lives")
	}
	eventually(t, "what it sees", func() bool {
		out, _ := w.Live().Process.Log().Collect(0, w.Live().Process.Log().End())
		return string(out) == "yes mine\n"
	})
	cfg, err := w.Beside([]string{"sh", "-c", "echo $CLAIM $OWN $PWD"})
	if err != nil {
		t.Fatal(err)
	}
	probe, err := proc.Start(reaper, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	<-probe.Done()
	if out, _ := probe.Log().Collect(0, probe.Log().End()); string(out) != "yes mine "+b.dir+"\n" {
		t.Errorf("a command beside it printed %q", out)
	}
}
