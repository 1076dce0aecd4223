package sessions

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/warm"
	"s0.run/procd/internal/proc"
)

// check is a probe whose command the test answers for.
func check(name string, change func(*procapi.SessionProbe)) *procapi.SessionProbe {
	p := &procapi.SessionProbe{Probe: warm.Probe{Exec: []string{"probe", name}, PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}}
	if change != nil {
		change(p)
	}
	return p
}

// count counts the events of a session's that say so.
func (b *bundle) count(id, typ, reason string) (n int) {
	b.t.Helper()
	for _, ev := range b.events(id) {
		if ev.Type == typ && strings.HasPrefix(ev.Reason, reason) {
			n++
		}
	}
	return n
}

func (b *bundle) wantProbed(id string, started, ready bool) procapi.Session {
	b.t.Helper()
	s := b.see(id)
	if s.Probed == nil || *s.Probed != (procapi.SessionProbed{Started: started, Ready: ready}) {
		b.t.Fatalf("probed %+v, want started %v, ready %v; events %v", s.Probed, started, ready, b.types(id))
	}
	return s
}

// Ready is what the probe says, by its thresholds, each period anew.
func TestReadinessProbe(t *testing.T) {
	inBubble(t, func(b *bundle) {
		b.answer("ready", 1)
		id := b.create(func(s *procapi.SessionSpec) {
			s.Probes.Readiness = check("ready", func(p *procapi.SessionProbe) {
				p.InitialDelaySeconds, p.SuccessThreshold, p.FailureThreshold = 5, 2, 2
			})
		})
		b.wantProbed(id, true, false)
		b.pass(4 * time.Second)
		if n := b.asked("ready"); n != 0 {
			t.Errorf("probed %d times within the initial delay", n)
		}
		b.pass(time.Second) // at 5 s, and at 15 s again
		b.pass(10 * time.Second)
		if b.asked("ready") != 2 || b.count(id, procapi.ProbeFailed, `Readiness probe failed: command "probe": exited with code 1`) != 1 {
			t.Errorf("asked %d times; %v", b.asked("ready"), b.types(id))
		}
		b.answer("ready", 0)
		b.pass(10 * time.Second)
		b.wantProbed(id, true, false) // one success is not enough
		b.pass(10 * time.Second)
		b.wantProbed(id, true, true)
		b.answer("ready", 3)
		b.pass(10 * time.Second)
		b.wantProbed(id, true, true) // nor is one failure
		b.pass(10 * time.Second)
		b.wantProbed(id, true, false)
		if n := b.count(id, procapi.ProbePassed, "Readiness"); n != 1 {
			t.Errorf("it passed %d times; %v", n, b.types(id))
		}
		b.wantPhase(id, procapi.PhaseRunning) // whatever it says
	})
}

