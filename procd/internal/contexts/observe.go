package contexts

import (
	"maps"
	"slices"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

// maxListBytes bounds what an event shows of a command, and of variables' names.
const maxListBytes = 8 << 10

// started tells that a context's process has begun.
func (t *Table) started(e *entry, live *Live) {
	if t.cfg.Observe == nil {
		return
	}
	req := e.plan.req
	p := procapi.ProcessStarted{
		ProcessID: e.id, ProcessType: req.Type, PID: live.Process.PID(), Cwd: e.plan.dir, PTYSize: req.PTYSize,
		EnvNames: shorten(slices.Sorted(maps.Keys(req.EnvVars))),
	}
	if req.Type == typeREPL {
		p.Alias = e.plan.repl.Name
	} else {
		p.Command = shorten(req.CMD.Command)
	}
	t.cfg.Observe(procapi.EventProcessStarted, p)
}

// shorten cuts what an event has no room for.
func shorten(words []string) []string {
	room := maxListBytes
	var short []string
	for _, w := range words {
		if len(w) >= room {
			return append(short, w[:room]+"…")
		}
		room -= len(w) + 1
		short = append(short, w)
	}
	return short
}

// ended tells how a context's process has ended.
func (t *Table) ended(e *entry, live *Live, began time.Time) {
	if t.cfg.Observe == nil {
		return
	}
	exit := live.Process.Exit()
	p := procapi.ProcessEnded{
		ProcessID: e.id, ProcessType: e.plan.req.Type, PID: live.Process.PID(), ExitCode: exit.ExitCode,
		DurationMS: t.cfg.Now().Sub(began).Milliseconds(), State: exit.State,
	}
	if live.Process.Terminal() {
		p.StdoutPreview = preview(live.Process.Log())
	} else {
		p.StdoutPreview, p.StderrPreview = preview(live.Process.Log(), proc.Stdout), preview(live.Process.Log(), proc.Stderr)
	}
	kind := procapi.EventProcessExited
	if exit.State == proc.StateCrashed || exit.State == proc.StateKilled {
		kind = procapi.EventProcessCrashed
	}
	t.cfg.Observe(kind, p)
}

// previewWindow is how much of a log's end is looked at for one source's.
const previewWindow = 16 * procapi.PreviewBytes

// preview is the end of what a process printed.
func preview(log *proc.Log, sources ...proc.Source) string {
	end := log.End()
	data, _ := log.Collect(end-min(end, previewWindow), end, sources...)
	return string(data[max(0, len(data)-procapi.PreviewBytes):])
}
