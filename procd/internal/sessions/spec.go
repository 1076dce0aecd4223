package sessions

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"s0.run/internal/procapi"
)

// What a spec means by what it leaves out.
const (
	defaultTerm           = "xterm-256color"
	defaultRows           = 24
	defaultCols           = 80
	defaultInitialBackoff = 1000   // milliseconds
	defaultMaxBackoff     = 30_000 // milliseconds
	defaultGrace          = int64(10)
	maxTerm               = 64
)

// normalize checks a spec and fills in its defaults. What starting the command
// finds out is not checked here.
func normalize(spec procapi.SessionSpec) (procapi.SessionSpec, error) {
	for _, step := range []func(*procapi.SessionSpec) error{
		checkName, checkCommand, normalizeIO, normalizeLifecycle, normalizeReadiness, normalizeRetention, checkProbes,
	} {
		if err := step(&spec); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

func checkName(spec *procapi.SessionSpec) error {
	if len(spec.Name) > procapi.MaxSessionName || strings.ContainsFunc(spec.Name, unicode.IsControl) {
		return invalid("name: want at most %d bytes without control characters", procapi.MaxSessionName)
	}
	return nil
}

func checkCommand(spec *procapi.SessionSpec) error {
	switch {
	case len(spec.Command) == 0 || spec.Command[0] == "":
		return invalid("command is required")
	case len(spec.Command) > procapi.MaxArgs:
		return invalid("command: more than %d arguments", procapi.MaxArgs)
	case len(spec.Env) > procapi.MaxSessionEnv:
		return invalid("env: more than %d variables", procapi.MaxSessionEnv)
	}
	total := len(spec.Cwd)
	for i, arg := range spec.Command {
		if strings.ContainsRune(arg, 0) {
			return invalid("command[%d] contains a NUL byte", i)
		}
		total += len(arg)
	}
	for name, value := range spec.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return invalid("environment variable %.64q: a name is not empty and has no \"=\", and neither has a NUL byte", name)
		}
		total += len(name) + len(value)
	}
	if total > procapi.MaxSessionSpec {
		return invalid("command and environment: more than %d bytes", procapi.MaxSessionSpec)
	}
	return nil
}

func normalizeIO(spec *procapi.SessionSpec) error {
	io := &spec.IO
	switch io.Mode = cmp.Or(io.Mode, procapi.IOPipes); {
	case io.Mode == procapi.IOPipes && io.Terminal != nil:
		return invalid("io.terminal is for mode %s", procapi.IOPTY)
	case io.Mode == procapi.IOPipes:
		return nil
	case io.Mode != procapi.IOPTY:
		return invalid("io.mode: want %s or %s", procapi.IOPipes, procapi.IOPTY)
	}
	var t procapi.SessionTerminal
	if io.Terminal != nil {
		t = *io.Terminal
	}
	t.Rows, t.Cols, t.Term = cmp.Or(t.Rows, defaultRows), cmp.Or(t.Cols, defaultCols), cmp.Or(t.Term, defaultTerm)
	if len(t.Term) > maxTerm || strings.ContainsFunc(t.Term, unicode.IsControl) {
		return invalid("io.terminal.term: want at most %d bytes without control characters", maxTerm)
	}
	io.Terminal = &t
	return nil
}

