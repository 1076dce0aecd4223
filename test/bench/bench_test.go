package bench

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
)

var (
	rawFile = flag.String("raw", "", "write every sample to this CSV file")
	samples = flag.Int("samples", 200, "samples of each quick figure")
	pool    = flag.Int("pool", 50, "warm slots")
	only    = flag.String("only", "", "the one step to measure, such as streams")
)

const (
	template = "default"
	timeout  = 20 * time.Minute
)

// BenchmarkBudgets prints the table. It is one measurement of many things, not
// something to repeat b.N times: run it with -benchtime 1x.
func BenchmarkBudgets(b *testing.B) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if _, err := chosen((&client{}).steps(&s0test.Stack{}), *only); err != nil {
		b.Fatal(err) // before anything is started
	}
	stack := s0test.Start(b, s0test.Options{Pool: *pool, MaxSandboxes: max(2**pool+10, *memoryBudget/leastMemory+*pool)})
	steps, err := chosen(newClient(stack.URL, stack.Key()).steps(stack), *only)
	if err != nil {
		b.Fatal(err)
	}
	rows, err := measureAll(ctx, steps)
	fmt.Printf("\n%s\n", machine())
	if e := printTable(os.Stdout, rows); e != nil {
		b.Fatal(e)
	}
	if err != nil {
		b.Fatal(err)
	}
	if err := saveRaw(rows); err != nil {
		b.Fatal(err)
	}
}

// step is a part of the table that can be measured by itself.
type step struct {
	name    string
	measure func(context.Context) ([]row, error)
}

// chosen is the one step of that name, or all without a name.
func chosen(steps []step, name string) ([]step, error) {
	if name == "" {
		return steps, nil
	}
	var names []string
	for _, s := range steps {
		if s.name == name {
			return []step{s}, nil
		}
		names = append(names, s.name)
	}
	return nil, fmt.Errorf("-only %q: there is no such step; there are %s", name, strings.Join(names, ", "))
}

// steps lists what is measured, in its order.
func (c *client) steps(stack *s0test.Stack) []step {
	admin := filepath.Join(stack.RunDir, "noded-admin.sock")
	return []step{
		{"memory", func(ctx context.Context) ([]row, error) { return c.memory(ctx, stack.RunDir) }},
		{"warm claims", func(ctx context.Context) ([]row, error) { return c.warmClaims(ctx, template, *samples, *pool) }},
		{"the machine", func(ctx context.Context) ([]row, error) { return floor(ctx, *samples) }},
		{"inside a sandbox", func(ctx context.Context) ([]row, error) { return c.inside(ctx, template, *samples) }},
		{"files", func(ctx context.Context) ([]row, error) { return c.files(ctx, template) }},
		{"streams", func(ctx context.Context) ([]row, error) { return c.streams(ctx, stack, template, *samples) }},
		{"pauses", func(ctx context.Context) ([]row, error) {
			return c.pauses(ctx, stack.DataDir, admin, template, *samples/20)
		}},
		{"snapshots", func(ctx context.Context) ([]row, error) { return c.snapshots(ctx, template, *samples/20) }},
		{"forks", func(ctx context.Context) ([]row, error) { return c.forks(ctx, admin, template, *samples/40) }},
		{"density", func(ctx context.Context) ([]row, error) {
			return c.density(ctx, stack.DataDir, template)
		}},
		{"bursts and refill", func(ctx context.Context) ([]row, error) { return c.claimBurst(ctx, template, *pool, 8) }},
		{"cold starts", func(ctx context.Context) ([]row, error) {
			cold, err := c.twin(ctx, "bench-cold", 0)
			if err != nil {
				return nil, err
			}
			return c.coldClaims(ctx, cold, *samples/10)
		}},
		{"the plain tools", func(ctx context.Context) ([]row, error) { return besides(ctx, stack, *samples/10) }},
	}
}

// measureAll returns what it measured also when it fails on the way.
func measureAll(ctx context.Context, steps []step) (rows []row, err error) {
	for _, s := range steps {
		begin := time.Now()
		more, err := s.measure(ctx)
		rows = append(rows, more...)
		if err != nil {
			return rows, fmt.Errorf("measuring %s: %w", s.name, err)
		}
		fmt.Fprintf(os.Stderr, "measured %s in %s\n", s.name, time.Since(begin).Round(time.Second))
	}
	return rows, nil
}

// twin makes a template like the default one that keeps as many slots.
func (c *client) twin(ctx context.Context, name string, slots int) (string, error) {
	var like struct{ Spec map[string]any }
	if _, err := c.must(ctx, http.MethodGet, "/api/v1/templates/"+template, nil, &like); err != nil {
		return "", err
	}
	like.Spec["pool"] = map[string]int{"minIdle": slots, "maxIdle": slots}
	_, err := c.must(ctx, http.MethodPost, "/api/v1/templates", map[string]any{"template_id": name, "spec": like.Spec}, nil)
	return name, err
}

// memory doubles the number of warm slots for a while, to see what they add.
func (c *client) memory(ctx context.Context, runDir string) ([]row, error) {
	if err := c.idle(ctx, template, *pool); err != nil {
		return nil, err
	}
	before, err := instancePSS(runDir)
	if err != nil {
		return nil, err
	}
	more, err := c.twin(ctx, "bench-memory", *pool)
	if err != nil {
		return nil, err
	}
	if err := c.idle(ctx, more, *pool); err != nil {
		return nil, err
	}
	after, err := instancePSS(runDir)
	if err != nil {
		return nil, err
	}
	rows := perSandbox(after, 2**pool, max(0, after.daemon-before.daemon)/float64(*pool))
	_, err = c.must(ctx, http.MethodDelete, "/api/v1/templates/"+more, nil, nil)
	return rows, err
}

func besides(ctx context.Context, stack *s0test.Stack, n int) ([]row, error) {
	dir, err := os.MkdirTemp("", "s0bench-")
	if err != nil {
		return nil, err
	}
	defer func() {
		// runsc keeps a namespace bound in its state directory, once for each start.
		for unix.Unmount(filepath.Join(dir, "runsc", "null-netns"), unix.MNT_DETACH) == nil {
		}
		os.RemoveAll(dir)
	}()
	p := peers{binDir: stack.Bin(), socket: filepath.Join(stack.RunDir, "containerd", "containerd.sock"), dir: dir}
	return p.measure(ctx, n)
}

func saveRaw(rows []row) error {
	if *rawFile == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(*rawFile), 0o755); err != nil {
		return err
	}
	f, err := os.Create(*rawFile)
	if err != nil {
		return err
	}
	if err := writeRaw(f, rows); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// machine describes where the figures come from.
func machine() string {
	load, _ := os.ReadFile("/proc/loadavg")
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("kernel %s, load %s", strings.TrimSpace(string(release)), strings.TrimSpace(string(load)))
}
