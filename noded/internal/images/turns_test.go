package images

import (
	"context"
	"testing"
)

// D12: one team's pulls leave places to others, and a place that was given back is
// the next one's.
func TestD12_TeamsTakeTurns(t *testing.T) {
	t.Parallel()
	turns := newTurns()
	var leaves []func()
	for range maxTeamPulls {
		leave, err := turns.take(ForTeam(t.Context(), "greedy"))
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	gone, cancel := context.WithCancel(ForTeam(t.Context(), "greedy"))
	cancel()
	if _, err := turns.take(gone); err == nil {
		t.Error("a team has one place too many")
	}
	for _, team := range []string{"modest", ""} {
		leave, err := turns.take(ForTeam(t.Context(), team))
		if err != nil {
			t.Fatalf("%q: %v", team, err)
		}
		leave()
	}
	leaves[0]()
	leave, err := turns.take(ForTeam(t.Context(), "greedy"))
	if err != nil {
		t.Fatal(err)
	}
	leave()
	leaves[1]()
	if len(turns.teams) != 0 || len(turns.node) != 0 {
		t.Errorf("%d teams and %d places are remembered", len(turns.teams), len(turns.node))
	}
}
