// Package warm says what a template's warm processes are: what runs in a slot
// before anybody claims it, and the probes that tell whether it is healthy.
//
// The types are plain values that every part of s0 shares; [Validate] holds the
// bounds that all of them rely on. Nothing here runs or probes anything: procd
// does. It imports the standard library alone.
package warm

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Types of processes.
const (
	REPL = "repl"
	CMD  = "cmd"
)

// Process is one warm process.
type Process struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Alias       string            `json:"alias,omitempty"`   // of a REPL
	Command     []string          `json:"command,omitempty"` // of a cmd: an argv, never a shell line
	Cwd         string            `json:"cwd,omitempty"`
	Env         map[string]string `json:"env,omitempty"`           // over the sandbox's
	KeepOnClaim bool              `json:"keep_on_claim,omitempty"` // it goes on although a claim changes what it would see
	Startup     *Probe            `json:"startup,omitempty"`       // until it passes the others wait; its failure is the process's
	Readiness   *Probe            `json:"readiness,omitempty"`     // says whether the slot may be claimed
	Liveness    *Probe            `json:"liveness,omitempty"`      // its failure is the process's
}

// Probe is one action that is repeated, and how to judge its results. Exactly one
// action is set; the numbers are all set ([Probe.WithDefaults]).
type Probe struct {
	Process bool     `json:"process,omitempty"` // the process runs
	Exec    []string `json:"exec,omitempty"`    // a command exits with 0
	HTTP    *HTTPGet `json:"http,omitempty"`    // a request to localhost is answered with 200 to 399
	TCPPort int      `json:"tcp_port,omitempty"`
	GRPC    *GRPC    `json:"grpc,omitempty"` // a health service says that it serves; not for warm processes

	InitialDelaySeconds int `json:"initial_delay_seconds,omitempty"`
	PeriodSeconds       int `json:"period_seconds"`
	TimeoutSeconds      int `json:"timeout_seconds"`
	SuccessThreshold    int `json:"success_threshold"`
	FailureThreshold    int `json:"failure_threshold"`
}

// HTTPGet is a request to a server inside the sandbox.
type HTTPGet struct {
	Path    string   `json:"path"`
	Port    int      `json:"port"`
	TLS     bool     `json:"tls,omitempty"` // whose certificate is not checked
	Headers []Header `json:"headers,omitempty"`
}

// GRPC is a question to a server inside the sandbox that has gRPC's health protocol.
type GRPC struct {
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"` // empty: the server as a whole
}

// Header is one header of a request.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// What a probe does unless told otherwise. The timeout is longer than it is
// elsewhere: an unclaimed sandbox yields the CPU to everything else.
const (
	DefaultPeriodSeconds    = 10
	DefaultTimeoutSeconds   = 5
	DefaultSuccessThreshold = 1
	DefaultFailureThreshold = 3
)

// WithDefaults gives the numbers that are 0 their defaults.
func (p Probe) WithDefaults() Probe {
	for n, value := range map[*int]int{
		&p.PeriodSeconds: DefaultPeriodSeconds, &p.TimeoutSeconds: DefaultTimeoutSeconds,
		&p.SuccessThreshold: DefaultSuccessThreshold, &p.FailureThreshold: DefaultFailureThreshold,
	} {
		if *n == 0 {
			*n = value
		}
	}
	return p
}

// Bounds of what a template may ask for.
const (
	MaxProcesses    = 16
	maxArgs         = 256
	maxArgBytes     = 64 << 10 // of one argv
	maxNameBytes    = 63
	maxPathBytes    = 1 << 10
	maxEnvVars      = 256
	maxEnvBytes     = 64 << 10
	maxHeaders      = 32
	maxHeaderBytes  = 1 << 10
	maxDelaySeconds = 3600
	maxThreshold    = 1000
)

// Character classes; no regexp, for procd has no other use for that package.
const (
	lower   = "abcdefghijklmnopqrstuvwxyz"
	upper   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
	inToken = lower + upper + digits + "!#$%&'*+-.^_`|~" // of RFC 9110
)

// madeOf reports whether s has 1 to limit bytes, all of them from a class.
func madeOf(s, class string, limit int) bool {
	return s != "" && len(s) <= limit && strings.Trim(s, class) == ""
}

func isName(s string) bool {
	return madeOf(s, lower+digits+"-", maxNameBytes) && s[0] != '-' && s[len(s)-1] != '-'
}

