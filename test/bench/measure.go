package bench

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const sandboxes = "/api/v1/sandboxes"

func (c *client) claim(ctx context.Context, template string) (id string, a answer, err error) {
	var out struct {
		SandboxID string `json:"sandbox_id"`
	}
	a, err = c.must(ctx, http.MethodPost, sandboxes, map[string]string{"template": template}, &out)
	return out.SandboxID, a, err
}

func (c *client) remove(ctx context.Context, id string) error {
	_, err := c.must(ctx, http.MethodDelete, sandboxes+"/"+id, nil, nil)
	return err
}

// idle waits until the template has n free slots.
func (c *client) idle(ctx context.Context, template string, n int) error {
	for {
		var t struct{ Status struct{ IdleCount int } }
		if _, err := c.must(ctx, http.MethodGet, "/api/v1/templates/"+template, nil, &t); err != nil {
			return err
		}
		if t.Status.IdleCount >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d free slots of template %s, %d are there: %w", n, template, t.Status.IdleCount, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// warmClaims measures the path of a pool hit for one client: its claims one after
// another, n of them, while the pool refills beside them, and after pauses, when
// every processor that a claim passes has gone to sleep.
func (c *client) warmClaims(ctx context.Context, template string, n, pool int) ([]row, error) {
	var row, paused claimTimes
	for len(row.server) < n {
		if err := c.idle(ctx, template, pool); err != nil {
			return nil, err
		}
		if err := c.claimAll(ctx, template, pool, &row); err != nil {
			return nil, err
		}
	}
	for range n / 4 {
		if err := c.idle(ctx, template, pool); err != nil {
			return nil, err
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
		if err := c.claimAll(ctx, template, 1, &paused); err != nil {
			return nil, err
		}
	}
	return append(row.rows("1 client, in a row"), paused.rows("1 client, after "+pause.String())...), nil
}

// pause is long enough for an idle machine to sleep.
const pause = 250 * time.Millisecond

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// claimTimes are what claims took, by the server's and by the client's watch.
type claimTimes struct{ server, client []time.Duration }

func (t *claimTimes) rows(load string) []row {
	return []row{
		{name: "warm claim, server side", load: load, unit: "ms", samples: milliseconds(t.server), budget: budget{p50: 1, p99: 5}},
		{name: "warm claim, by HTTP", load: load, unit: "ms", samples: milliseconds(t.client), budget: budget{p50: 2, p99: 10}},
	}
}

// claimAll claims n sandboxes one after another and then deletes them.
func (c *client) claimAll(ctx context.Context, template string, n int, t *claimTimes) error {
	ids := make([]string, 0, n)
	for range n {
		id, a, err := c.claim(ctx, template)
		if err != nil {
			return err
		}
		if a.server == 0 {
			return fmt.Errorf("the answer to a claim has no Server-Timing")
		}
		ids = append(ids, id)
		t.server, t.client = append(t.server, a.server), append(t.client, a.took)
	}
	for _, id := range ids {
		if err := c.remove(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// claimBurst empties a full pool with several clients at once: claims a second
// on pool hits, and what each of them waited.
func (c *client) claimBurst(ctx context.Context, template string, pool, clients int) ([]row, error) {
	if err := c.idle(ctx, template, pool); err != nil {
		return nil, err
	}
	var (
		mu    sync.Mutex
		ids   []string
		took  []time.Duration
		first error
		wg    sync.WaitGroup
	)
	begin := time.Now()
	for w := range clients {
		wg.Go(func() {
			for range pool/clients + min(1, max(0, pool%clients-w)) {
				id, a, err := c.claim(ctx, template)
				mu.Lock()
				if err != nil && first == nil {
					first = err
				} else if err == nil {
					ids, took = append(ids, id), append(took, a.took)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(begin)
	if first != nil {
		return nil, first
	}
	load := fmt.Sprintf("%d clients", clients)
	rows := []row{
		{name: "claims a second on pool hits", load: load, unit: "/s", samples: []float64{float64(len(ids)) / elapsed.Seconds()}},
		{name: "warm claim in a burst, by HTTP", load: load, unit: "ms", samples: milliseconds(took)},
	}
	begin = time.Now()
	for _, id := range ids {
		if err := c.remove(ctx, id); err != nil {
			return nil, err
		}
	}
	if err := c.idle(ctx, template, pool); err != nil {
		return nil, err
	}
	refill := float64(pool) / time.Since(begin).Seconds()
	return append(rows, row{name: "refill", load: "while deleting as many", unit: "slots/s", samples: []float64{refill}}), nil
}

// coldClaims claims from a template that keeps no slots.
func (c *client) coldClaims(ctx context.Context, template string, n int) ([]row, error) {
	var took []time.Duration
	for range n {
		id, a, err := c.claim(ctx, template)
		if err != nil {
			return nil, err
		}
		took = append(took, a.took)
		if err := c.remove(ctx, id); err != nil {
			return nil, err
		}
	}
	return []row{{name: "cold start (pool miss), by HTTP", load: "1 client", unit: "ms", samples: milliseconds(took)}}, nil
}

// inside measures one-shot commands and REPL round trips in one sandbox.
func (c *client) inside(ctx context.Context, template string, n int) ([]row, error) {
	id, _, err := c.claim(ctx, template)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.remove(context.WithoutCancel(ctx), id) }()
	contexts := sandboxes + "/" + id + "/contexts"
	oneShot, err := c.repeat(ctx, n, http.MethodPost, contexts, map[string]any{
		"type": "cmd", "cmd": map[string]any{"command": []string{"true"}}, "wait_until_done": true})
	if err != nil {
		return nil, err
	}
	rows := []row{{name: "one-shot `true`, by HTTP", load: "1 client", unit: "ms", samples: milliseconds(oneShot), budget: budget{p50: 5}}}
	for _, alias := range []string{"python", "bash"} {
		var repl struct{ ID string }
		if _, err := c.must(ctx, http.MethodPost, contexts, map[string]any{"type": "repl", "repl": map[string]any{"alias": alias}}, &repl); err != nil {
			return nil, err
		}
		exec := contexts + "/" + repl.ID + "/exec"
		input := map[string]string{"data": "1+1"}
		if alias == "bash" {
			input["data"] = "echo 2"
		}
		if _, err := c.repeat(ctx, 3, http.MethodPost, exec, input); err != nil { // the interpreter's own start
			return nil, err
		}
		took, err := c.repeat(ctx, n, http.MethodPost, exec, input)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{name: "REPL round trip, " + alias, load: "1 client", unit: "ms", samples: milliseconds(took)})
	}
	return rows, nil
}

func (c *client) repeat(ctx context.Context, n int, method, path string, body any) ([]time.Duration, error) {
	var took []time.Duration
	for range n {
		a, err := c.must(ctx, method, path, body, nil)
		if err != nil {
			return nil, err
		}
		took = append(took, a.took)
	}
	return took, nil
}
