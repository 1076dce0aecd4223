package lifecycle

import "testing"

// D09: a team that starts many sandboxes does not keep another from starting one.
func TestD09_TheLastColdStartIsForAnotherTeam(t *testing.T) {
	t.Parallel()
	c := newColdStarts(3)
	take := func(team string, shared, want bool) (end func()) {
		t.Helper()
		end, ok := c.begin(team, shared)
		if ok != want {
			t.Errorf("%s, shared %v: %v", team, shared, ok)
		}
		return end
	}
	first := take("greedy", true, true)
	second := take("greedy", true, true)
	take("greedy", true, false)
	other := take("modest", true, true)
	take("modest", true, false)
	take("third", true, false) // none is left
	other()
	third := take("greedy", false, true) // alone, it may have them all
	first()
	second()
	third()
	if c.all != 0 || len(c.of) != 0 {
		t.Errorf("%d places of %v are taken", c.all, c.of)
	}
}
