package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"s0.run/internal/s0test"
)

// overPipe measures the interpreter's own round trips, on a pipe in the sandbox: one each
// so many seconds. One right behind the other takes a fraction, for gVisor polls for a
// while what it has just had to do with; a client's calls find it asleep.
const overPipe = `
import json, subprocess, sys, time
p = subprocess.Popen(['python3', '-q', '-i', '-u', '-c', "import sys; sys.ps1 = '_S0_> '"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
def answer():
    out = b''
    while not out.endswith(b'_S0_> '):
        out += p.stdout.read(4096)
answer()
period, took, due = float(sys.argv[2]), [], time.perf_counter()
for _ in range(int(sys.argv[1])):
    due = max(due + period, time.perf_counter())
    time.sleep(max(0, due - time.perf_counter()))
    begin = time.perf_counter()
    p.stdin.write(b'1+1\n')
    answer()
    took.append((time.perf_counter() - begin) * 1000)
print(json.dumps(took))
`

// overhead is what an exec by HTTP takes beyond what the interpreter itself takes, and what
// stands beside that: calls that go a part of its way, by turns with it.
func (c *client) overhead(ctx context.Context, stack *s0test.Stack, sandbox string, n int) ([]row, error) {
	var repl struct{ ID string }
	contexts := sandboxes + "/" + sandbox + "/contexts"
	if _, err := c.must(ctx, http.MethodPost, contexts, map[string]any{"type": "repl", "repl": map[string]any{"alias": "python"}}, &repl); err != nil {
		return nil, err
	}
	run := func(n int) (execs, gets, healths []time.Duration, err error) {
		for _, call := range []struct {
			took         *[]time.Duration
			method, path string
			body         any
		}{
			{&execs, http.MethodPost, contexts + "/" + repl.ID + "/exec", map[string]string{"data": "1+1"}},
			{&gets, http.MethodGet, contexts + "/" + repl.ID, nil},
			{&healths, http.MethodGet, "/healthz", nil},
		} {
			if *call.took, err = c.repeat(ctx, n, call.method, call.path, call.body); err != nil {
				return nil, nil, nil, err
			}
		}
		return execs, gets, healths, nil
	}
	if _, _, _, err := run(10); err != nil { // the interpreter's own start
		return nil, err
	}
	var execs, gets, healths []time.Duration
	for range n / 10 {
		e, g, h, err := run(10)
		if err != nil {
			return nil, err
		}
		execs, gets, healths = append(execs, e...), append(gets, g...), append(healths, h...)
	}
	busy, err := c.ownRoundTrips(ctx, sandbox, n, 0)
	if err != nil {
		return nil, err
	}
	own, err := c.ownRoundTrips(ctx, sandbox, n, percentile(slices.Sorted(slices.Values(milliseconds(execs))), 50))
	if err != nil {
		return nil, err
	}
	wakes, err := wakeUps(ctx, stack, sandbox, n)
	if err != nil {
		return nil, err
	}
	typical := percentile(slices.Sorted(slices.Values(own)), 50)
	beyond := milliseconds(execs)
	for i := range beyond {
		beyond[i] -= typical
	}
	return []row{
		{name: "beside: Python's own round trip, on a pipe", load: "as often as the calls", unit: "ms", samples: own},
		{name: "  without a pause, so that gVisor polls", load: "1 client", unit: "ms", samples: busy},
		{name: "REPL round trip by HTTP, beyond that", load: "1 client", unit: "ms", samples: beyond, budget: budget{p50: 1}},
		rowOf("  of it: a call that procd answers alone", "1 client", gets),
		rowOf("  of that: one that the API server answers alone", "1 client", healths),
		rowOf("beside: a byte through `runsc exec cat` and back", "1 client", wakes),
	}, nil
}

// ownRoundTrips are the interpreter's, one each period, in milliseconds.
func (c *client) ownRoundTrips(ctx context.Context, sandbox string, n int, period float64) (own []float64, err error) {
	ran, err := c.command(ctx, sandbox, true, "python3", "-c", overPipe, fmt.Sprint(n), fmt.Sprint(period/1000))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(ran.Stdout), &own); err != nil {
		return nil, fmt.Errorf("the interpreter on a pipe printed %.100q: %w", ran.Stdout, err)
	}
	return own, nil
}

// wakeUps measures what gVisor itself takes to wake a process and hear of it: an exec has
// procd and the interpreter woken so.
func wakeUps(ctx context.Context, stack *s0test.Stack, sandbox string, n int) (took []time.Duration, err error) {
	cat := exec.CommandContext(ctx, filepath.Join(stack.Bin(), "runsc"), "--root="+filepath.Join(stack.RunDir, "noded", "runsc"), "exec", sandbox, "cat")
	in, err := cat.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cat.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cat.Start(); err != nil {
		return nil, err
	}
	one := make([]byte, 1)
	trip := func() error {
		if _, err := in.Write(one); err != nil {
			return err
		}
		_, err := io.ReadFull(out, one)
		return err
	}
	err = trip() // its start
	if err == nil {
		took, err = repeated(ctx, n, 0, trip)
	}
	in.Close()
	if e := cat.Wait(); err == nil {
		err = e
	}
	return took, err
}
