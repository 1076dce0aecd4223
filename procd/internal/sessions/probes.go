package sessions

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/warm"
	"s0.run/procd/internal/probe"
	"s0.run/procd/internal/proc"
)

// probeOutput is what the log of a probe's command keeps: its end is told.
const probeOutput = 4 << 10

func checkProbes(spec *procapi.SessionSpec) error {
	total := 0
	for _, of := range []struct {
		name  string
		probe *procapi.SessionProbe
	}{{procapi.ProbeStartup, spec.Probes.Startup}, {procapi.ProbeReadiness, spec.Probes.Readiness}, {procapi.ProbeLiveness, spec.Probes.Liveness}} {
		p := of.probe
		if p == nil {
			continue
		}
		if err := p.Validate(); err != nil {
			return invalid("probes: %s: %v", of.name, err)
		}
		if p.GraceSeconds != nil && scale(*p.GraceSeconds, time.Second) < 0 {
			return invalid("probes: %s: stop_grace_period_seconds: want 0 to a year", of.name)
		}
		if of.name != procapi.ProbeReadiness && p.SuccessThreshold != 1 {
			return invalid("probes: %s: success_threshold must be 1", of.name)
		}
		total += size(p)
	}
	if total > procapi.MaxSessionProbes {
		return invalid("probes: more than %d bytes", procapi.MaxSessionProbes)
	}
	return nil
}

func size(p *procapi.SessionProbe) int {
	b, err := json.Marshal(p)
	if err != nil { // a type of ours that JSON can't have
		panic(err)
	}
	return len(b)
}

// probe has the attempt that was just started probed, until unprobe.
func (s *session) probe() {
	p := s.spec.Probes
	s.probed = procapi.SessionProbed{Started: p.Startup == nil, Ready: p.Startup == nil && p.Readiness == nil}
	if p == (procapi.SessionProbes{}) {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stopProbing = cancel
	pr := &prober{session: s, attempt: s.attempt, process: s.attempt.process, spec: s.spec}
	s.table.work.Go(func() { pr.run(ctx) })
}

// unprobe ends the probes of the live attempt: it is on its way out.
func (s *session) unprobe() {
	if s.stopProbing != nil {
		s.stopProbing()
		s.stopProbing = nil
	}
	s.probed = procapi.SessionProbed{}
}

// prober probes one attempt, beside the session's owner, whom it tells.
type prober struct {
	session *session
	attempt *attempt
	process Process
	spec    procapi.SessionSpec
}

// run returns when ctx has ended, or a probe that ends the attempt has failed.
func (pr *prober) run(ctx context.Context) {
	p := pr.spec.Probes
	if p.Startup != nil && !pr.repeat(ctx, procapi.ProbeStartup, p.Startup) {
		return
	}
	var both sync.WaitGroup
	defer both.Wait()
	if p.Readiness != nil {
		both.Go(func() { pr.repeat(ctx, procapi.ProbeReadiness, p.Readiness) })
	}
	if p.Liveness != nil {
		pr.repeat(ctx, procapi.ProbeLiveness, p.Liveness)
	}
}

// repeat attempts one probe until ctx ends, or what it says is final; true: it passed.
func (pr *prober) repeat(ctx context.Context, kind string, p *procapi.SessionProbe) (passed bool) {
	next := pr.attempt.started.Add(time.Duration(p.InitialDelaySeconds) * time.Second)
	for v := (verdict{probe: &p.Probe}); sleepUntil(ctx, next); {
		next = time.Now().Add(time.Duration(p.PeriodSeconds) * time.Second)
		err := probe.Attempt(ctx, &p.Probe, time.Duration(p.TimeoutSeconds)*time.Second, pr.subject())
		if ctx.Err() != nil {
			return false
		}
		v.add(err)
		goOn := false
		if pr.session.do(func() { goOn = pr.session.judge(pr.attempt, kind, v, p.GraceSeconds) }) != nil || !goOn {
			return v.decided && v.err == nil
		}
	}
	return false
}

// subject is the attempt, with commands beside it that see what it sees.
func (pr *prober) subject() probe.Subject {
	return probe.Subject{
		Running: func() error {
			if state := pr.process.State(); state != proc.StateRunning {
				return errors.New("it is " + state)
			}
			return nil
		},
		Start: func(argv []string) (probe.Command, error) {
			req := procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: argv}, Cwd: pr.spec.Cwd, EnvVars: pr.spec.Env, WaitUntilDone: true}
			return pr.session.table.cfg.Start(req, probeOutput)
		},
	}
}

// sleepUntil lets time pass; false: ctx ended.
func sleepUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// verdict is what the attempts of a probe so far say.
type verdict struct {
	probe *warm.Probe

	err     error // of the latest
	decided bool  // as many in a row as its threshold asks for agree with it
	fresh   bool  // the latest is the first of its kind, or fails in another way
	row     int   // how many in a row agree
}

func (v *verdict) add(err error) {
	v.fresh = v.row == 0 || (err == nil) != (v.err == nil) || err != nil && err.Error() != v.err.Error()
	if v.row > 0 && (err == nil) != (v.err == nil) {
		v.row = 0
	}
	v.err = err
	v.row++
	if err == nil {
		v.decided = v.row >= v.probe.SuccessThreshold
	} else {
		v.decided = v.row >= v.probe.FailureThreshold
	}
}

// judge does what a verdict asks for; false: the probe has nothing more to say.
func (s *session) judge(a *attempt, kind string, v verdict, grace *int64) (goOn bool) {
	if s.attempt != a || !s.live() || s.ending != "" {
		return false
	}
	was := s.probed
	if v.decided {
		s.conclude(kind, v.err == nil)
	}
	switch {
	case v.err != nil && (v.fresh || was != s.probed):
		s.emit(procapi.SessionEvent{Type: procapi.ProbeFailed, AttemptID: a.id, Reason: clip(kind + " probe failed: " + v.err.Error())})
	case was != s.probed:
		s.emit(procapi.SessionEvent{Type: procapi.ProbePassed, AttemptID: a.id, Reason: kind})
	}
	if !v.decided || kind == procapi.ProbeReadiness {
		return true
	}
	if v.err == nil {
		return kind == procapi.ProbeLiveness
	}
	s.condemn(kind, grace)
	return false
}

// conclude takes note of what a probe has decided.
func (s *session) conclude(kind string, passed bool) {
	switch {
	case kind == procapi.ProbeReadiness:
		s.probed.Ready = passed
	case kind == procapi.ProbeStartup && passed:
		s.probed.Started, s.probed.Ready = true, s.spec.Probes.Readiness == nil
	}
}

// condemn ends the attempt for a probe's failure; what follows is the policy's matter.
func (s *session) condemn(kind string, grace *int64) {
	reason := reasonLiveness
	if kind == procapi.ProbeStartup {
		reason = reasonStartup
	}
	s.end(reason)
	if grace != nil {
		s.due.kill = time.Now().Add(time.Duration(*grace) * time.Second)
	}
}
