package lifecycle

import (
	"testing"

	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/sandbox"
)

// What a comparison passes over, without reading more of the row.
func TestAgree(t *testing.T) {
	t.Parallel()
	running := placement.Sandbox{State: sandbox.Running, Generation: 2}
	paused := placement.Sandbox{State: sandbox.Paused, Generation: 2}
	stored := placement.Sandbox{State: sandbox.Paused, Generation: 2, Stored: 2}
	failed := placement.Sandbox{State: sandbox.Failed, Generation: 2}
	for name, c := range map[string]struct {
		row  store.NodeRow
		sb   placement.Sandbox
		same bool
		want bool
	}{
		"runs":                           {store.NodeRow{Status: sandbox.Running, Generation: 2, Settled: true}, running, true, true},
		"runs, the list is older":        {store.NodeRow{Status: sandbox.Running, Generation: 3, Settled: true}, running, true, true},
		"runs as a later generation":     {store.NodeRow{Status: sandbox.Running, Generation: 1, Settled: true}, running, true, false},
		"runs, its row says paused":      {store.NodeRow{Status: sandbox.Paused, Generation: 2, Settled: true}, running, true, false},
		"runs, paused a moment ago":      {store.NodeRow{Status: sandbox.Paused, Generation: 2}, running, true, true},
		"is paused":                      {store.NodeRow{Status: sandbox.Paused, Generation: 2, Settled: true}, paused, true, true},
		"is paused and stored":           {store.NodeRow{Status: sandbox.Paused, Generation: 2, Settled: true, Stored: true}, stored, true, true},
		"is stored, its row says no":     {store.NodeRow{Status: sandbox.Paused, Generation: 2, Settled: true}, stored, true, false},
		"is not stored, its row says so": {store.NodeRow{Status: sandbox.Paused, Generation: 2, Settled: true, Stored: true}, paused, true, false},
		"was paused and stored just now": {store.NodeRow{Status: sandbox.Paused, Generation: 2}, stored, true, false},
		"is paused, its row says starts": {store.NodeRow{Status: sandbox.Starting, Generation: 2, Settled: true}, paused, true, false},
		"failed":                         {store.NodeRow{Status: sandbox.Running, Generation: 2}, failed, true, false},
		"failed, and its row says so":    {store.NodeRow{Status: sandbox.Failed, Generation: 2, Settled: true}, failed, true, true},
		"runs, its row says failed":      {store.NodeRow{Status: sandbox.Failed, Generation: 2, Settled: true}, running, true, false},
		"runs, it has just failed":       {store.NodeRow{Status: sandbox.Failed, Generation: 2}, running, true, true},
		"is kept, its row says failed":   {store.NodeRow{Status: sandbox.Failed, Generation: 2, Settled: true}, paused, true, true},
		"failed, of another claim":       {store.NodeRow{Status: sandbox.Running, Generation: 2, Settled: true}, failed, false, false},
		"is another claim's":             {store.NodeRow{Status: sandbox.Running, Generation: 2, Settled: true}, running, false, false},
		"is unknown to its node":         {store.NodeRow{Status: sandbox.Running, Generation: 2, Settled: true}, placement.Sandbox{}, false, false},
		"is too young to be known":       {store.NodeRow{Status: sandbox.Running, Generation: 2}, placement.Sandbox{}, false, true},
		"ends":                           {store.NodeRow{Status: sandbox.Terminating, Generation: 2, Settled: true}, running, true, false},
		"has just begun to end":          {store.NodeRow{Status: sandbox.Terminating, Generation: 2}, running, true, true},
		"can't be told of":               {store.NodeRow{Status: sandbox.Running, Generation: 2, Settled: true}, placement.Sandbox{State: "unknown"}, true, true},
	} {
		if got := agree(c.row, c.sb, c.same); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
