package lifecycle

import "time"

// indexRest is how long an address is not given out again: whoever still has
// packets or connections under way to its last owner must not reach the next.
const indexRest = 2 * time.Minute

// indexes hands out network indexes, the lowest first, for neighbours in number
// share a shim. The manager's mu guards it.
type indexes struct {
	max     uint32
	used    map[uint32]bool
	resting map[uint32]time.Time // until when
}

func newIndexes(max uint32) indexes {
	return indexes{max: max, used: map[uint32]bool{}, resting: map[uint32]time.Time{}}
}

// take gives out an index, or 0 when there is none.
func (x *indexes) take(now time.Time) uint32 {
	for i := uint32(1); i <= x.max; i++ {
		if x.used[i] || now.Before(x.resting[i]) {
			continue
		}
		delete(x.resting, i)
		x.used[i] = true
		return i
	}
	return 0
}

// hold marks an index that a record from before has. 0 is none: a failed sandbox
// that holds nothing any more has given its own back.
func (x *indexes) hold(i uint32) {
	if i != 0 {
		x.used[i] = true
	}
}

func (x *indexes) release(i uint32, now time.Time) {
	if i != 0 {
		delete(x.used, i)
		x.resting[i] = now.Add(indexRest)
	}
}
