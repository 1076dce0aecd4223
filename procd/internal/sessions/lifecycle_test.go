package sessions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

func TestASessionFromItsCreationToItsDeletion(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) { s.Name, s.Env = "worker", map[string]string{"A": "1"} })
		s := b.wantPhase(id, procapi.PhaseRunning)
		if s.SpecVersion != 1 || s.RuntimeGeneration != 3 || s.Attempt.Number != 1 || s.Attempt.PID != 4711 || s.Spec.IO.Mode != procapi.IOPipes {
			t.Errorf("%+v", s)
		}
		p := b.latest(1)
		if p.req.CMD.Command[0] != "work" || p.req.EnvVars["A"] != "1" || p.req.PTYSize != nil {
			t.Errorf("started %+v", p.req)
		}
		p.print("hello ")
		p.log.Append(proc.Stderr, []byte("oh"))
		synctest.Wait()
		p.end(0, proc.StateStopped)
		s = b.wantPhase(id, procapi.PhaseExited)
		if s.Attempt.Reason != reasonExited || s.Attempt.ExitCode == nil || *s.Attempt.ExitCode != 0 || s.Attempt.FinishedAt.IsZero() {
			t.Errorf("attempt %+v", s.Attempt)
		}
		b.wantTypes(id, "session.created", "attempt.started", "session.starting", "session.running", "output", "output", "attempt.exited:exited", "session.exited:exited")
		events := b.events(id)
		if string(events[4].Data) != "hello " || events[4].Stream != "stdout" || events[5].Stream != "stderr" || events[4].AttemptID != s.Attempt.ID || events[4].SessionID != id || events[4].RuntimeGeneration != 3 {
			t.Errorf("output %+v", events[4:6])
		}
		for i, ev := range events {
			if ev.Seq != uint64(i+1) {
				t.Errorf("event %d has number %d", i, ev.Seq)
			}
		}
		if err := b.Delete(id); err != nil {
			t.Fatal(err)
		}
		_, err := b.Get(id)
		wantCode(t, err, procapi.CodeSessionNotFound)
		wantCode(t, b.Delete(id), procapi.CodeSessionNotFound)
	})
}

func TestRestartPolicies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy string
		code   int
		phase  string
	}{
		{procapi.RestartNever, 0, procapi.PhaseExited},
		{procapi.RestartNever, 1, procapi.PhaseFailed},
		{procapi.RestartOnFailure, 0, procapi.PhaseExited},
		{procapi.RestartOnFailure, 1, procapi.PhaseBackoff},
		{procapi.RestartAlways, 0, procapi.PhaseBackoff},
		{procapi.RestartAlways, 1, procapi.PhaseBackoff},
	} {
		t.Run(fmt.Sprintf("%s after %d", c.policy, c.code), func(t *testing.T) {
			inBubble(t, func(b *bundle) {
				id := b.create(func(s *procapi.SessionSpec) { s.Lifecycle.Restart.Policy = c.policy })
				b.latest(1).end(c.code, proc.StateStopped)
				b.wantPhase(id, c.phase)
				b.pass(time.Second)
				if c.phase == procapi.PhaseBackoff {
					if s := b.wantPhase(id, procapi.PhaseRunning); s.RestartCount != 1 || s.Attempt.Number != 2 {
						t.Errorf("%+v", s)
					}
				} else {
					b.latest(1)
				}
			})
		})
	}
}

func TestBackoffDoublesAndIsForgottenAfterAGoodTime(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) {
			s.Lifecycle.Restart = procapi.SessionRestart{Policy: procapi.RestartAlways, InitialBackoffMS: 100, MaxBackoffMS: 300}
		})
		for i, wait := range []time.Duration{100, 200, 300, 300} {
			b.latest(i+1).end(1, proc.StateCrashed)
			synctest.Wait()
			b.pass(wait*time.Millisecond - 1)
			b.wantPhase(id, procapi.PhaseBackoff)
			b.pass(1)
			b.wantPhase(id, procapi.PhaseRunning)
		}
		b.pass(300 * time.Millisecond)
		b.latest(5).end(1, proc.StateCrashed)
		synctest.Wait()
		b.pass(100 * time.Millisecond)
		b.latest(6)
	})
}

