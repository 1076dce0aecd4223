package bench

import (
	"strings"
	"testing"
)

func TestPercentileIsNearestRank(t *testing.T) {
	t.Parallel()
	s := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for p, want := range map[float64]float64{0: 1, 50: 5, 90: 9, 99: 10, 100: 10} {
		if got := percentile(s, p); got != want {
			t.Errorf("p%g = %g, want %g", p, got, want)
		}
	}
	if percentile(nil, 50) != 0 || percentile([]float64{7}, 1) != 7 {
		t.Error("edges")
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	r := row{samples: []float64{1, 1, 4}, budget: budget{p50: 2, p99: 3}}
	if v := r.verdict(); !strings.HasPrefix(v, "MISSED: p99 4, want 3") {
		t.Errorf("verdict %q", v)
	}
	r.budget.p99 = 5
	if v := r.verdict(); v != "met" {
		t.Errorf("verdict %q", v)
	}
	r.budget = budget{p50: 2, least: true}
	if v := r.verdict(); !strings.HasPrefix(v, "MISSED: p50 1") {
		t.Errorf("verdict %q", v)
	}
}

// A step that there is not is no step that was measured.
func TestChosen(t *testing.T) {
	t.Parallel()
	steps := []step{{name: "files"}, {name: "streams"}}
	if all, err := chosen(steps, ""); err != nil || len(all) != 2 {
		t.Errorf("all: %v, %v", all, err)
	}
	if one, err := chosen(steps, "streams"); err != nil || len(one) != 1 || one[0].name != "streams" {
		t.Errorf("one: %v, %v", one, err)
	}
	if none, err := chosen(steps, "stream"); err == nil || none != nil || !strings.Contains(err.Error(), "files, streams") {
		t.Errorf("none: %v, %v", none, err)
	}
}
