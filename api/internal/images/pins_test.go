package images

import (
	"testing"
	"time"
)

// What may be on its way is asked for at each round, what does not come ever more seldom.
func TestImagesThatDoNotComeAreAskedForMoreSeldom(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_000_000, 0)
	var v inVain
	var asked []time.Duration
	for now := began; now.Sub(began) < 24*time.Hour; now = now.Add(pinInterval) {
		if v.again().After(now) {
			continue
		}
		if v.last = now; v.first.IsZero() {
			v.first = now
		}
		asked = append(asked, now.Sub(began))
	}
	soon := 0
	for _, at := range asked {
		if at <= 2*time.Minute {
			soon++
		}
	}
	if soon != 5 {
		t.Errorf("asked %d times in the first two minutes: %v", soon, asked[:min(8, len(asked))])
	}
	if n := len(asked); n < 24*6 || n > 24*6+20 {
		t.Errorf("asked %d times in a day", n)
	}
	if last := asked[len(asked)-1] - asked[len(asked)-2]; last != maxPinPause {
		t.Errorf("in the end every %v", last)
	}
}