// Validate checks the processes of one template. Its errors name the field as
// the template's author knows it.
func Validate(processes []Process) error {
	if len(processes) > MaxProcesses {
		return fmt.Errorf("at most %d warm processes", MaxProcesses)
	}
	seen := map[string]bool{}
	for _, p := range processes {
		if !isName(p.Name) {
			return fmt.Errorf("name %.80q: want lower-case letters, digits and '-', at most %d", p.Name, maxNameBytes)
		}
		if seen[p.Name] {
			return fmt.Errorf("name %q is there twice", p.Name)
		}
		seen[p.Name] = true
		if err := p.validate(); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

func (p *Process) validate() error {
	if err := p.validateType(); err != nil {
		return err
	}
	if len(p.Cwd) > maxPathBytes || strings.ContainsRune(p.Cwd, 0) {
		return fmt.Errorf("cwd: want at most %d bytes and no NUL", maxPathBytes)
	}
	if err := validateEnv(p.Env); err != nil {
		return fmt.Errorf("envVars: %w", err)
	}
	for _, of := range []struct {
		name  string
		probe *Probe
	}{{"startup", p.Startup}, {"readiness", p.Readiness}, {"liveness", p.Liveness}} {
		if of.probe == nil {
			continue
		}
		if of.probe.GRPC != nil {
			return fmt.Errorf("probes.%s: a warm process can't have a probe of gRPC", of.name)
		}
		if err := of.probe.Validate(); err != nil {
			return fmt.Errorf("probes.%s: %w", of.name, err)
		}
		if of.name != "readiness" && of.probe.SuccessThreshold != 1 {
			return fmt.Errorf("probes.%s: successThreshold must be 1", of.name)
		}
	}
	return nil
}

func (p *Process) validateType() error {
	switch p.Type {
	case REPL:
		if len(p.Command) > 0 {
			return fmt.Errorf("a warm process of type repl must not have a command")
		}
		if p.Alias != "" && !madeOf(p.Alias, lower+upper+digits+"-_", maxNameBytes) {
			return fmt.Errorf("alias %.80q is not a REPL's", p.Alias)
		}
		return nil
	case CMD:
		if p.Alias != "" {
			return fmt.Errorf("alias is for type repl")
		}
		return validateCommand(p.Command)
	}
	return fmt.Errorf("type %.20q: want repl or cmd", p.Type)
}

func validateCommand(argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return fmt.Errorf("command is required")
	}
	total := 0
	for _, arg := range argv {
		total += len(arg) + 1
		if strings.ContainsRune(arg, 0) || !utf8.ValidString(arg) {
			return fmt.Errorf("command: want text without NUL")
		}
	}
	if len(argv) > maxArgs || total > maxArgBytes {
		return fmt.Errorf("command: at most %d arguments and %d bytes", maxArgs, maxArgBytes)
	}
	return nil
}

func validateEnv(env map[string]string) error {
	total := 0
	for name, value := range env {
		total += len(name) + len(value) + 2
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '=' }) {
			return fmt.Errorf("%.80q is not a variable's name", name)
		}
		if strings.ContainsRune(value, 0) || !utf8.ValidString(value) {
			return fmt.Errorf("the value of %.80q: want text without NUL", name)
		}
	}
	if len(env) > maxEnvVars || total > maxEnvBytes {
		return fmt.Errorf("at most %d variables and %d bytes", maxEnvVars, maxEnvBytes)
	}
	return nil
}

// Validate checks a probe whose numbers are all set.
func (p *Probe) Validate() error {
	actions := 0
	for _, set := range []bool{p.Process, len(p.Exec) > 0, p.HTTP != nil, p.TCPPort != 0, p.GRPC != nil} {
		if set {
			actions++
		}
	}
	if actions != 1 {
		return fmt.Errorf("want exactly one of process, exec, httpGet and tcpSocket")
	}
	if err := p.validateAction(); err != nil {
		return err
	}
	for _, n := range []struct {
		name            string
		value, min, max int
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds, 0, maxDelaySeconds},
		{"periodSeconds", p.PeriodSeconds, 1, maxDelaySeconds},
		{"timeoutSeconds", p.TimeoutSeconds, 1, maxDelaySeconds},
		{"successThreshold", p.SuccessThreshold, 1, maxThreshold},
		{"failureThreshold", p.FailureThreshold, 1, maxThreshold},
	} {
		if n.value < n.min || n.value > n.max {
			return fmt.Errorf("%s: want %d to %d", n.name, n.min, n.max)
		}
	}
	return nil
}

func (p *Probe) validateAction() error {
	switch {
	case len(p.Exec) > 0:
		if err := validateCommand(p.Exec); err != nil {
			return fmt.Errorf("exec: %w", err)
		}
	case p.HTTP != nil:
		if err := p.HTTP.validate(); err != nil {
			return fmt.Errorf("httpGet: %w", err)
		}
	case p.TCPPort != 0:
		if err := validatePort(p.TCPPort); err != nil {
			return fmt.Errorf("tcpSocket: %w", err)
		}
	case p.GRPC != nil:
		if err := validatePort(p.GRPC.Port); err != nil {
			return fmt.Errorf("grpc: %w", err)
		}
		if len(p.GRPC.Service) > maxPathBytes || !utf8.ValidString(p.GRPC.Service) {
			return fmt.Errorf("grpc: service: want text of at most %d bytes", maxPathBytes)
		}
	}
	return nil
}

func (h *HTTPGet) validate() error {
	if err := validatePort(h.Port); err != nil {
		return err
	}
	if !strings.HasPrefix(h.Path, "/") || len(h.Path) > maxPathBytes || strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("path: want printable ASCII that begins with '/', at most %d bytes", maxPathBytes)
	}
	if len(h.Headers) > maxHeaders {
		return fmt.Errorf("httpHeaders: at most %d", maxHeaders)
	}
	for _, header := range h.Headers {
		if !madeOf(header.Name, inToken, maxNameBytes) {
			return fmt.Errorf("httpHeaders: %.80q is not a header's name", header.Name)
		}
		if len(header.Value) > maxHeaderBytes || strings.ContainsFunc(header.Value, unicode.IsControl) {
			return fmt.Errorf("httpHeaders: the value of %s: want at most %d bytes and no control characters", header.Name, maxHeaderBytes)
		}
	}
	return nil
}

func validatePort(port int) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port: want 1 to 65535")
	}
	return nil
}
