// Package repl knows interactive interpreters: how the builtin ones are started,
// when they wait for input, and how to run code in one and tell when it is done.
//
// # When is a REPL done?
//
// Nothing but its output tells. The contract's rule is: the output ends with the
// prompt and nothing follows for 50 ms. It costs 50 ms a call, and where the
// terminal and not the REPL echoes it can be wrong: while the second of two
// lines runs silently, the output ends with the prompt that the first one got.
//
// So for REPLs that answer each line with exactly one prompt of ours (the
// builtin ones, when no person sits at the terminal; [Definition.Exact]) a
// [Session] counts: it feeds one line when it was asked for one, and is done at
// the prompt that answers the last. That is exact, takes no quiet time, and gives
// the output that a person would see who typed the lines one by one. A line that
// is not answered within offerDelay may be running or waiting for input of its
// own: then the next line is offered, and the terminal tells whether somebody
// took it at once. Where counting is impossible (input written while the REPL was
// busy, foreign prompts, a person at the keyboard) the contract's rule holds.
//
// The package owns the prompt state of its sessions. It starts no process itself,
// keeps no output and knows nothing of contexts or requests.
package repl

import (
	"fmt"
	"strings"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	defaultStartupDelay = 200 * time.Millisecond
	maxStartupDelay     = 60 * time.Second
	defaultTerm         = "xterm-256color"

	// Bounds of a custom configuration.
	maxCandidates = 32
	maxTokenBytes = 256
)

// Definition says how to start a REPL and how to understand it.
type Definition struct {
	Name       string
	Candidates []procapi.Candidate // the first that exists is used
	Env        map[string]string   // of the REPL, under the request's
	Term       string
	Columns    uint16 // of its terminal, when the request names no size; 0 is the usual width
	Setup      string // typed at the start

	Prompt       string // ends the output while the REPL waits; "" until learned
	Continuation string // the same within an unfinished statement; may be ""
	Exact        bool   // each line is answered by one Prompt or Continuation
	CloseBlock   bool   // an empty line ends an unfinished statement

	// When it takes input for the first time: after StartupDelay if that is above
	// 0, else at the first prompt, or the first after ReadyToken if there is one.
	StartupDelay time.Duration
	ReadyToken   string
}

// Define finds the definition that a request asks for. terminal tells that the
// request brings a terminal's size: a person is going to sit at it.
func Define(req *procapi.REPLRequest, terminal bool) (Definition, error) {
	if req == nil {
		req = &procapi.REPLRequest{}
	}
	if req.Config != nil {
		return custom(req.Config)
	}
	name := req.Alias
	if full, ok := aliases[name]; ok {
		name = full
	}
	d, ok := builtin(name, terminal)
	if !ok {
		return Definition{}, invalid("unknown REPL %.64q", req.Alias)
	}
	if d.Term == "" {
		d.Term = defaultTerm
	}
	return d, nil
}

func invalid(format string, args ...any) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", format, args...)
}

// custom checks and translates a REPL that the request describes itself.
func custom(c *procapi.REPLConfig) (Definition, error) {
	d := Definition{Name: c.Name, Candidates: c.Candidates, Term: c.DefaultTerm}
	if err := checkCandidates(c); err != nil {
		return Definition{}, err
	}
	if d.Term == "" {
		d.Term = defaultTerm
	}
	if c.Prompt != nil {
		d.Prompt = c.Prompt.CustomPrompt
	}
	if err := d.setReady(c.Ready); err != nil {
		return Definition{}, err
	}
	if max(len(d.Prompt), len(d.ReadyToken)) > maxTokenBytes {
		return Definition{}, invalid("repl_config: prompt or token of more than %d bytes", maxTokenBytes)
	}
	return d, d.setEnv(c)
}

func checkCandidates(c *procapi.REPLConfig) error {
	switch {
	case c.Name == "":
		return invalid("repl_config.name is required")
	case len(c.Candidates) == 0:
		return invalid("repl_config.candidates is required")
	case len(c.Candidates) > maxCandidates:
		return invalid("repl_config.candidates: more than %d", maxCandidates)
	}
	for i, cand := range c.Candidates {
		if cand.Name == "" {
			return invalid("repl_config.candidates[%d].name is required", i)
		}
	}
	return nil
}

func (d *Definition) setReady(r *procapi.Ready) error {
	if r == nil {
		r = &procapi.Ready{}
	}
	mode := r.Mode
	if mode == "" && r.Token != "" {
		mode = "prompt_token"
	}
	switch mode {
	case "prompt_token":
		// What shows that it is up need not be what shows that it waits again.
		d.ReadyToken = r.Token
		if d.Prompt == "" {
			d.Prompt = r.Token
		}
		if d.Prompt == "" {
			return invalid("repl_config.ready.token is required in mode prompt_token, unless there is a custom_prompt")
		}
	case "", "startup_delay":
		if r.StartupDelayMS < 0 || int64(r.StartupDelayMS) > maxStartupDelay.Milliseconds() {
			return invalid("repl_config.ready.startup_delay_ms: want 0 to %d", maxStartupDelay.Milliseconds())
		}
		d.StartupDelay = time.Duration(r.StartupDelayMS) * time.Millisecond
		if r.StartupDelayMS == 0 {
			d.StartupDelay = defaultStartupDelay
		}
	default:
		return invalid("repl_config.ready.mode %.64q: want prompt_token or startup_delay", r.Mode)
	}
	return nil
}

func (d *Definition) setEnv(c *procapi.REPLConfig) error {
	d.Env = map[string]string{}
	for i, v := range c.Env {
		switch v.ValueFrom {
		case "":
			d.Env[v.Name] = v.Value
		case "prompt":
			d.Env[v.Name] = d.Prompt
		case "term":
			d.Env[v.Name] = d.Term
		default:
			return invalid("repl_config.env[%d].value_from %.64q: want prompt or term", i, v.ValueFrom)
		}
	}
	return nil
}

// Missing is the error for a REPL of whose candidates none is installed.
func (d *Definition) Missing() error {
	names := make([]string, 0, len(d.Candidates))
	for _, c := range d.Candidates {
		names = append(names, fmt.Sprintf("%.64q", c.Name))
	}
	return invalid("REPL %.64q is not installed in this sandbox: none of %s found", d.Name, strings.Join(names, ", "))
}
