package sessions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

func TestInputComesOnce(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(nil)
		p := b.latest(1)
		attempt := b.see(id).Attempt.ID
		in := procapi.SessionInput{InputID: "i", Data: []byte("once\n"), ExpectedAttempt: attempt}
		for _, duplicate := range []bool{false, true} {
			r, err := b.Input(id, in)
			if err != nil || r != (procapi.SessionInputReceipt{InputID: "i", AttemptID: attempt, Accepted: true, Duplicate: duplicate}) {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		_, err := b.Input(id, procapi.SessionInput{InputID: "i", Data: []byte("other")})
		wantCode(t, err, procapi.CodeInputConflict)
		_, err = b.Input(id, procapi.SessionInput{InputID: "j", Data: []byte("x"), ExpectedAttempt: "att-000000000000"})
		wantCode(t, err, procapi.CodeAttemptMismatch)
		p.full = true
		_, err = b.Input(id, procapi.SessionInput{InputID: "k", Data: []byte("more")})
		wantCode(t, err, "input_buffer_full")
		p.full = false
		if r, err := b.Input(id, procapi.SessionInput{InputID: "k", Data: []byte("more"), EOF: true}); err != nil || r.Duplicate {
			t.Fatalf("%+v, %v", r, err)
		}
		if string(p.input) != "once\nmore" || !p.closed {
			t.Errorf("input %q, closed %v", p.input, p.closed)
		}
		p.end(0, proc.StateStopped)
		synctest.Wait()
		if r, err := b.Input(id, in); err != nil || !r.Duplicate { // the first answer may have been lost
			t.Errorf("%+v, %v", r, err)
		}
		_, err = b.Input(id, procapi.SessionInput{InputID: "l", Data: []byte("x")})
		wantCode(t, err, "process_not_running")
		if _, err := b.Attempt(context.Background(), id, false); err != nil {
			t.Fatal(err)
		}
		in.ExpectedAttempt = ""
		if r, err := b.Input(id, in); err != nil || r.Duplicate { // of another attempt
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestTheMemoryOfInputsIsBounded(t *testing.T) {
	t.Parallel()
	var in inputs
	for i := range 3 * maxInputIDs {
		in.add(fmt.Sprint(i), &receipt{})
	}
	if len(in.known) != maxInputIDs || len(in.order) != maxInputIDs || in.known[fmt.Sprint(3*maxInputIDs-1)] == nil {
		t.Errorf("%d known, %d in order", len(in.known), len(in.order))
	}
}

func TestB11_SignalsAndSizes(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) { s.IO.Mode = procapi.IOPTY })
		p := b.latest(1)
		if *p.req.PTYSize != (procapi.PTYSize{Rows: 24, Cols: 80}) || p.req.EnvVars["TERM"] != defaultTerm {
			t.Errorf("started %+v", p.req)
		}
		wantCode(t, b.Resize(id, procapi.SessionResize{Rows: 0, Cols: 5}), "invalid_request")
		wantCode(t, b.Resize(id, procapi.SessionResize{Rows: 1, Cols: 5, ExpectedAttempt: "att-1"}), procapi.CodeAttemptMismatch)
		if err := b.Resize(id, procapi.SessionResize{Rows: 50, Cols: 132}); err != nil || p.size.Cols != 132 {
			t.Fatalf("%+v, %v", p.size, err)
		}
		wantCode(t, b.Signal(id, procapi.SessionSignal{Signal: "NONE"}), "invalid_request")
		if err := b.Signal(id, procapi.SessionSignal{Signal: "KILL"}); err != nil {
			t.Fatal(err)
		}
		if s := b.wantPhase(id, procapi.PhaseFailed); s.Attempt.Reason != reasonKilled {
			t.Errorf("%+v", s.Attempt)
		}
		wantCode(t, b.Signal(id, procapi.SessionSignal{Signal: "TERM"}), "process_not_running")
		wantCode(t, b.Resize(id, procapi.SessionResize{Rows: 1, Cols: 1}), "process_not_running")
		if _, err := b.Attempt(context.Background(), id, false); err != nil {
			t.Fatal(err)
		}
		if p := b.latest(2); p.req.PTYSize.Cols != 132 {
			t.Errorf("the next attempt has %+v", p.req.PTYSize)
		}
	})
}

