package failpoint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHit(t *testing.T) {
	t.Cleanup(func() { _ = Arm("") })
	if err := Arm("a=2*error(boom); b=delay(0s)"); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, false} {
		if err := Hit("a"); (err != nil) != want {
			t.Errorf("hit %d of a: %v, want error %v", i, err, want)
		} else if want && !strings.Contains(err.Error(), "boom") {
			t.Errorf("hit %d of a: %v lacks its text", i, err)
		}
	}
	if err := Hit("b"); err != nil {
		t.Errorf("delay returned %v", err)
	}
	if err := Hit("unknown"); err != nil {
		t.Errorf("unarmed place returned %v", err)
	}
}

func TestArmRefuses(t *testing.T) {
	for _, s := range []string{"a", "=error", "a=0*error", "a=x*error", "a=panic", "a=delay(soon)", "a=trace(/x)", "*=error"} {
		if Arm(s) == nil {
			t.Errorf("Arm(%q) succeeded", s)
		}
	}
}

func TestTrace(t *testing.T) {
	t.Cleanup(func() { _ = Arm("") })
	file := filepath.Join(t.TempDir(), "trace")
	if err := Arm("*=trace(" + file + ");b=error(boom)"); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"a", "b", "a", "c"} {
		if err := Hit(place); (err != nil) != (place == "b") {
			t.Errorf("%s: %v", place, err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "a\nb\nc\n" {
		t.Errorf("trace %q (%v)", got, err)
	}
}