// What does not answer within its time has failed, and leaves no command behind.
func TestAProbeHasItsTime(t *testing.T) {
	inBubble(t, func(b *bundle) {
		b.answer("ready", silent)
		id := b.create(func(s *procapi.SessionSpec) {
			s.Probes.Readiness = check("ready", func(p *procapi.SessionProbe) { p.TimeoutSeconds, p.PeriodSeconds = 3, 5 })
		})
		b.pass(3 * time.Second)
		if b.count(id, procapi.ProbeFailed, `Readiness probe failed: command "probe": nothing within 3s`) != 1 {
			t.Errorf("events %v", b.types(id))
		}
		b.pass(2 * time.Second)
		if n := b.asked("ready"); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

// A failed liveness probe ends the attempt, and the policy says what follows.
func TestLivenessProbe(t *testing.T) {
	t.Parallel()
	for policy, phase := range map[string]string{procapi.RestartAlways: procapi.PhaseBackoff, procapi.RestartOnFailure: procapi.PhaseBackoff, procapi.RestartNever: procapi.PhaseFailed} {
		t.Run(policy, func(t *testing.T) {
			inBubble(t, func(b *bundle) {
				id := b.create(func(s *procapi.SessionSpec) {
					s.Lifecycle.Restart.Policy = policy
					s.Probes.Liveness = check("live", func(p *procapi.SessionProbe) { p.FailureThreshold = 2 })
				})
				b.wantProbed(id, true, true)
				b.pass(25 * time.Second)
				b.wantPhase(id, procapi.PhaseRunning)
				b.answer("live", 1)
				b.pass(5 * time.Second) // the first failure
				b.answer("live", 0)
				b.pass(10 * time.Second) // which does not count any more
				b.answer("live", 1)
				b.pass(10 * time.Second)
				b.wantProbed(id, true, true)
				b.latest(1).onTermination(func(f *fake) { f.end(0, proc.StateStopped) }) // obediently
				b.pass(10 * time.Second)
				if s := b.wantPhase(id, phase); s.Attempt.Reason != procapi.EndedByLiveness || s.Probed.Ready {
					t.Errorf("%+v, %+v", s.Attempt, s.Probed)
				}
				asked := b.asked("live")
				if phase != procapi.PhaseBackoff {
					b.pass(time.Minute)
					if b.asked("live") != asked {
						t.Error("what has ended is probed still")
					}
					return
				}
				b.answer("live", 0)
				b.pass(time.Second)
				if s := b.wantProbed(id, true, true); s.Phase != procapi.PhaseRunning || s.RestartCount != 1 {
					t.Errorf("then %+v", s)
				}
			})
		})
	}
}

// A probe has a grace of its own, in which what it condemned may end.
func TestAProbesGrace(t *testing.T) {
	inBubble(t, func(b *bundle) {
		id := b.create(func(s *procapi.SessionSpec) {
			s.Lifecycle.GraceSeconds = new(int64(3600))
			s.Probes.Liveness = check("live", func(p *procapi.SessionProbe) { p.FailureThreshold, p.GraceSeconds = 1, new(int64(7)) })
		})
		b.latest(1).onTermination(stubborn)
		b.answer("live", 1)
		b.pass(10 * time.Second)
		b.wantPhase(id, procapi.PhaseStopping)
		b.pass(6 * time.Second)
		b.wantPhase(id, procapi.PhaseStopping)
		b.pass(time.Second)
		if s := b.wantPhase(id, procapi.PhaseFailed); *s.Attempt.ExitCode != 137 {
			t.Errorf("%+v", s.Attempt)
		}
	})
}

// The others wait until the startup probe has passed.
func TestStartupProbe(t *testing.T) {
	inBubble(t, func(b *bundle) {
		b.answer("start", 1)
		b.answer("ready", 1)
		id := b.create(func(s *procapi.SessionSpec) {
			s.Probes.Startup = check("start", func(p *procapi.SessionProbe) { p.FailureThreshold, p.PeriodSeconds = 30, 1 })
			s.Probes.Readiness, s.Probes.Liveness = check("ready", nil), check("live", nil)
		})
		b.pass(20 * time.Second)
		b.wantProbed(id, false, false)
		if b.asked("ready")+b.asked("live") != 0 {
			t.Error("the others did not wait")
		}
		b.answer("start", 0)
		b.pass(time.Second)
		b.wantProbed(id, true, false)
		b.answer("ready", 0)
		b.pass(10 * time.Second)
		b.wantProbed(id, true, true)
		asked := b.asked("start")
		b.pass(time.Minute)
		if b.asked("start") != asked {
			t.Error("it is asked again")
		}
	})
	t.Run("alone", func(t *testing.T) { // it makes the attempt ready, too
		inBubble(t, func(b *bundle) {
			id := b.create(func(s *procapi.SessionSpec) { s.Probes.Startup = check("start", nil) })
			b.wantProbed(id, true, true)
		})
	})
	t.Run("failed", func(t *testing.T) {
		inBubble(t, func(b *bundle) {
			b.answer("start", 1)
			id := b.create(func(s *procapi.SessionSpec) { s.Probes.Startup = check("start", nil) })
			b.pass(20 * time.Second)
			if s := b.wantPhase(id, procapi.PhaseFailed); s.Attempt.Reason != procapi.EndedByStartup {
				t.Errorf("%+v", s.Attempt)
			}
		})
	})
}

// A session that is deleted or stopped while a probe runs waits for none.
func TestProbesEndWithTheirAttempt(t *testing.T) {
	inBubble(t, func(b *bundle) {
		b.answer("live", silent)
		id := b.create(func(s *procapi.SessionSpec) {
			s.Probes.Liveness = check("live", func(p *procapi.SessionProbe) { p.TimeoutSeconds = 3600 })
		})
		synctest.Wait()
		if _, err := b.SetDesiredState(id, procapi.DesiredStopped); err != nil {
			t.Fatal(err)
		}
		b.wantPhase(id, procapi.PhaseStopped)
		if _, err := b.SetDesiredState(id, procapi.DesiredRunning); err != nil {
			t.Fatal(err)
		}
		b.wantPhase(id, procapi.PhaseRunning)
		began := time.Now()
		if err := b.Delete(id); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %s", took)
		}
	})
}

func TestProbesAreChecked(t *testing.T) {
	inBubble(t, func(b *bundle) {
		for says, probes := range map[string]procapi.SessionProbes{
			"success_threshold":         {Liveness: check("x", func(p *procapi.SessionProbe) { p.SuccessThreshold = 2 })},
			"periodSeconds":             {Readiness: check("x", func(p *procapi.SessionProbe) { p.PeriodSeconds = 0 })},
			"exactly one":               {Startup: check("x", func(p *procapi.SessionProbe) { p.TCPPort = 80 })},
			"stop_grace_period_seconds": {Startup: check("x", func(p *procapi.SessionProbe) { p.GraceSeconds = new(int64(-1)) })},
			"bytes":                     {Startup: check(strings.Repeat("x", procapi.MaxSessionProbes), nil)},
		} {
			if _, err := b.Create("", procapi.SessionSpec{Command: []string{"work"}, Probes: probes}); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("want %s; got %v", says, err)
			}
		}
	})
}
