package warm

import (
	"context"
	"errors"
	"sync"
	"time"

	"s0.run/internal/warm"
	"s0.run/procd/internal/contexts"
	"s0.run/procd/internal/probe"
	"s0.run/procd/internal/proc"
)

// firstLook is the pause after a probe's first attempt. Until a probe has passed
// once the pause doubles up to the probe's period, so that a slot is ready soon
// after its processes are. Attempts between two periods count as successes alone.
const firstLook = 50 * time.Millisecond

// probe judges one process until ctx ends: its prompt first if it is a REPL, then
// its startup probe, then the other two beside each other.
func (m *Manager) probe(ctx context.Context, p *process, live *contexts.Live) {
	if live.Session != nil {
		m.set(p, false, "has shown no prompt yet")
		if live.Session.WaitReady(ctx) != nil {
			return
		}
	}
	if p.spec.Startup != nil && !m.startup(ctx, p, live) {
		return
	}
	var loops sync.WaitGroup
	defer loops.Wait()
	if p.spec.Liveness != nil {
		loops.Go(func() { m.liveness(ctx, p, live) })
	}
	if p.spec.Readiness == nil {
		m.set(p, true, "")
		return
	}
	m.readiness(ctx, p, live)
}

// startup returns true when the process has passed.
func (m *Manager) startup(ctx context.Context, p *process, live *contexts.Live) (passed bool) {
	m.judge(ctx, p, live, p.spec.Startup, func(v verdict) bool {
		switch {
		case v.decided && v.err != nil:
			m.condemn(p, live, "did not start: "+v.err.Error())
		case v.err != nil:
			m.set(p, false, "has not started yet: "+v.err.Error())
		}
		passed = v.decided && v.err == nil
		return !v.decided
	})
	return passed
}

func (m *Manager) readiness(ctx context.Context, p *process, live *contexts.Live) {
	ready := false
	m.judge(ctx, p, live, p.spec.Readiness, func(v verdict) bool {
		if v.decided {
			ready = v.err == nil
		}
		switch {
		case ready:
			m.set(p, true, "")
		case v.err != nil:
			m.set(p, false, "is not ready: "+v.err.Error())
		}
		return true
	})
}

func (m *Manager) liveness(ctx context.Context, p *process, live *contexts.Live) {
	m.judge(ctx, p, live, p.spec.Liveness, func(v verdict) bool {
		if v.decided && v.err != nil {
			m.condemn(p, live, "is not alive: "+v.err.Error())
			return false
		}
		return true
	})
}

// verdict is an attempt's result. It is decided when as many attempts in a row as
// the probe's threshold asks for have agreed.
type verdict struct {
	err     error
	decided bool
}

// judge repeats a probe until ctx ends, the process is a tenant's, or tell returns
// false.
func (m *Manager) judge(ctx context.Context, p *process, live *contexts.Live, probe *warm.Probe, tell func(verdict) bool) {
	period := time.Duration(probe.PeriodSeconds) * m.second
	pause := time.Duration(probe.InitialDelaySeconds) * m.second
	look := min(firstLook, period)
	count := counter{probe: probe, period: period}
	for sleep(ctx, pause) {
		if !p.context.Kept() {
			m.set(p, true, "")
			return
		}
		began := time.Now()
		err := m.attempt(ctx, p, live, probe)
		if ctx.Err() != nil {
			return
		}
		if !tell(verdict{err, count.decides(err, began)}) {
			return
		}
		if count.passed {
			pause = period
		} else {
			pause = look
			look = min(2*look, period)
		}
	}
}

// sleep lets time pass; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// counter counts attempts that agree.
type counter struct {
	probe  *warm.Probe
	period time.Duration

	passed    bool // once
	successes int
	failures  int
	counted   time.Time // when the last failure, or the first attempt, was counted
}

// decides takes the result of an attempt and tells whether it decides.
func (c *counter) decides(err error, at time.Time) bool {
	if err == nil {
		c.failures = 0
		c.successes++
		decided := c.successes >= c.probe.SuccessThreshold
		c.passed = c.passed || decided
		return decided
	}
	c.successes = 0
	if c.counted.IsZero() {
		c.counted = at
	}
	if !c.passed && at.Sub(c.counted) < c.period {
		return false
	}
	c.counted = at
	c.failures++
	return c.failures >= c.probe.FailureThreshold
}

// attempt runs a probe's action once.
func (m *Manager) attempt(ctx context.Context, p *process, live *contexts.Live, of *warm.Probe) error {
	return probe.Attempt(ctx, of, time.Duration(of.TimeoutSeconds)*m.second, probe.Subject{
		Running: func() error {
			if state := live.Process.State(); state != proc.StateRunning {
				return errors.New("it is " + state)
			}
			return nil
		},
		Start: func(argv []string) (probe.Command, error) {
			cfg, err := p.context.Beside(argv)
			if err != nil {
				return nil, err
			}
			return proc.Start(m.cfg.Reaper, cfg)
		},
	})
}