func TestTooManyRestarts(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) {
			s.Lifecycle.Restart = procapi.SessionRestart{Policy: procapi.RestartOnFailure, MaxRestarts: 2, WindowSeconds: 60}
		})
		die := func(n int) {
			b.latest(n).end(2, proc.StateCrashed)
			synctest.Wait()
			b.pass(10 * time.Second)
		}
		die(1)
		die(2)
		b.pass(time.Minute) // the first two do not count any more
		die(3)
		die(4)
		die(5)
		s := b.wantPhase(id, procapi.PhaseFailed)
		if s.RestartCount != 4 {
			t.Errorf("%d restarts", s.RestartCount)
		}
		if types := b.types(id); types[len(types)-1] != "session.failed:too_many_restarts" {
			t.Errorf("ends with %s", types[len(types)-1])
		}
		if s, err := b.SetDesiredState(id, procapi.DesiredRunning); err != nil || s.Phase != procapi.PhaseRunning {
			t.Fatalf("%+v, %v", s, err)
		}
		die(6)
		b.wantPhase(id, procapi.PhaseRunning) // whoever asks for it gives it new restarts
	})
}

func TestAnAttemptThatCannotStart(t *testing.T) {
	inBubble(t, func(b *bundle) {
		b.refuseStarts(invalid("starting %q: no such file", "work"))
		_, err := b.Create("", procapi.SessionSpec{Command: []string{"work"}})
		wantCode(t, err, "invalid_request")
		if n := len(b.List().Sessions); n != 0 {
			t.Fatalf("%d sessions are left", n)
		}
		b.refuseStarts(nil)
		id := b.create(func(s *procapi.SessionSpec) { s.Lifecycle.Restart.Policy = procapi.RestartOnFailure })
		b.refuseStarts(errors.New("a secret"))
		b.latest(1).end(1, proc.StateCrashed)
		synctest.Wait()
		b.pass(time.Second)
		s := b.wantPhase(id, procapi.PhaseBackoff)
		if s.Attempt.Number != 2 || s.Attempt.Reason != "start_failed: internal error" || s.Attempt.PID != 0 {
			t.Errorf("%+v", s.Attempt)
		}
		b.refuseStarts(nil)
		b.pass(2 * time.Second)
		b.wantPhase(id, procapi.PhaseRunning)
	})
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	ready := func(r procapi.SessionReadiness) func(*procapi.SessionSpec) {
		return func(s *procapi.SessionSpec) { s.Readiness = r }
	}
	t.Run("delay", func(t *testing.T) {
		inBubble(t, func(b *bundle) {
			id := b.create(ready(procapi.SessionReadiness{Type: procapi.ReadyDelay, DelayMS: 500}))
			b.pass(499 * time.Millisecond)
			b.wantPhase(id, procapi.PhaseStarting)
			b.pass(time.Millisecond)
			b.wantPhase(id, procapi.PhaseRunning)
		})
	})
	t.Run("output", func(t *testing.T) {
		inBubble(t, func(b *bundle) {
			id := b.create(ready(procapi.SessionReadiness{Type: procapi.ReadyOutput, Output: "listening on"}))
			p := b.latest(1)
			p.print("not list")
			synctest.Wait()
			p.log.Append(proc.Stderr, []byte("ening on"))
			b.wantPhase(id, procapi.PhaseStarting) // of two streams
			p.print("ening o")
			b.wantPhase(id, procapi.PhaseStarting)
			p.print("n 80")
			b.wantPhase(id, procapi.PhaseRunning)
		})
	})
	t.Run("timeout", func(t *testing.T) {
		inBubble(t, func(b *bundle) {
			id := b.create(func(s *procapi.SessionSpec) {
				s.Readiness = procapi.SessionReadiness{Type: procapi.ReadyOutput, Output: "up", TimeoutMS: 2000}
				s.Lifecycle.Restart.Policy = procapi.RestartOnFailure
			})
			b.latest(1).onTermination(func(f *fake) { f.end(0, proc.StateStopped) })
			b.pass(2 * time.Second)
			if s := b.wantPhase(id, procapi.PhaseBackoff); s.Attempt.Reason != reasonUnready {
				t.Errorf("%+v", s.Attempt)
			}
			b.pass(time.Second)
			b.latest(2).print("up")
			b.wantPhase(id, procapi.PhaseRunning)
			b.pass(time.Minute)
			b.wantPhase(id, procapi.PhaseRunning)
		})
	})
}

