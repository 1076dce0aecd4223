package lifecycle_test

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"s0.run/internal/sandbox"
)

// What is to end has its share raised before it is killed; that this fails keeps nobody alive.
func TestAnEndIsHurried(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var mu sync.Mutex
	var effects []string
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		mu.Lock()
		defer mu.Unlock()
		effects = append(effects, effect)
		if effect == "groups.Hurry" {
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
	hurry, kill := slices.Index(effects, "groups.Hurry"), slices.Index(effects, "runtime.Remove")
	if hurry < 0 || hurry > kill {
		t.Errorf("its effects are %v", effects)
	}
}
