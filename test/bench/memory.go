package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// pss is the proportional set size of an instance's processes, in MiB, by what
// they are. A page that n processes share counts 1/n in each.
type pss struct{ sentry, gofer, shim, daemon float64 }

// instancePSS sums the processes whose command line names the instance's run
// directory: nothing else on the machine does.
func instancePSS(runDir string) (pss, error) {
	var sum pss
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return sum, err
	}
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !bytes.Contains(cmdline, []byte(runDir)) {
			continue // ended meanwhile, or somebody else's
		}
		kind := sum.kind(string(cmdline))
		if kind == nil {
			continue
		}
		mib, err := processPSS(dir)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return sum, err
		}
		*kind += mib
	}
	return sum, nil
}

func (p *pss) kind(cmdline string) *float64 {
	args := strings.Split(cmdline, "\x00")
	has := func(arg string) bool {
		for _, a := range args {
			if a == arg {
				return true
			}
		}
		return false
	}
	switch {
	case has("boot"):
		return &p.sentry
	case has("gofer"):
		return &p.gofer
	case strings.Contains(args[0], "containerd-shim-s0-v1"):
		return &p.shim
	case strings.HasSuffix(args[0], "s0d"):
		return &p.daemon
	}
	return nil
}

func processPSS(dir string) (float64, error) {
	b, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("%s: smaps_rollup has no Pss line", dir)
}

// perSandbox is what each of n warm sandboxes costs: the PSS of its processes,
// its share of the shims, and what the daemon grew by when more came.
func perSandbox(p pss, n int, daemonGrowth float64) []row {
	line := func(name string, v float64) row {
		return row{name: name, load: fmt.Sprintf("%d idle", n), unit: "MiB", samples: []float64{v}}
	}
	each := float64(n)
	total := line("PSS of an idle warm sandbox", (p.sentry+p.gofer+p.shim)/each+daemonGrowth)
	total.budget = budget{p50: 20}
	return []row{total, line("  its sentry with procd", p.sentry/each), line("  its gofer", p.gofer/each),
		line("  its share of the shim", p.shim/each), line("  what the daemon grows by", daemonGrowth),
		line("the daemon, whole", p.daemon)}
}
