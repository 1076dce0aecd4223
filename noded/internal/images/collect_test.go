package images

import (
	"testing"
	"time"
)

// D12: a name that tenants asked for is forgotten when it says nothing any more,
// also one of which there never was an image.
func TestD12_NamesAreForgotten(t *testing.T) {
	t.Parallel()
	u, now := newUses(), time.Now()
	u.now = func() time.Time { return now }
	use := func(name string) (end func()) {
		end, err := u.begin(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return end
	}
	end := use("a")
	use("b")()
	now = now.Add(time.Hour)
	use("c")()
	u.forget(time.Hour)
	if len(u.last) != 1 || !u.recent("a", time.Hour) || u.recent("b", time.Hour) || !u.recent("c", time.Hour) {
		t.Errorf("remembered: %v", u.last)
	}
	end()
	now = now.Add(time.Hour)
	u.forget(time.Hour)
	if len(u.last) != 0 || u.recent("a", time.Hour) {
		t.Errorf("remembered: %v", u.last)
	}
}