func TestAPausedProcess(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(nil)
		p := b.latest(1)
		p.mu.Lock()
		p.state = proc.StatePaused
		p.mu.Unlock()
		b.wantPhase(id, procapi.PhasePaused)
	})
}

func TestTheSameKeyIsTheSameSession(t *testing.T) {
	inBubble(t, func(b *bundle) {
		spec := procapi.SessionSpec{Command: []string{"work"}, Env: map[string]string{"A": "1", "B": "2"}}
		first, err := b.Create("key", spec)
		if err != nil {
			t.Fatal(err)
		}
		again, err := b.Create("key", spec)
		if err != nil || again.ID != first.ID {
			t.Fatalf("%+v, %v", again, err)
		}
		b.latest(1)
		spec.Command = []string{"other"}
		_, err = b.Create("key", spec)
		wantCode(t, err, procapi.CodeKeyReused)
		_, err = b.Create(strings.Repeat("k", 129), spec)
		wantCode(t, err, "invalid_request")
		if err := b.Delete(first.ID); err != nil {
			t.Fatal(err)
		}
		if s, err := b.Create("key", spec); err != nil || s.ID == first.ID {
			t.Fatalf("%+v, %v", s, err)
		}
	})
}

func TestA23_TooManySessions(t *testing.T) {
	inBubble(t, func(b *bundle) {
		stopped := func(s *procapi.SessionSpec) { s.Lifecycle.DesiredState = procapi.DesiredStopped }
		var last string
		for range procapi.MaxSessions {
			last = b.create(stopped)
		}
		_, err := b.Create("", procapi.SessionSpec{Command: []string{"work"}})
		wantCode(t, err, procapi.CodeTooManySessions)
		if list := b.List().Sessions; len(list) != procapi.MaxSessions || list[procapi.MaxSessions-1].ID != last || list[0].Phase != procapi.PhaseStopped {
			t.Errorf("%d sessions", len(list))
		}
		if err := b.Delete(last); err != nil {
			t.Fatal(err)
		}
		b.create(stopped)
	})
}

func TestB08_OutputIsBoundedAndSlowReadersGetGaps(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) { s.Retention.MaxBytes = procapi.MinRetention })
		p := b.latest(1)
		piece := strings.Repeat("x", 1000)
		for range 1000 {
			p.print(piece)
			synctest.Wait()
		}
		s := b.see(id)
		if s.Cursor.Latest < 1004 || s.Cursor.Latest-s.Cursor.Earliest > 64 {
			t.Errorf("cursor %+v", s.Cursor)
		}
		page, err := b.Events(id, 5, 10)
		if err != nil || len(page.Events) != 10 || page.Events[0].Seq != s.Cursor.Earliest {
			t.Fatalf("%d events from %+v, %v", len(page.Events), page.Events[0], err)
		}
		page, _ = b.Events(id, page.Events[9].Seq, 10)
		if page.Events[0].Seq != s.Cursor.Earliest+10 {
			t.Errorf("the next page begins with %d", page.Events[0].Seq)
		}
		if page, _ := b.Events(id, 5000, 10); len(page.Events) != 0 {
			t.Errorf("%d events from the future", len(page.Events))
		}
	})
}

func TestOldEventsGo(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) { s.Retention.MaxAgeSeconds = 60 })
		b.pass(59 * time.Second)
		b.latest(1).print("new")
		synctest.Wait()
		b.pass(time.Second)
		events := b.events(id)
		if len(events) != 1 || string(events[0].Data) != "new" {
			t.Errorf("events %+v", events)
		}
		b.pass(time.Minute)
		if s := b.see(id); s.Cursor.Earliest != s.Cursor.Latest+1 {
			t.Errorf("cursor %+v", s.Cursor)
		}
	})
}

