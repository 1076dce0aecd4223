package fakenode

import (
	"net/http"
	"strconv"
	"time"

	"s0.run/internal/procapi"
)

// LogEpoch is the epoch of every fake journal.
const LogEpoch = "0123456789abcdef"

// Print puts lines into a sandbox's journal.
func (p *Procd) Print(sandbox string, lines ...procapi.LogLine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.logs == nil {
		p.logs, p.printed = map[string][]procapi.LogLine{}, make(chan struct{})
	}
	for _, l := range lines {
		l.Seq = uint64(len(p.logs[sandbox]) + 1)
		p.logs[sandbox] = append(p.logs[sandbox], l)
	}
	close(p.printed)
	p.printed = make(chan struct{})
}

// serveLogs knows the cursor, the limit and the wait; other parts of a query it
// leaves to real procds.
func (p *Procd) serveLogs(w http.ResponseWriter, r *http.Request, sandbox string) {
	q := r.URL.Query()
	after, limit := 0, 1000
	if c := q.Get(procapi.LogAfter); c != "" {
		after, _ = strconv.Atoi(c[len(LogEpoch)+1:])
	}
	if l := q.Get(procapi.LogLimit); l != "" {
		limit, _ = strconv.Atoi(l)
	}
	ms, _ := strconv.Atoi(q.Get(procapi.LogWait))
	for deadline := time.After(time.Duration(ms) * time.Millisecond); ; {
		p.mu.Lock()
		all, printed := p.logs[sandbox], p.printed
		p.mu.Unlock()
		from := min(after, len(all))
		to := min(from+limit, len(all))
		if ms == 0 || from < to {
			reply(w, http.StatusOK, procapi.LogPage{Epoch: LogEpoch, Lines: append([]procapi.LogLine{}, all[from:to]...), Next: uint64(to), More: to < len(all)})
			return
		}
		select {
		case <-printed:
		case <-deadline:
			ms = 0
		case <-r.Context().Done():
			return
		}
	}
}
