package cli

import (
	"strings"
	"testing"

	"s0.run/api/client"
)

// Servers end a sandbox whose ttl is over: help that promises a pause would cost
// its reader the sandbox.
func TestHelpSaysThatTheTTLDeletes(t *testing.T) {
	t.Parallel()
	a := &app{version: "test"}
	if usage := a.sandboxCreate().Flags().Lookup("ttl").Usage; !strings.HasPrefix(usage, "delete the sandbox") {
		t.Errorf("--ttl: %q", usage)
	}
}

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
