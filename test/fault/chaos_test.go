package fault_test

import (
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	// Between two faults, and how long what was stopped or killed stays so.
	chaosPause  = 6 * time.Second
	longestDown = 4 * time.Second
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
	traces, err := r.Traces()
	if err != nil {
		return // containerd restarts
	}
	var ids []string
	for _, t := range traces {
		if t.Kind == kind && t.ID != "" {
			ids = append(ids, t.ID)
		}
	}
	if len(ids) == 0 {
		return
	}
	id := ids[r.dice(len(ids))]
	r.hurts(id)
	for _, pid := range r.Pids(kind, id) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
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
