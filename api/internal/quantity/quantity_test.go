package quantity

import (
	"strings"
	"testing"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{
		"128Mi": 128 << 20, "2Gi": 2 << 30, "0.5Gi": 512 << 20, "1024": 1024, "1k": 1000, "1.5M": 1_500_000, "0": 0, "1.1": 2, "8Ti": 8 << 40,
	} {
		if got, err := Memory(s); err != nil || got != want {
			t.Errorf("%s: %d %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "Gi", "-1Gi", "+1Gi", "1e3", "1 Gi", "1GiB", "1m", "1Xi", "0x10", "1.", ".5Gi", "NaN", "999999999999999999Ti", strings.Repeat("9", 100)} {
		if got, err := Memory(s); err == nil {
			t.Errorf("%q: %d, want an error", s, got)
		}
	}
}

func TestCPU(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{"500m": 500, "1": 1000, "0.5": 500, "0.0001": 1, "2.5": 2500} {
		if got, err := CPU(s); err != nil || got != want {
			t.Errorf("%s: %d %v, want %d", s, got, err, want)
		}
	}
	if got, err := CPU("1Gi"); err == nil {
		t.Errorf("1Gi of CPU: %d", got)
	}
}

func FuzzMemory(f *testing.F) {
	f.Add("2Gi")
	f.Add("0.1Ti")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Memory(s)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("%q is %d", s, n)
		}
		again, err := Memory(FormatMemory(n))
		if err != nil || again != n {
			t.Fatalf("%q is %d, written %s, read %d: %v", s, n, FormatMemory(n), again, err)
		}
	})
}
