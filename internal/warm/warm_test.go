package warm

import (
	"strings"
	"testing"
)

func good() Process {
	p := Probe{HTTP: &HTTPGet{Path: "/healthz?x=1", Port: 8000, Headers: []Header{{"X-A", "b"}}}}.WithDefaults()
	return Process{Name: "web", Type: CMD, Command: []string{"python3", "-m", "http.server"}, Startup: &p, Readiness: &p, Liveness: &p}
}

func TestValidateAccepts(t *testing.T) {
	t.Parallel()
	exec, tcp, process := Probe{Exec: []string{"true"}}.WithDefaults(), Probe{TCPPort: 1}.WithDefaults(), Probe{Process: true}.WithDefaults()
	if err := Validate([]Process{
		good(),
		{Name: "python", Type: REPL},
		{Name: "node-1", Type: REPL, Alias: "node", Cwd: "/srv", Env: map[string]string{"A": "b"}, Startup: &exec, Readiness: &tcp, Liveness: &process},
	}); err != nil {
		t.Error(err)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	got := Probe{Process: true, PeriodSeconds: 1}.WithDefaults()
	if want := (Probe{Process: true, PeriodSeconds: 1, TimeoutSeconds: 5, SuccessThreshold: 1, FailureThreshold: 3}); got.PeriodSeconds != want.PeriodSeconds ||
		got.TimeoutSeconds != want.TimeoutSeconds || got.SuccessThreshold != want.SuccessThreshold || got.FailureThreshold != want.FailureThreshold {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestValidateRefuses(t *testing.T) {
	t.Parallel()
	for says, spoil := range map[string]func(*Process){
		"name":                           func(p *Process) { p.Name = "" },
		`name "A`:                        func(p *Process) { p.Name = "A b" },
		"want repl or cmd":               func(p *Process) { p.Type = "daemon" },
		"command is required":            func(p *Process) { p.Command = nil },
		"must not have a command":        func(p *Process) { p.Type = REPL },
		"alias is for type repl":         func(p *Process) { p.Alias = "python" },
		`alias "../x" is not`:            func(p *Process) { p.Type, p.Command, p.Alias = REPL, nil, "../x" },
		"without NUL":                    func(p *Process) { p.Command = []string{"a\x00"} },
		"at most 256 arguments":          func(p *Process) { p.Command = make([]string, 257); p.Command[0] = "a" },
		"cwd":                            func(p *Process) { p.Cwd = strings.Repeat("a", 2000) },
		"envVars":                        func(p *Process) { p.Env = map[string]string{"A B": "c"} },
		"at most 256 variables":          func(p *Process) { p.Env = map[string]string{"A": strings.Repeat("c", 65<<10)} },
		"exactly one of":                 func(p *Process) { p.Startup.TCPPort = 1 },
		"probes.liveness":                func(p *Process) { p.Startup, p.Readiness = nil, nil; p.Liveness.HTTP = nil },
		"successThreshold must be 1":     func(p *Process) { p.Startup.SuccessThreshold = 2 },
		"periodSeconds":                  func(p *Process) { p.Startup.PeriodSeconds = -1 },
		"timeoutSeconds":                 func(p *Process) { p.Startup.TimeoutSeconds = 4000 },
		"failureThreshold":               func(p *Process) { p.Startup.FailureThreshold = 0 },
		"initialDelaySeconds":            func(p *Process) { p.Startup.InitialDelaySeconds = -1 },
		"port":                           func(p *Process) { p.Startup.HTTP.Port = 65536 },
		"path":                           func(p *Process) { p.Startup.HTTP.Path = "a" },
		"want printable ASCII":           func(p *Process) { p.Startup.HTTP.Path = "/a\r\nX: y" },
		"is not a header's name":         func(p *Process) { p.Startup.HTTP.Headers[0].Name = "a b" },
		"no control characters":          func(p *Process) { p.Startup.HTTP.Headers[0].Value = "a\nb" },
		"httpHeaders: at most":           func(p *Process) { p.Startup.HTTP.Headers = make([]Header, 33) },
		"tcpSocket: port":                func(p *Process) { p.Startup.HTTP, p.Startup.TCPPort = nil, -1 },
		"exec: command is required":      func(p *Process) { p.Startup.HTTP, p.Startup.Exec = nil, []string{""} },
		"exec: command: want text witho": func(p *Process) { p.Startup.HTTP, p.Startup.Exec = nil, []string{"\xff"} },
	} {
		p := good()
		spoil(&p)
		if err := Validate([]Process{p}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want an error that says %q", err, says)
		}
	}
	if err := Validate([]Process{good(), good()}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("one name for two: %v", err)
	}
	if err := Validate(make([]Process, MaxProcesses+1)); err == nil {
		t.Error("too many were accepted")
	}
}
