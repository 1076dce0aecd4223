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
// Unarmed, Hit costs one atomic load. The package owns the table of armed terms
// and never touches anything else.
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

type term struct {
	action string
	arg    string
	left   int // hits that still fire; < 0 is without end
}

var (
	armed atomic.Bool

	mu    sync.Mutex
	terms map[string]*term
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
	terms = table
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
	switch t.action {
	case "error", "exit":
	case "delay":
		if _, err := time.ParseDuration(t.arg); err != nil {
			return "", nil, err
		}
	default:
		return "", nil, fmt.Errorf("action %q: want error, exit or delay", t.action)
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
	t := terms[name]
	if t == nil || t.left == 0 {
		return "", ""
	}
	if t.left > 0 {
		t.left--
	}
	return t.action, t.arg
}
