package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"

	"s0.run/internal/s0test"
	"s0.run/internal/s0test/nodetest"
)

// BenchmarkVolumes prints the table of volumes: `make bench-volumes`. As [BenchmarkBudgets] it
// is one measurement of many things.
func BenchmarkVolumes(b *testing.B) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	if _, err := chosen((&volumes{}).steps(), *only); err != nil {
		b.Fatal(err) // before anything is started
	}
	const slots = 4
	stack := s0test.Start(b, s0test.Options{Pool: slots, MaxSandboxes: 4 * slots, Flags: []string{"--volumes"}})
	v, err := newVolumes(newClient(stack.URL, stack.Key()), stack, slots)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := v.close(); err != nil {
			b.Error(err)
		}
	}()
	nodetest.Build(b, v.probe(), "s0.run/internal/s0test/probe")
	v.meta = func() string { return s0test.Postgres(b) }
	steps, err := chosen(v.steps(), *only)
	if err != nil {
		b.Fatal(err)
	}
	before := machine()
	rows, err := measureAll(ctx, steps)
	fmt.Printf("\nbefore: %s\nafter: %s\n", before, machine())
	err = errors.Join(printTable(os.Stdout, rows), err, saveRaw(rows))
	if err != nil {
		b.Fatal(err)
	}
}

// TestBesideOthers checks how figures are put beside each other.
func TestBesideOthers(t *testing.T) {
	t.Parallel()
	rows := besideLocal(map[string][]float64{"local": {10, 20}, "volume": {4, 6}, "juicefs": {1}}, "create", "N", "/s")
	if len(rows) != 3 {
		t.Fatalf("%+v", rows)
	}
	for i, want := range []string{"", "MISSED: p50 4, want 5 (0.8x)", ""} {
		if got := (rows[i]).verdict(); got != want {
			t.Errorf("%s: %q, want %q", strconv.Quote(rows[i].name), got, want)
		}
	}
}
