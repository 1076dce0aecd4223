package lifecycle_test

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"s0.run/internal/sandbox"
)

// What is to end has its share raised before it is killed, and lowered when it could not be;
// that a share can't be raised keeps nobody alive.
func TestAnEndIsHurried(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var mu sync.Mutex
	var effects []string
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		mu.Lock()
		defer mu.Unlock()
		first := !slices.Contains(effects, effect)
		if effect == "groups.Hurry" || effect == "groups.Calm" || effect == "runtime.Remove" {
			effects = append(effects, effect)
		}
		if effect == "groups.Hurry" || effect == "runtime.Remove" && first {
			return errors.New("on purpose")
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"groups.Hurry", "runtime.Remove", "groups.Calm", "groups.Hurry", "runtime.Remove"}; !slices.Equal(effects, want) {
		t.Errorf("its effects are %v, want %v", effects, want)
	}
}
