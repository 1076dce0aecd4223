package events

import (
	"slices"
	"strings"
	"testing"
	"time"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
)

func TestB13_WhatMayBecomeARow(t *testing.T) {
	t.Parallel()
	now := time.Now()
	good := func() *nodeapi.SandboxEvent {
		return &nodeapi.SandboxEvent{Id: "evt_1", Type: procapi.EventAgent, UnixNano: now.UnixNano(), Payload: []byte(`{"a":1}`)}
	}
	for name, c := range map[string]struct {
		change func(e *nodeapi.SandboxEvent)
		ok     bool
	}{
		"as it should be":     {func(*nodeapi.SandboxEvent) {}, true},
		"not text":            {func(e *nodeapi.SandboxEvent) { e.Payload = []byte("\"\xff\"") }, true},
		"another clock":       {func(e *nodeapi.SandboxEvent) { e.UnixNano = 1 }, true},
		"a lifecycle event":   {func(e *nodeapi.SandboxEvent) { e.Type = "sandbox.deleted" }, false},
		"an unknown type":     {func(e *nodeapi.SandboxEvent) { e.Type = "process.x" }, false},
		"a reserved id":       {func(e *nodeapi.SandboxEvent) { e.Id = "evt_sandbox_deleted_x" }, false},
		"no id":               {func(e *nodeapi.SandboxEvent) { e.Id = "" }, false},
		"quotes in its id":    {func(e *nodeapi.SandboxEvent) { e.Id = "a'--" }, false},
		"no JSON":             {func(e *nodeapi.SandboxEvent) { e.Payload = []byte("{") }, false},
		"no payload":          {func(e *nodeapi.SandboxEvent) { e.Payload = nil }, false},
		"a payload too large": {func(e *nodeapi.SandboxEvent) { e.Payload = []byte(`"` + strings.Repeat("x", 200<<10) + `"`) }, false},
	} {
		e := good()
		c.change(e)
		list := check([]*nodeapi.SandboxEvent{e}, now)
		if (len(list) == 1) != c.ok {
			t.Errorf("%s: %+v", name, list)
		}
		if len(list) == 1 && now.Sub(list[0].OccurredAt).Abs() > timeSlack {
			t.Errorf("%s: at %s", name, list[0].OccurredAt)
		}
	}
	var many []*nodeapi.SandboxEvent
	for range 1000 {
		many = append(many, good())
	}
	if n := len(check(many, now)); n != maxBatch {
		t.Errorf("%d of 1000 in one batch", n)
	}
}

func TestQueriesOfTypes(t *testing.T) {
	t.Parallel()
	if (Query{}).Types() != nil {
		t.Error("no filter is a filter")
	}
	for _, c := range []struct {
		q    Query
		want []string
	}{
		{Query{EventType: "file"}, []string{"file.modified"}},
		{Query{Source: "procd", Outcome: "failed"}, []string{"process.crashed"}},
		{Query{Source: "manager", EventType: "process"}, []string{}},
		{Query{Action: "sandbox.ready"}, []string{"sandbox.ready"}},
		{Query{EventType: "network_audit", Outcome: "denied"}, []string{"network.denied"}},
		{Query{Action: "nonsense"}, []string{}},
	} {
		if got := c.q.Types(); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v", c.q, got)
		}
	}
	for name, k := range kinds {
		if (k.source == store.SourceManager) == (k.actor == workload) {
			t.Errorf("%s: told by %s, done by %s", name, k.source, k.actor)
		}
	}
}

// A13: a cursor is one of ours or none.
func TestA13_Cursors(t *testing.T) {
	t.Parallel()
	for _, seq := range []int64{-1, 0, 1, 35, 1 << 40} {
		f, err := ListQuery{Cursor: cursor(seq)}.filter("local-a")
		if err != nil || f.After != seq {
			t.Errorf("%d: %d, %v", seq, f.After, err)
		}
	}
	for _, c := range []string{"e", "1", "e-2", "E1", "e01", "e1 ", "e1;drop", "ezzzzzzzzzzzzzzzzzzzz", "e+1"} {
		if f, err := (ListQuery{Cursor: c}).filter("local-a"); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %d, %v", c, f.After, err)
		}
	}
}

func TestHints(t *testing.T) {
	t.Parallel()
	kicked := 0
	f := New(Config{Changed: func() { kicked++ }})
	a, stopA := f.Watch("a")
	b, stopB := f.Watch("b")
	f.hint("a")
	f.hint("a") // a hint that nobody took is one hint
	<-a
	select {
	case <-a:
		t.Error("told twice")
	case <-b:
		t.Error("told of another sandbox")
	default:
	}
	f.hint("")
	<-a
	<-b
	stopA()
	stopB()
	if len(f.waiters) != 0 || kicked != 3 {
		t.Errorf("%d waiters, %d kicks", len(f.waiters), kicked)
	}
}
