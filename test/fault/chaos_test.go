package fault_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"time"

	"s0.run/api/client"
)

const (
	// Between two faults, and how long what was stopped or killed stays so.
	chaosPause  = 6 * time.Second
	longestDown = 4 * time.Second
	// toldWithin is when a sandbox that has ended by itself is shown as failed, at the latest.
	toldWithin = 5 * time.Second
)

// chaos breaks one thing after the other until the run is over, then repairs all.
func (r *run) chaos() {
	faults := []choice{
		{"kill noded", 6, func() { r.noded.kill(); r.wait(longestDown); r.again("") }},
		{"kill noded at a place", 10, r.killAtSomePlace},
		{"stop noded", 2, func() { r.noded.signal(syscall.SIGSTOP); r.wait(longestDown); r.noded.resume() }},
		{"kill api", 4, func() { r.api.kill(); r.wait(longestDown); r.startAPI() }},
		{"kill containerd", 4, func() { r.ctd.Stop(syscall.SIGKILL); r.wait(longestDown); r.ctd.Start(r) }},
		{"end containerd", 2, func() { r.ctd.Stop(syscall.SIGTERM); r.wait(longestDown); r.ctd.Start(r) }},
		{"kill noded and containerd", 3, func() {
			r.ctd.Stop(syscall.SIGKILL)
			r.noded.kill()
			r.wait(longestDown)
			r.ctd.Start(r)
			r.again("")
		}},
		{"kill the database", 2, func() { r.pg.Stop(); r.wait(longestDown); r.must(r.pg.Start()) }},
		{"kill netd", 3, func() { r.netd.kill(); r.wait(longestDown); r.startNetd() }},
		{"kill a procd", 3, r.killAProcd},
		{"kill a sentry", 2, func() { r.killPart("sentry") }},
		{"kill a gofer", 1, func() { r.killPart("gofer") }},
		{"kill a shim", 1, r.killShim},
	}
	for !r.over() {
		r.wait(chaosPause)
		fault := r.picked(faults)
		r.Logf("%s %s", time.Now().Format("15:04:05.000"), fault.name)
		r.count(fault.name)
		fault.do()
	}
	if r.noded.ended() {
		r.again("")
	}
}

func (r *run) wait(atMost time.Duration) {
	<-time.After(time.Duration(r.dice(int(atMost))))
}

// again starts noded with more failpoints beside the trace.
func (r *run) again(more string) { r.startNoded("*=trace(" + r.places + ")" + more) }

// killAtSomePlace has noded die at a place that it has come by, when it does so the next
// time, or does it by hand when it does not.
func (r *run) killAtSomePlace() {
	raw, err := os.ReadFile(r.places)
	r.must(err)
	places := strings.Fields(string(raw))
	place := places[r.dice(len(places))]
	r.Logf("  at %s", place)
	r.noded.kill()
	r.noded.start("S0_FAILPOINTS=*=trace(" + r.places + ");" + place + "=exit")
	select {
	case <-r.noded.exited:
		r.count("died at " + strings.Split(place, ".")[0])
	case <-time.After(2 * chaosPause):
		r.noded.kill()
	}
	r.wait(longestDown)
	r.again("")
}

// killPart kills a part of some sandbox that the machine has.
func (r *run) killPart(kind string) {
	id := r.victim(kind)
	if id == "" {
		return
	}
	r.hurts(id)
	for _, pid := range r.Pids(kind, id) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// victim is one of the sandboxes that have such a part; empty: none has.
func (r *run) victim(kind string) string {
	traces, err := r.Traces()
	if err != nil {
		return "" // containerd restarts
	}
	var ids []string
	for _, t := range traces {
		if t.Kind == kind && t.ID != "" {
			ids = append(ids, t.ID)
		}
	}
	if len(ids) == 0 {
		return ""
	}
	return ids[r.dice(len(ids))]
}

// killAProcd kills the first process of some sandbox. Whose it is is told in time.
func (r *run) killAProcd() {
	id := r.victim("sentry")
	if id == "" {
		return
	}
	r.hurts(id)
	before, err := r.c.GetSandbox(r.ctx(), id)
	if killed := r.killProcd(id); killed != nil || err != nil || before.Status != client.SandboxStateRunning {
		return // it has ended by itself, or is nobody's
	}
	r.wantTold(before, time.Now())
}

// wantTold: R6, a sandbox that has lost its procd is not shown as running for longer than
// is promised. One that was being paused stands still with its procd, and is not lost yet.
func (r *run) wantTold(of *client.Sandbox, since time.Time) {
	r.Helper()
	r.eventually("the loss of a procd to show", func() error {
		sb, err := r.c.GetSandbox(r.ctx(), of.ID)
		took := time.Since(since)
		if err != nil && again(err) {
			return err
		}
		if err != nil || sb.Status != of.Status || sb.RuntimeGeneration != of.RuntimeGeneration {
			r.Logf("  shown after %s", took)
			return nil
		}
		records, err := r.records()
		if err == nil && took > toldWithin && records[of.ID].State != "pausing" {
			r.report("R6: %s is shown as running %s after its procd was killed", of.ID, took)
			return nil
		}
		return errors.Join(err, errors.New("it is shown as running"))
	})
}

// killShim kills a shim, and with it whatever it has.
func (r *run) killShim() {
	traces, err := r.Traces()
	if err != nil {
		return
	}
	for _, t := range traces {
		if t.ID != "" {
			r.hurts(t.ID)
		}
	}
	for _, pid := range r.Pids("shim", "") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	// What was being made while the list was made is hurt, too.
	if traces, err := r.Traces(); err == nil {
		for _, t := range traces {
			if t.ID != "" {
				r.hurts(t.ID)
			}
		}
	}
}
