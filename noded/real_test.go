package noded_test

import (
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"
)

// The whole life on a real machine, across a restart of noded.
func TestX25_RealSandboxesOverRestart(t *testing.T) {
	m := newMachine(t)
	d := m.run()
	d.setPool(m.spec, 3)
	slots := d.untilFree(3)
	sb := d.claim(slots[0])
	if sb.State != "running" || sb.MemoryBytes != m.spec.MemoryBytes {
		t.Errorf("claimed %v", sb)
	}
	d.mustServe(sb.Id)

	d.stop()
	d = m.run()
	p := d.until("the sandbox and its neighbours", func(p *picture) bool { return len(p.sandboxes) == 1 && p.free[slots[1]] && p.free[slots[2]] })
	if p.sandboxes[sb.Id] != "running" {
		t.Errorf("after a restart: %v", p.sandboxes)
	}
	d.mustServe(sb.Id)
	second := d.claim(slots[1])
	d.mustServe(second.Id)

	d.setPool(m.spec, 0)
	d.delete(sb.Id)
	d.delete(second.Id)
	d.until("nothing", func(p *picture) bool { return len(p.sandboxes) == 0 && len(p.free) == 0 })
	m.gone()
}

// BenchmarkRealClaim claims real slots, one at a time with the pool being
// refilled beside it, and reports the node's own figure and a client's.
func BenchmarkRealClaim(b *testing.B) {
	m := newMachine(b)
	m.cfg.Log = slog.New(slog.DiscardHandler)
	d := m.run()
	const pool = 20
	var took []time.Duration
	for range b.N { // one iteration is a pool's worth
		d.setPool(m.spec, pool)
		slots := d.untilFree(pool)
		for _, slot := range slots {
			begin := time.Now()
			d.claim(slot)
			took = append(took, time.Since(begin))
		}
		for _, slot := range slots {
			d.delete(slot)
		}
		d.until("room", func(p *picture) bool { return len(p.sandboxes) == 0 })
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "min-µs")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	for name, q := range map[string]float64{"node-p50-µs": .5, "node-p99-µs": .99} {
		b.ReportMetric(quantile(b, adminGet(b, m.cfg.AdminSocket, "/metrics"), q)*1e6, name)
	}
	d.setPool(m.spec, 0)
	d.until("nothing", func(p *picture) bool { return len(p.free) == 0 })
	m.gone()
}

// quantile estimates one from the buckets of the node's own claim histogram.
func quantile(t testing.TB, metrics string, q float64) float64 {
	t.Helper()
	bucket := regexp.MustCompile(`s0_node_claim_seconds_bucket\{kind="warm",le="([0-9.e+-]+)"\} (\d+)`)
	found := bucket.FindAllStringSubmatch(metrics, -1)
	if len(found) == 0 {
		t.Fatal("no histogram of claims")
	}
	total, _ := strconv.ParseFloat(found[len(found)-1][2], 64)
	below, from := 0.0, 0.0
	for _, f := range found {
		to, _ := strconv.ParseFloat(f[1], 64)
		count, _ := strconv.ParseFloat(f[2], 64)
		if count >= q*total {
			return from + (to-from)*(q*total-below)/max(count-below, 1)
		}
		below, from = count, to
	}
	return from
}
