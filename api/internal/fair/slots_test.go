package fair

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

func TestATeamThatIsAloneHasAllSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, team := NewSlots(), uuid.New()
		for left := 8; left > 0; left-- {
			if !s.May("p", team, left, 8) {
				t.Errorf("refused with %d left", left)
			}
		}
	})
}

// One team never has a pool's last slots while another takes some, too.
func TestLastSlotsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, greedy, modest := NewSlots(), uuid.New(), uuid.New()
		s.May("p", modest, 8, 8)
		left := 8
		for range 100 {
			if s.May("p", greedy, left, 8) {
				left--
			}
		}
		if left != 4 {
			t.Errorf("%d of 8 are left", left)
		}
		for range 2 {
			if !s.May("p", modest, left, 8) {
				t.Errorf("the modest team is refused with %d left", left)
			}
			left--
		}
		if s.May("p", greedy, left, 8) {
			t.Error("the greedy team has another")
		}
		if !s.May("q", greedy, 1, 8) {
			t.Error("another pool is another matter")
		}
		time.Sleep(2 * remembered) // the modest team is gone
		if !s.May("p", greedy, 1, 8) {
			t.Error("a team that is alone by now is refused")
		}
	})
}

func TestPoolsAreForgotten(t *testing.T) {
	s := NewSlots()
	for range 3 * maxPools {
		s.May(uuid.NewString(), uuid.New(), 1, 1)
	}
	if len(s.pools) > maxPools {
		t.Errorf("%d pools", len(s.pools))
	}
}
