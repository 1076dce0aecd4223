package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// changes are what a sandbox has written when its root filesystem is kept.
var changes = []struct{ load, script string }{
	{"10,000 changed files", "mkdir -p /workspace/d && cd /workspace/d && seq 10000 | xargs touch"},
	{"50 MB in 1 file", "head -c 50000000 /dev/urandom >/workspace/f"},
}

// snapshots measures keeping the files of a running sandbox, and starting from them.
func (c *client) snapshots(ctx context.Context, template string, n int) (rows []row, err error) {
	for _, change := range changes {
		id, _, err := c.claim(ctx, template)
		if err != nil {
			return rows, err
		}
		more, err := c.snapshotsOf(ctx, id, template, change.script, n)
		for i := range more {
			more[i].load = change.load
		}
		rows = append(rows, more...)
		if err := errors.Join(err, c.remove(context.WithoutCancel(ctx), id)); err != nil {
			return rows, fmt.Errorf("of %s: %w", change.load, err)
		}
	}
	return rows, nil
}

func (c *client) snapshotsOf(ctx context.Context, id, template, script string, n int) ([]row, error) {
	if _, err := c.command(ctx, id, true, "sh", "-c", script); err != nil {
		return nil, err
	}
	var take, start []time.Duration
	for range n {
		var snapshot struct{ ID string }
		a, err := c.must(ctx, http.MethodPost, sandboxes+"/"+id+"/snapshots", struct{}{}, &snapshot)
		if err != nil {
			return nil, err
		}
		take = append(take, a.took)
		var from struct {
			SandboxID string `json:"sandbox_id"`
		}
		if a, err = c.must(ctx, http.MethodPost, sandboxes, map[string]string{"template": template, "snapshot_id": snapshot.ID}, &from); err != nil {
			return nil, err
		}
		start = append(start, a.took)
		if err := c.remove(ctx, from.SandboxID); err != nil {
			return nil, err
		}
		if _, err := c.must(ctx, http.MethodDelete, "/api/v1/sandbox-rootfs-snapshots/"+snapshot.ID, nil, nil); err != nil {
			return nil, err
		}
	}
	return []row{
		{name: "rootfs snapshot, by HTTP", unit: "ms", samples: milliseconds(take), budget: budget{p50: 100}},
		{name: "claim from a rootfs snapshot, by HTTP", unit: "ms", samples: milliseconds(start)},
	}, nil
}

// children is how many a fork makes.
const children = 16

// forks measures making children with memory of a running sandbox, until each has run
// a command, and what the source stood still for.
func (c *client) forks(ctx context.Context, adminSocket, template string, n int) ([]row, error) {
	id, _, err := c.claim(ctx, template)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.remove(context.WithoutCancel(ctx), id) }()
	var made, serving []time.Duration
	stopped := map[string][]float64{}
	for range n {
		if err := sleep(ctx, clearedAway); err != nil {
			return nil, err
		}
		before, err := steps(ctx, adminSocket)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		ids, a, err := c.fork(ctx, id)
		if err != nil {
			return nil, err
		}
		made = append(made, a.took)
		err = all(ids, func(child string) error { return c.wake(ctx, child) })
		serving = append(serving, time.Since(begin))
		if err := errors.Join(err, all(ids, func(child string) error { return c.remove(context.WithoutCancel(ctx), child) })); err != nil {
			return nil, err
		}
		after, err := steps(ctx, adminSocket)
		if err != nil {
			return nil, err
		}
		still := 0.0
		for _, step := range standing {
			took := after.since(before, "fork", step)
			stopped[step] = append(stopped[step], took)
			still += took
		}
		stopped["all"] = append(stopped["all"], still)
	}
	load := fmt.Sprintf("1 to %d, with memory", children)
	rows := []row{
		rowOf("fork, by HTTP", load, made), rowOf("fork until every child has run a command", load, serving),
		{name: "the source of a fork stands still", load: load, unit: "ms", samples: stopped["all"], budget: budget{p50: 100}},
	}
	rows[1].budget = budget{p50: 1000}
	for _, step := range standing {
		r := row{name: "  " + step + " in place", load: load, unit: "ms", samples: stopped[step]}
		if step != "save" {
			r.budget = budget{p50: 5}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// standing are the steps of a fork during which its source stands still.
var standing = []string{"freeze", "save", "thaw"}

// clearedAway is how long what a fork's children leave to be cleared away may take, which
// would be measured with the next fork.
const clearedAway = 4 * time.Second

func (c *client) fork(ctx context.Context, id string) (ids []string, a answer, err error) {
	var out struct{ Sandboxes []struct{ ID string } }
	a, err = c.must(ctx, http.MethodPost, sandboxes+"/"+id+"/fork",
		map[string]any{"count": children, "config": map[string]bool{"memory": true}}, &out)
	for _, child := range out.Sandboxes {
		ids = append(ids, child.ID)
	}
	return ids, a, err
}

// wake has a sandbox run a command. A node that resumes as many as it will says so.
func (c *client) wake(ctx context.Context, id string) error {
	for {
		a, err := c.call(ctx, http.MethodPost, sandboxes+"/"+id+"/contexts", map[string]any{
			"type": "cmd", "cmd": map[string]any{"command": []string{"true"}}, "wait_until_done": true})
		switch {
		case err != nil:
			return err
		case a.status < 300:
			return nil
		case a.status != http.StatusTooManyRequests:
			return fmt.Errorf("waking %s: status %d, code %s", id, a.status, a.code)
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// all does something with each at once.
func all(ids []string, do func(string) error) error {
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { errs[i] = do(id) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stepTimes are the counters of noded's steps, by `operation/step`.
type stepTimes map[string]struct{ seconds, count float64 }

// since is what a step took since before, in milliseconds, on average.
func (t stepTimes) since(before stepTimes, operation, step string) float64 {
	key := operation + "/" + step
	return 1000 * (t[key].seconds - before[key].seconds) / (t[key].count - before[key].count)
}

// steps reads the counters from noded's admin socket.
func steps(ctx context.Context, socket string) (stepTimes, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://noded/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	t := stepTimes{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, labels, value, ok := sample(lines.Text())
		if !ok {
			continue
		}
		at := t[labels]
		switch name {
		case "s0_node_step_seconds_sum":
			at.seconds = value
		case "s0_node_step_seconds_count":
			at.count = value
		default:
			continue
		}
		t[labels] = at
	}
	return t, nil
}

// sample parses a line such as x_sum{operation="resume",step="start"} 0.5.
func sample(line string) (name, labels string, value float64, ok bool) {
	name, rest, ok := strings.Cut(line, `{operation="`)
	if !ok {
		return "", "", 0, false
	}
	operation, rest, _ := strings.Cut(rest, `",step="`)
	step, number, ok := strings.Cut(rest, `"} `)
	value, err := strconv.ParseFloat(number, 64)
	return name, operation + "/" + step, value, ok && err == nil
}
