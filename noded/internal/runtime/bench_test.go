package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"s0.run/internal/sandbox"
)

// pss sums the proportional set sizes of the processes whose command line begins
// with a name and mentions the test's directory.
func (n *node) pss(name string) (mib float64) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		if !strings.HasPrefix(filepath.Base(strings.SplitN(string(cmdline), "\x00", 2)[0]), name) || !strings.Contains(string(cmdline), n.ctd.Dir) {
			continue
		}
		raw, _ := os.ReadFile(filepath.Join(d, "smaps_rollup"))
		for line := range strings.Lines(string(raw)) {
			if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" {
				kib, _ := strconv.ParseFloat(fields[1], 64)
				mib += kib / 1024
			}
		}
	}
	return mib
}

// BenchmarkStart starts sandboxes of one group one after the other, then removes
// them. It reports the memory of ten idle ones.
func BenchmarkStart(b *testing.B) {
	n := newNode(b)
	const idle = 10
	var all []*box
	for range idle {
		x := n.start(sandbox.GVisor)
		x.accept()
		all = append(all, x)
	}
	<-time.After(3 * time.Second) // until they idle
	memory := map[string]float64{}
	for _, name := range []string{"runsc-sandbox", "runsc-gofer", "containerd-shim"} {
		memory[name] = n.pss(name) / idle
	}
	for _, x := range all {
		n.ok(n.rt.Remove(n.ctx(), x.c.ID))
	}
	var removing time.Duration
	for b.Loop() {
		b.StopTimer()
		x := n.newBox(sandbox.GVisor)
		b.StartTimer()
		n.ok(n.rt.Start(n.ctx(), x.c))
		x.accept()
		b.StopTimer()
		begin := time.Now()
		n.ok(n.rt.Remove(n.ctx(), x.c.ID))
		removing += time.Since(begin)
		b.StartTimer()
	}
	for name, mib := range memory {
		b.ReportMetric(mib, fmt.Sprintf("MiB-%s/sandbox", name))
	}
	b.ReportMetric(float64(removing.Milliseconds())/float64(b.N), "ms-remove/op")
}
