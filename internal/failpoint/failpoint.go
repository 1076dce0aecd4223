// Package failpoint lets tests make a daemon fail at a named place.
//
// A place is one call, `failpoint.Hit("create.after-netns")`. The environment
// variable S0_FAILPOINTS, read once at start, arms places with terms in a small
// subset of FreeBSD's fail(9) grammar:
//
//	name=[N*]action[(arg)][;name=…]
//
// where action is error (Hit returns an error with arg as its text), exit (the
// process ends at once as by SIGKILL), or delay (arg is a Go duration), and N
// is how often the term fires, counted from the first hit; without N, always.
// The name "*" with the action trace appends every place that is hit to the file
// arg, in the order of the first hits: tests learn from it which places there are.
// Unarmed, Hit costs one atomic load. The package owns the table of armed terms
// and touches nothing else but that file.
package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// EnvVar names the environment variable that arms failpoints.
const EnvVar = "S0_FAILPOINTS"

// everyPlace is the name that trace stands under.
const everyPlace = "*"

type term struct {
	action string
	arg    string
	left   int // hits that still fire; < 0 is without end
}

var (
	armed atomic.Bool

	mu     sync.Mutex
	terms  map[string]*term
	traced map[string]bool // places that the trace has
)

// Arm replaces the table; an empty spec disarms everything. Daemons call it once
// with the value of [EnvVar], tests with their own.
func Arm(spec string) error {
	table := map[string]*term{}
	for _, s := range strings.Split(spec, ";") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		name, t, err := parse(s)
		if err != nil {
			return fmt.Errorf("failpoint %q: %w", s, err)
		}
		table[name] = t
	}
	mu.Lock()
	defer mu.Unlock()
	terms, traced = table, map[string]bool{}
	armed.Store(len(table) > 0)
	return nil
}

func parse(s string) (string, *term, error) {
	name, rest, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return "", nil, fmt.Errorf("want name=[N*]action[(arg)]")
	}
	t := &term{left: -1}
	if n, after, ok := strings.Cut(rest, "*"); ok {
		count, err := strconv.Atoi(n)
		if err != nil || count < 1 {
			return "", nil, fmt.Errorf("count %q: want a number above 0", n)
		}
		t.left, rest = count, after
	}
	t.action, t.arg, _ = strings.Cut(strings.TrimSuffix(rest, ")"), "(")
	if (t.action == "trace") != (name == everyPlace) {
		return "", nil, fmt.Errorf("action %q: trace and it alone is for every place", t.action)
	}
	switch t.action {
	case "error", "exit", "trace":
	case "delay":
		if _, err := time.ParseDuration(t.arg); err != nil {
			return "", nil, err
		}
	default:
		return "", nil, fmt.Errorf("action %q: want error, exit, delay or trace", t.action)
	}
	return name, t, nil
}

// Hit does what the place's term says, nothing when it has none.
func Hit(name string) error {
	if !armed.Load() {
		return nil
	}
	action, arg := take(name)
	switch action {
	case "error":
		return fmt.Errorf("failpoint %s: %s", name, arg)
	case "exit":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	case "delay":
		d, _ := time.ParseDuration(arg) // Arm has checked it
		time.Sleep(d)
	}
	return nil
}

func take(name string) (action, arg string) {
	mu.Lock()
	defer mu.Unlock()
	trace(name)
	t := terms[name]
	if t == nil || t.left == 0 {
		return "", ""
	}
	if t.left > 0 {
		t.left--
	}
	return t.action, t.arg
}

// trace is called with mu held: its file has whole lines in the order of the hits. A
// trace that can't be written is a test's, which finds it incomplete.
func trace(name string) {
	t := terms[everyPlace]
	if t == nil || traced[name] {
		return
	}
	traced[name] = true
	f, err := os.OpenFile(t.arg, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString(name + "\n")
}
