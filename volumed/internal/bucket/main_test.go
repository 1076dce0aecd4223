package bucket

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// greedy wants more memory than it may have, and returns if it got that.
func greedy() int {
	if err := boundMemory(64 << 20); err != nil {
		panic(err)
	}
	fmt.Println("bounded")
	var held [][]byte
	for range 16 {
		held = append(held, make([]byte, 16<<20))
	}
	fmt.Println("has", len(held))
	return 0
}

// B13: a process that comes to want too much memory ends.
func TestB13_AProcessIsBounded(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), self, "greedy").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "bounded\n") || strings.Contains(string(out), "has 16") {
		t.Errorf("it ended with %v: %.2000s", err, out)
	}
}