func TestStopAsksThenKills(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) { s.Lifecycle.GraceSeconds = new(int64(5)) })
		p := b.latest(1)
		p.onTermination(stubborn)
		if s, err := b.SetDesiredState(id, procapi.DesiredStopped); err != nil || s.Phase != procapi.PhaseStopping {
			t.Fatalf("%+v, %v", s, err)
		}
		b.pass(5*time.Second - 1)
		b.wantPhase(id, procapi.PhaseStopping)
		b.pass(1)
		s := b.wantPhase(id, procapi.PhaseStopped)
		if s.Attempt.Reason != reasonStopped || *s.Attempt.ExitCode != 137 || s.Spec.Lifecycle.DesiredState != procapi.DesiredStopped {
			t.Errorf("%+v", s)
		}
		if !slices.Equal(p.signals, []syscall.Signal{syscall.SIGTERM, syscall.SIGCONT}) {
			t.Errorf("signals %v", p.signals)
		}
		b.pass(time.Hour)
		b.latest(1)
		if s, err := b.SetDesiredState(id, procapi.DesiredRunning); err != nil || s.Phase != procapi.PhaseRunning || s.Attempt.Number != 2 {
			t.Fatalf("%+v, %v", s, err)
		}
	})
}

func TestRunAgainWhileItStops(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(nil)
		b.latest(1).onTermination(stubborn)
		for _, state := range []string{procapi.DesiredStopped, procapi.DesiredRunning} {
			if _, err := b.SetDesiredState(id, state); err != nil {
				t.Fatal(err)
			}
		}
		b.wantPhase(id, procapi.PhaseStopping)
		b.pass(10 * time.Second)
		b.wantPhase(id, procapi.PhaseRunning)
		b.latest(2)
	})
}

func TestStopInBackoff(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) { s.Lifecycle.Restart.Policy = procapi.RestartAlways })
		b.latest(1).end(1, proc.StateCrashed)
		b.wantPhase(id, procapi.PhaseBackoff)
		if _, err := b.SetDesiredState(id, procapi.DesiredStopped); err != nil {
			t.Fatal(err)
		}
		b.pass(time.Hour)
		b.wantPhase(id, procapi.PhaseStopped)
		b.latest(1)
	})
}

func TestNoRestartsAnyMore(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) { s.Lifecycle.Restart.Policy = procapi.RestartAlways })
		b.latest(1).end(1, proc.StateCrashed)
		b.wantPhase(id, procapi.PhaseBackoff)
		if _, err := b.Update(id, procapi.SessionSpec{Command: []string{"work"}}); err != nil {
			t.Fatal(err)
		}
		b.pass(time.Hour)
		b.wantPhase(id, procapi.PhaseFailed)
		b.latest(1)
	})
}

