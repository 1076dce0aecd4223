package cli

import (
	"testing"

	"s0.run/api/client"
)

func TestR6_ASilentNodesSandboxIsListedAsUnknown(t *testing.T) {
	t.Parallel()
	s := client.SandboxSummary{Status: "running"}
	if got := stateOf(s); got != "running" {
		t.Errorf("%q", got)
	}
	s.Unreachable = new(true)
	if got := stateOf(s); got != "unknown" {
		t.Errorf("%q", got)
	}
}