func normalizeLifecycle(spec *procapi.SessionSpec) error {
	l := &spec.Lifecycle
	l.DesiredState = cmp.Or(l.DesiredState, procapi.DesiredRunning)
	l.RuntimeRecovery = cmp.Or(l.RuntimeRecovery, procapi.RecoveryRestart)
	r := &l.Restart
	r.Policy = cmp.Or(r.Policy, procapi.RestartNever)
	r.InitialBackoffMS = cmp.Or(r.InitialBackoffMS, defaultInitialBackoff)
	r.MaxBackoffMS = cmp.Or(r.MaxBackoffMS, max(defaultMaxBackoff, r.InitialBackoffMS))
	if l.GraceSeconds == nil {
		l.GraceSeconds = new(defaultGrace)
	}
	switch {
	case !slices.Contains([]string{procapi.DesiredRunning, procapi.DesiredStopped}, l.DesiredState):
		return invalid("lifecycle.desired_state: want %s or %s", procapi.DesiredRunning, procapi.DesiredStopped)
	case !slices.Contains([]string{procapi.RestartNever, procapi.RestartOnFailure, procapi.RestartAlways}, r.Policy):
		return invalid("lifecycle.restart.policy: want %s, %s or %s", procapi.RestartNever, procapi.RestartOnFailure, procapi.RestartAlways)
	case !slices.Contains([]string{procapi.RecoveryRestart, procapi.RecoveryStop}, l.RuntimeRecovery):
		return invalid("lifecycle.runtime_recovery: want %s or %s", procapi.RecoveryRestart, procapi.RecoveryStop)
	case r.MaxRestarts < 0 || r.MaxRestarts > procapi.MaxSessionRestarts:
		return invalid("lifecycle.restart.max_restarts: want 0 to %d", procapi.MaxSessionRestarts)
	case r.MaxBackoffMS < r.InitialBackoffMS:
		return invalid("lifecycle.restart: max_backoff_ms is below initial_backoff_ms")
	}
	return checkTimes(map[string]time.Duration{
		"lifecycle.idle_timeout_seconds":       scale(l.IdleSeconds, time.Second),
		"lifecycle.max_lifetime_seconds":       scale(l.LifetimeSeconds, time.Second),
		"lifecycle.stop_grace_period_seconds":  scale(*l.GraceSeconds, time.Second),
		"lifecycle.restart.window_seconds":     scale(r.WindowSeconds, time.Second),
		"lifecycle.restart.initial_backoff_ms": scale(r.InitialBackoffMS, time.Millisecond),
		"lifecycle.restart.max_backoff_ms":     scale(r.MaxBackoffMS, time.Millisecond),
	})
}

// scale is n units, -1 if that is no time that a spec may name.
func scale(n int64, unit time.Duration) time.Duration {
	if n < 0 || n > int64(procapi.MaxSessionTime/unit) {
		return -1
	}
	return time.Duration(n) * unit
}

func checkTimes(times map[string]time.Duration) error {
	for _, name := range slices.Sorted(maps.Keys(times)) {
		if times[name] < 0 {
			return invalid("%s: want 0 to a year", name)
		}
	}
	return nil
}

func normalizeReadiness(spec *procapi.SessionSpec) error {
	r := &spec.Readiness
	r.Type = cmp.Or(r.Type, procapi.ReadyProcess)
	switch {
	case !slices.Contains([]string{procapi.ReadyProcess, procapi.ReadyDelay, procapi.ReadyOutput}, r.Type):
		return invalid("readiness.type: want %s, %s or %s", procapi.ReadyProcess, procapi.ReadyDelay, procapi.ReadyOutput)
	case r.Type == procapi.ReadyOutput && r.Output == "":
		return invalid("readiness.output is required for type %s", procapi.ReadyOutput)
	case len(r.Output) > procapi.MaxReadinessOutput:
		return invalid("readiness.output: more than %d bytes", procapi.MaxReadinessOutput)
	}
	return checkTimes(map[string]time.Duration{
		"readiness.delay_ms":   scale(r.DelayMS, time.Millisecond),
		"readiness.timeout_ms": scale(r.TimeoutMS, time.Millisecond),
	})
}

func normalizeRetention(spec *procapi.SessionSpec) error {
	r := &spec.Retention
	r.MaxBytes = cmp.Or(r.MaxBytes, procapi.DefaultRetention)
	if r.MaxBytes < procapi.MinRetention || r.MaxBytes > procapi.MaxRetention {
		return invalid("event_retention.max_bytes: want %d to %d", procapi.MinRetention, procapi.MaxRetention)
	}
	return checkTimes(map[string]time.Duration{"event_retention.max_age_seconds": scale(r.MaxAgeSeconds, time.Second)})
}

// sameProcess tells whether a process of the one spec would be one of the other.
func sameProcess(a, b procapi.SessionSpec) bool {
	sameTerminal := a.IO.Terminal == b.IO.Terminal || a.IO.Terminal != nil && b.IO.Terminal != nil && *a.IO.Terminal == *b.IO.Terminal
	return slices.Equal(a.Command, b.Command) && a.Cwd == b.Cwd && maps.Equal(a.Env, b.Env) &&
		a.IO.Mode == b.IO.Mode && sameTerminal && a.Readiness == b.Readiness && reflect.DeepEqual(a.Probes, b.Probes)
}

// command is the request that starts a spec's command, on a terminal of the given
// size if it has one.
func command(spec procapi.SessionSpec, size procapi.PTYSize) procapi.CreateContext {
	req := procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: spec.Command}, Cwd: spec.Cwd, EnvVars: spec.Env}
	if spec.IO.Mode == procapi.IOPTY {
		req.PTYSize = &size
		req.EnvVars = map[string]string{"TERM": spec.IO.Terminal.Term}
		maps.Copy(req.EnvVars, spec.Env)
	}
	return req
}