func TestReadersFollowToTheEnd(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) { s.Retention.MaxAgeSeconds = 3600 })
		_, err := b.Follow("sess-0", 0)
		wantCode(t, err, procapi.CodeSessionNotFound)
		r, err := b.Follow(id, 1)
		if err != nil {
			t.Fatal(err)
		}
		var seen []string
		ended := make(chan error, 1)
		go func() {
			ended <- r.Run(context.Background(), func(events []procapi.SessionEvent) error {
				for _, ev := range events {
					seen = append(seen, ev.Type+string(ev.Data))
				}
				return nil
			})
		}()
		b.latest(1).print("one")
		b.pass(2 * time.Hour) // what it has seen is gone
		b.latest(1).print("two")
		synctest.Wait()
		if err := b.Delete(id); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		want := []string{"attempt.started", "session.starting", "session.running", "outputone", "outputtwo", "session.stopping", "attempt.exited", "session.deleted"}
		if !slices.Equal(seen, want) {
			t.Errorf("seen %v, want %v", seen, want)
		}
	})
}

func TestAReaderThatGoes(t *testing.T) {
	inBubble(t, func(b *bundle) {
		r, err := b.Follow(b.create(nil), 0)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := r.Run(ctx, func([]procapi.SessionEvent) error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestSpecsThatAreRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*procapi.SessionSpec){
		"no command":      func(s *procapi.SessionSpec) { s.Command = nil },
		"B10 a NUL":       func(s *procapi.SessionSpec) { s.Command = []string{"a", "b\x00"} },
		"B10 many args":   func(s *procapi.SessionSpec) { s.Command = make([]string, 100_000); s.Command[0] = "a" },
		"B10 large env":   func(s *procapi.SessionSpec) { s.Env = map[string]string{"A": strings.Repeat("x", 10<<20)} },
		"a variable":      func(s *procapi.SessionSpec) { s.Env = map[string]string{"A=B": "1"} },
		"A18 a name":      func(s *procapi.SessionSpec) { s.Name = "a\nb" },
		"a mode":          func(s *procapi.SessionSpec) { s.IO.Mode = "tty" },
		"a terminal":      func(s *procapi.SessionSpec) { s.IO.Terminal = &procapi.SessionTerminal{} },
		"a state":         func(s *procapi.SessionSpec) { s.Lifecycle.DesiredState = "paused" },
		"a policy":        func(s *procapi.SessionSpec) { s.Lifecycle.Restart.Policy = "sometimes" },
		"a recovery":      func(s *procapi.SessionSpec) { s.Lifecycle.RuntimeRecovery = "pray" },
		"a negative time": func(s *procapi.SessionSpec) { s.Lifecycle.IdleSeconds = -1 },
		"a time too long": func(s *procapi.SessionSpec) { s.Lifecycle.LifetimeSeconds = 1 << 62 },
		"a grace":         func(s *procapi.SessionSpec) { s.Lifecycle.GraceSeconds = new(int64(-1)) },
		"restarts":        func(s *procapi.SessionSpec) { s.Lifecycle.Restart.MaxRestarts = -1 },
		"backoff": func(s *procapi.SessionSpec) {
			s.Lifecycle.Restart.InitialBackoffMS = 10
			s.Lifecycle.Restart.MaxBackoffMS = 5
		},
		"a readiness":     func(s *procapi.SessionSpec) { s.Readiness.Type = "http" },
		"no output":       func(s *procapi.SessionSpec) { s.Readiness.Type = procapi.ReadyOutput },
		"much output":     func(s *procapi.SessionSpec) { s.Readiness.Output = strings.Repeat("x", 5000) },
		"small retention": func(s *procapi.SessionSpec) { s.Retention.MaxBytes = 1 },
		"endless events":  func(s *procapi.SessionSpec) { s.Retention.MaxBytes = 1 << 40 },
		"a negative age":  func(s *procapi.SessionSpec) { s.Retention.MaxAgeSeconds = -1 },
		"a long TERM": func(s *procapi.SessionSpec) {
			s.IO = procapi.SessionIO{Mode: "pty", Terminal: &procapi.SessionTerminal{Term: strings.Repeat("x", 65)}}
		},
		"many small names": func(s *procapi.SessionSpec) {
			s.Env = map[string]string{}
			for i := range 2000 {
				s.Env[fmt.Sprint(i)] = ""
			}
		},
	} {
		spec := procapi.SessionSpec{Command: []string{"work"}}
		change(&spec)
		if _, err := normalize(spec); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
