package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Limits are what may pass: what the sandbox has of its own, and what its team's
// share.
type Limits struct {
	Team        string
	Own, Shared Bandwidth
}

// Bandwidth is that of each direction; a zero rate is no limit.
type Bandwidth struct{ Sent, Received Rate }

// Rate is bytes a second, and how many at once; no Burst is what suits the rate.
type Rate struct{ Bytes, Burst uint64 }

const (
	// maxRate keeps the buckets' arithmetic within 64 bits: 80 Gbit/s.
	maxRate = 10_000_000_000
	// minBurst lets some of the largest segments through at once, whatever the rate;
	// maxBurst keeps the buckets' arithmetic within 64 bits, too.
	minBurst, maxBurst = 512 << 10, 4 << 30
	// burstTime is what a bucket holds otherwise: more than TCP waits (200 ms) before it
	// goes on after it has lost all that was under way, or half of the rate is lost.
	burstTime = 300 * time.Millisecond
)

// limit fills the buckets and names them in s. It is called with mu held.
func (k *Kernel) limit(s *netdSandbox, l Limits) error {
	if err := k.fill(netdBucketId{Id: s.Serial}, l.Own); err != nil {
		return err
	}
	if l.Own != (Bandwidth{}) {
		s.Flags |= netdFlagLimited
	}
	if l.Team == "" {
		return nil
	}
	if err := k.fill(netdBucketId{Id: s.Team, Team: 1}, l.Shared); err != nil {
		return err
	}
	if l.Shared != (Bandwidth{}) {
		s.Flags |= netdFlagShared
	}
	return nil
}

// fill sets the rates of both buckets; one that has its rate keeps its tokens, and
// another one as many of them as it holds, for a change must give nothing away.
func (k *Kernel) fill(id netdBucketId, b Bandwidth) error {
	for direction, r := range [...]Rate{b.Sent, b.Received} {
		id.Received = uint16(direction)
		if err := k.fillOne(id, r); err != nil {
			return fmt.Errorf("bandwidth: %w", err)
		}
	}
	return nil
}

func (k *Kernel) fillOne(id netdBucketId, r Rate) error {
	if r.Bytes == 0 {
		return forget(k.obj.Buckets, &id)
	}
	rate := min(r.Bytes, maxRate)
	burst := max(minBurst, cmp.Or(min(r.Burst, maxBurst), rate*uint64(burstTime)/uint64(time.Second))) * uint64(time.Second)
	want := netdBucket{Tokens: burst, Time: bootTime(), Rate: rate, Burst: burst}
	var now netdBucket
	switch err := k.obj.Buckets.Lookup(&id, &now); {
	case err == nil && now.Rate == want.Rate && now.Burst == want.Burst:
		return nil
	case err == nil:
		want.Tokens, want.Time = min(now.Tokens, burst), now.Time
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return err
	}
	return k.obj.Buckets.Put(&id, &want)
}

// dropBuckets removes a link's bucket, and its team's with the last of its links. They
// may be there though nothing of the link says so: of a change that failed.
func (k *Kernel) dropBuckets(s *netdSandbox) error {
	if err := k.fill(netdBucketId{Id: s.Serial}, Bandwidth{}); err != nil {
		return err
	}
	for _, other := range k.links {
		if other != s && other.Team == s.Team && other.Flags&netdFlagShared != 0 {
			return nil
		}
	}
	return k.fill(netdBucketId{Id: s.Team, Team: 1}, Bandwidth{})
}

// teamNumber is the same in every process; two teams that share one would share
// their bandwidth, too.
func teamNumber(team string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(team))
	return h.Sum32()
}

func bootTime() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // there is no Linux without
	}
	return uint64(t.Nano())
}
