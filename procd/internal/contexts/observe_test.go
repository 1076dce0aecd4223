package contexts

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// observed is what a table tells of its processes; wait takes as many more.
type observed struct {
	told chan struct{}

	mu  sync.Mutex
	got []any
}

func (o *observed) add(eventType string, payload any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got = append(o.got, eventType, payload)
	o.told <- struct{}{}
}

func (o *observed) wait(t *testing.T, n int) []any {
	t.Helper()
	for range n {
		select {
		case <-o.told:
		case <-time.After(20 * time.Second):
			t.Fatal("never told")
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.got
}

func TestProcessesAreTold(t *testing.T) {
	t.Parallel()
	o := observed{told: make(chan struct{}, 100)}
	table := New(Config{Reaper: reaper, Workspace: t.TempDir(), Env: []string{"PATH=/usr/bin:/bin"}, Now: time.Now, Observe: o.add})
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { table.Run(ctx) })
	t.Cleanup(func() { cancel(); run.Wait() })
	long := strings.Repeat("x", 3*procapi.PreviewBytes)
	c, err := table.Create(t.Context(), procapi.CreateContext{
		Type: typeCMD, CMD: &procapi.CMDRequest{Command: []string{"sh", "-c", "printf " + long + "END; echo oops >&2; exit 3"}},
		EnvVars: map[string]string{"TOKEN": "canary"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := o.wait(t, 2)
	began := got[1].(procapi.ProcessStarted)
	if got[0] != procapi.EventProcessStarted || began.ProcessID != c.ID || began.ProcessType != typeCMD || began.PID == 0 || len(began.EnvNames) != 1 || began.EnvNames[0] != "TOKEN" {
		t.Errorf("%v %+v", got[0], began)
	}
	ended := got[3].(procapi.ProcessEnded)
	if got[2] != procapi.EventProcessCrashed || ended.ProcessID != c.ID || ended.PID != began.PID || ended.ExitCode != 3 || ended.State != proc.StateCrashed || ended.DurationMS < 0 {
		t.Errorf("%v %+v", got[2], ended)
	}
	if len(ended.StdoutPreview) != procapi.PreviewBytes || !strings.HasSuffix(ended.StdoutPreview, "xEND") || ended.StderrPreview != "oops\n" {
		t.Errorf("previews %q, %q", ended.StdoutPreview, ended.StderrPreview)
	}
	if _, err := table.Restart(c.ID); err != nil {
		t.Fatal(err)
	}
	if got := o.wait(t, 2); got[4] != procapi.EventProcessStarted || got[6] != procapi.EventProcessCrashed {
		t.Errorf("a restart is told as %v, %v", got[4], got[6])
	}
}

// B10: what an event shows of a command is bounded, however the command is.
func TestB10_EventsOfLongCommands(t *testing.T) {
	t.Parallel()
	many := make([]string, 100_000)
	for name, words := range map[string][]string{"many": many, "long": {"sh", strings.Repeat("x", 10<<20)}, "exact": {strings.Repeat("x", maxListBytes)}} {
		size := 0
		short := shorten(words)
		for _, w := range short {
			size += len(w) + 1
		}
		if size > maxListBytes+8 || !strings.HasSuffix(short[len(short)-1], "…") {
			t.Errorf("%s: %d words, %d bytes", name, len(short), size)
		}
	}
	if got := shorten([]string{"a", "b"}); len(got) != 2 || got[1] != "b" {
		t.Errorf("%q", got)
	}
}
