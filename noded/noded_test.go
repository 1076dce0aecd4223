package noded_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded"
)

var simSpec = sandbox.Spec{Image: "img", MemoryBytes: 256 << 20, CPUMillis: 500, RuntimeClass: sandbox.GVisor}

func TestRunAndStop(t *testing.T) {
	t.Parallel()
	cfg := simulated(t)
	cfg.AdminSocket = filepath.Join(filepath.Dir(cfg.Socket), "a")
	d := run(t, cfg)
	d.setPool(simSpec, 3)
	slot := d.untilFree(3)[0]
	d.claim(slot)
	p := d.until("a refill", func(p *picture) bool { return len(p.free) == 3 && p.pool.GetClaimed() == 1 })
	if p.sandboxes[slot] != "running" {
		t.Errorf("sandboxes %v", p.sandboxes)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": `s0_node_claims_total{kind="warm",result="ok"} 1`, "/debug/pprof/cmdline": "noded"} {
		if body := adminGet(t, cfg.AdminSocket, path); !strings.Contains(body, want) {
			t.Errorf("%s: no %q in %.300s", path, want, body)
		}
	}
	d.delete(slot)
	d.until("the end", func(p *picture) bool { return len(p.sandboxes) == 0 })
	d.setPool(simSpec, 0)
	d.until("nothing", func(p *picture) bool { return len(p.free) == 0 })
}

func adminGet(t testing.TB, socket, path string) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	resp, err := c.Get("http://admin" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %d (%v)", path, resp.StatusCode, err)
	}
	return string(b)
}

func TestTwoOnOneDirectoryAreRefused(t *testing.T) {
	t.Parallel()
	cfg := simulated(t)
	run(t, cfg)
	cfg.Socket += "2"
	if err := noded.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second noded: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for name, mutate := range map[string]func(*noded.Config){
		"relative data dir": func(c *noded.Config) { c.DataDir = "data" },
		"colon in data dir": func(c *noded.Config) { c.DataDir += ":" },
		"comma in data dir": func(c *noded.Config) { c.DataDir += ",x" },
		"bad cluster":       func(c *noded.Config) { c.Cluster = "No Good" },
		"negative bound":    func(c *noded.Config) { c.MaxSandboxes = -1 },
		"no runsc": func(c *noded.Config) {
			c.Simulate, c.ContainerdSocket, c.ProcdDir, c.Runsc = false, "/x", "/x", "/nowhere/runsc"
		},
		"no containerd": func(c *noded.Config) { c.Simulate = false },
	} {
		cfg := simulated(t)
		mutate(&cfg)
		if err := noded.Run(t.Context(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// G01, the whole way: 50 claimants for 20 slots over the wire.
func TestG01_ConcurrentClaimsOverTheWire(t *testing.T) {
	t.Parallel()
	d := run(t, simulated(t))
	d.setPool(simSpec, 20)
	slots := d.untilFree(20)
	owners := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for c := range 50 {
		wg.Go(func() {
			for i := range slots {
				slot, id := slots[(i+c)%len(slots)], fmt.Sprint(c, "-", i)
				resp, err := d.rpc.Claim(d.ctx(), &nodeapi.ClaimRequest{ClaimId: id, Slot: slot, Team: "t"})
				if connect.CodeOf(err) == connect.CodeAborted {
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				mu.Lock()
				if owners[resp.Sandbox.Id] != "" {
					t.Errorf("%s was given away twice", resp.Sandbox.Id)
				}
				owners[resp.Sandbox.Id] = id
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(owners) != 20 {
		t.Errorf("%d of 20 slots were claimed", len(owners))
	}
}

// BenchmarkClaim is the node's share of a claim without the sandbox's: wire,
// compare-and-swap, journal, and a procd that answers at once.
func BenchmarkClaim(b *testing.B) {
	cfg := simulated(b)
	cfg.MaxSandboxes = 30000
	d := run(b, cfg)
	for b.Loop() { // one iteration is a pool's worth
		const n = 500
		d.setPool(simSpec, n)
		slots := d.untilFree(n)
		var took []time.Duration
		for _, slot := range slots {
			begin := time.Now()
			d.claim(slot)
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[0].Microseconds()), "min-µs")
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		for _, slot := range slots {
			d.delete(slot)
		}
	}
}