func TestIdleAndLifetime(t *testing.T) {
	t.Parallel()
	t.Run("idle", func(t *testing.T) {
		inBubble(t, func(b *bundle) {
			id := b.create(func(s *procapi.SessionSpec) { s.Lifecycle.IdleSeconds = 10 })
			p := b.latest(1)
			b.pass(9 * time.Second)
			p.print("still here")
			b.pass(9 * time.Second)
			if _, err := b.Input(id, procapi.SessionInput{InputID: "1", Data: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			b.pass(9 * time.Second)
			b.wantPhase(id, procapi.PhaseRunning)
			b.pass(time.Second)
			if s := b.wantPhase(id, procapi.PhaseStopped); s.Attempt.Reason != reasonIdle {
				t.Errorf("%+v", s.Attempt)
			}
		})
	})
	t.Run("lifetime, attempts together", func(t *testing.T) {
		inBubble(t, func(b *bundle) {
			id := b.create(func(s *procapi.SessionSpec) {
				s.Lifecycle.LifetimeSeconds = 60
				s.Lifecycle.Restart.Policy = procapi.RestartAlways
			})
			b.pass(30 * time.Second)
			b.latest(1).end(1, proc.StateCrashed)
			b.pass(29 * time.Second)
			b.wantPhase(id, procapi.PhaseRunning)
			b.pass(time.Second)
			if s := b.wantPhase(id, procapi.PhaseStopped); s.Attempt.Reason != reasonLifetime || s.Attempt.Number != 2 {
				t.Errorf("%+v", s.Attempt)
			}
			b.pass(time.Hour)
			b.latest(2)
		})
	})
	t.Run("lifetime in backoff", func(t *testing.T) {
		inBubble(t, func(b *bundle) {
			id := b.create(func(s *procapi.SessionSpec) {
				s.Lifecycle.LifetimeSeconds = 60
				s.Lifecycle.Restart = procapi.SessionRestart{Policy: procapi.RestartAlways, InitialBackoffMS: 600_000}
			})
			b.latest(1).end(1, proc.StateCrashed)
			b.pass(time.Minute)
			b.wantPhase(id, procapi.PhaseStopped)
		})
	})
}

func TestAttempts(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(nil)
		_, err := b.Attempt(context.Background(), id, false)
		wantCode(t, err, procapi.CodeAttemptRunning)
		b.latest(1).onTermination(stubborn)
		s, err := b.Attempt(context.Background(), id, true)
		if err != nil || s.Phase != procapi.PhaseRunning || s.Attempt.Number != 2 || s.RestartCount != 0 {
			t.Fatalf("%+v, %v", s, err)
		}
		b.wantTypes(id, "session.created", "attempt.started", "session.starting", "session.running", "session.stopping:replaced",
			"attempt.exited:replaced", "attempt.started", "session.starting", "session.running")
		b.latest(2).end(0, proc.StateStopped)
		b.wantPhase(id, procapi.PhaseExited)
		if s, err := b.Attempt(context.Background(), id, false); err != nil || s.Attempt.Number != 3 {
			t.Fatalf("%+v, %v", s, err)
		}
	})
}

func TestUpdate(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(nil)
		update := func(change func(*procapi.SessionSpec)) procapi.Session {
			t.Helper()
			spec := procapi.SessionSpec{Command: []string{"work"}}
			change(&spec)
			s, err := b.Update(id, spec)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		if s := update(func(s *procapi.SessionSpec) { s.Name = "renamed" }); s.SpecVersion != 2 || s.Spec.Name != "renamed" || s.Phase != procapi.PhaseRunning {
			t.Errorf("%+v", s)
		}
		b.latest(1)
		update(func(s *procapi.SessionSpec) { s.Command = []string{"other"} })
		if p := b.latest(2); p.req.CMD.Command[0] != "other" {
			t.Errorf("started %+v", p.req)
		}
		update(func(s *procapi.SessionSpec) { s.Lifecycle.DesiredState = procapi.DesiredStopped })
		b.wantPhase(id, procapi.PhaseStopped)
		update(func(*procapi.SessionSpec) {})
		b.wantPhase(id, procapi.PhaseRunning)
		_, err := b.Update(id, procapi.SessionSpec{})
		wantCode(t, err, "invalid_request")
		if s := b.see(id); s.SpecVersion != 5 {
			t.Errorf("version %d", s.SpecVersion)
		}
	})
}
