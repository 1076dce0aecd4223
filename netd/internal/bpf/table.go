package bpf

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/netd/internal/share"
)

// Place is a sandbox's link and what its packets must look like.
type Place struct {
	Serial  uint32 // of the attachment; the kernel's to say
	Ifindex int
	Owner   uint64 // of which sandbox and which instance
	IPv4    netip.Addr
	IPv6    netip.Addr
	MAC     net.HardwareAddr
}

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

// entries are a generation's in the rules. Links whose policies say the same share one.
type entries struct {
	four    []netdKey4
	six     []netdKey6
	content [32]byte // of the policy's rules; zero: not known
	proxied bool     // some rule names the proxy
	links   int      // that use it
}

func (e *entries) size() int { return len(e.four) + len(e.six) }

// The rules' tables hold MAX_ENTRIES each: a policy that names no more networks than
// most do always has its room, and larger ones share the rest. How large one may be
// package policy says.
var roomForRules = share.Config{Sure: 16, Most: 1 << 18, Spare: 1 << 18}

// ErrNoRoom is what a large policy ends in where many are.
var ErrNoRoom = errdefs.New(errdefs.Exhausted, "the node has no room for a network policy of so many networks now")

// takeOver learns what an earlier process has left and removes what no link uses.
func (k *Kernel) takeOver() error {
	var ifindex uint32
	var s netdSandbox
	used := map[uint32]int{}
	links := k.obj.Sandboxes.Iterate()
	for links.Next(&ifindex, &s) {
		found := s
		k.links[int(ifindex)], k.bySerial[s.Serial] = &found, int(ifindex)
		used[s.Gen]++
		k.generation, k.serial = max(k.generation, s.Gen), max(k.serial, s.Serial)
	}
	if err := errors.Join(links.Err(), k.gatherNames(), k.takeOverFlows(), k.gather()); err != nil {
		return err
	}
	for gen, e := range k.entries {
		k.generation = max(k.generation, gen)
		k.room.Take(gen, e.size())
		if e.links = used[gen]; e.links == 0 {
			k.remove(gen)
		}
	}
	return nil
}

// gather finds every entry of the rules.
func (k *Kernel) gather() error {
	var v netdRules
	var k4 netdKey4
	four := k.obj.Rules4.Iterate()
	for four.Next(&k4, &v) {
		e := k.of(k4.Gen)
		e.four = append(e.four, k4)
	}
	var k6 netdKey6
	six := k.obj.Rules6.Iterate()
	for six.Next(&k6, &v) {
		e := k.of(k6.Gen)
		e.six = append(e.six, k6)
	}
	return errors.Join(four.Err(), six.Err())
}

func (k *Kernel) of(gen uint32) *entries {
	if k.entries[gen] == nil {
		k.entries[gen] = &entries{}
	}
	return k.entries[gen]
}

// Links are those that the table knows.
func (k *Kernel) Links() []Place {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]Place, 0, len(k.links))
	for i, s := range k.links {
		all = append(all, place(i, s))
	}
	return all
}

// At is what the table knows of a link.
func (k *Kernel) At(ifindex int) (Place, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.links[ifindex]
	if s == nil {
		return Place{}, false
	}
	return place(ifindex, s), true
}

func place(ifindex int, s *netdSandbox) Place {
	ip4 := binary.NativeEndian.AppendUint32(nil, s.Ip4)
	return Place{Serial: s.Serial, Ifindex: ifindex, Owner: s.Owner, IPv4: netip.AddrFrom4([4]byte(ip4)), IPv6: netip.AddrFrom16(s.Ip6), MAC: s.Mac[:]}
}

// Attach lets a link's packets be judged; without a policy all are denied. What the
// same owner has there already stays, its policy included. The serial names the
// attachment from here on: links are numbered again, and who says something of one
// that has ended meanwhile says nothing of its successor.
func (k *Kernel) Attach(p Place) (serial uint32, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	want := netdSandbox{Owner: p.Owner, Ip4: be32(p.IPv4), Ip6: p.IPv6.As16(), Mac: [6]byte(p.MAC)}
	old := k.links[p.Ifindex]
	if old != nil && old.Owner == want.Owner && old.Ip4 == want.Ip4 && old.Ip6 == want.Ip6 && old.Mac == want.Mac {
		return old.Serial, nil
	}
	if err := k.detach(p.Ifindex); err != nil {
		return 0, err
	}
	k.serial++
	want.Serial = k.serial
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return 0, err
	}
	if err := k.obj.Counts.Put(uint32(p.Ifindex), make([]netdCounters, cpus)); err != nil {
		return 0, fmt.Errorf("link %d: counters: %w", p.Ifindex, err)
	}
	if err := k.countFlows(want.Serial); err != nil {
		return 0, err
	}
	return want.Serial, k.put(p.Ifindex, &want)
}

// put is called with mu held.
func (k *Kernel) put(ifindex int, s *netdSandbox) error {
	if err := k.obj.Sandboxes.Put(uint32(ifindex), s); err != nil {
		return fmt.Errorf("link %d: %w", ifindex, err)
	}
	k.links[ifindex], k.bySerial[s.Serial] = s, ifindex
	return nil
}

// Detach has every packet of an attachment's link dropped, and forgets what was known
// of it. One that has ended is no error.
func (k *Kernel) Detach(serial uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ifindex, ok := k.bySerial[serial]
	if !ok {
		return nil
	}
	return k.detach(ifindex)
}

func (k *Kernel) detach(ifindex int) error {
	if err := forget(k.obj.Sandboxes, uint32(ifindex)); err != nil {
		return fmt.Errorf("link %d: %w", ifindex, err)
	}
	if err := forget(k.obj.Counts, uint32(ifindex)); err != nil {
		return fmt.Errorf("link %d: counters: %w", ifindex, err)
	}
	old := k.links[ifindex]
	delete(k.links, ifindex)
	if old == nil {
		return nil
	}
	delete(k.bySerial, old.Serial)
	k.drop(old.Gen)
	k.forgetNames(old.Serial)
	return errors.Join(k.forgetCounts(old.Serial), k.dropBuckets(old))
}

func forget(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// SetPolicy puts a compiled policy and limits into force for an attachment, at once and as a whole: the entries are written beside the old ones, and
// one write makes them count. After an error the old policy stays in force.
func (k *Kernel) SetPolicy(serial uint32, c *policy.Compiled, limits Limits) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ifindex, ok := k.bySerial[serial]
	if !ok {
		return fmt.Errorf("attachment %d has ended", serial)
	}
	old := k.links[ifindex]
	next := *old
	gen, err := k.take(c.L4)
	if err != nil {
		return fmt.Errorf("link %d: rules: %w", ifindex, err)
	}
	next.Gen, next.Naming = gen, c.Naming()
	next.Flags = old.Flags & netdFlagProxied // connections of before may live
	if k.entries[gen].proxied {
		next.Flags |= netdFlagProxied
	}
	if c.AuditOnly {
		next.Flags |= netdFlagAudit
	}
	if err = k.limit(&next, limits); err == nil {
		err = k.put(ifindex, &next)
	}
	if err != nil {
		k.drop(next.Gen)
		return err
	}
	k.drop(old.Gen)
	return nil
}

// The flags of a sandbox; they are plain numbers in netd.c.
const (
	netdFlagLimited = 1 << iota
	netdFlagShared
	netdFlagProxied
	netdFlagAudit
)

// take finds the generation whose entries say just this, or writes one, for one more
// link. It is called with mu held.
func (k *Kernel) take(all []policy.PrefixRules) (gen uint32, err error) {
	content := sha256.Sum256(fmt.Appendf(nil, "%v", all))
	gen, ok := k.shared[content]
	if !ok {
		k.generation++
		gen = k.generation
		if !k.room.Take(gen, len(all)) {
			return 0, ErrNoRoom
		}
		if err := k.write(gen, all); err != nil {
			k.remove(gen)
			return 0, err
		}
		k.shared[content], k.entries[gen].content = gen, content
	}
	k.entries[gen].links++
	return gen, nil
}

// write adds a generation's entries.
func (k *Kernel) write(gen uint32, all []policy.PrefixRules) error {
	e := k.of(gen)
	for _, p := range all {
		rules, l7, err := encode(p)
		if err != nil {
			return err
		}
		e.proxied = e.proxied || l7
		bits := uint32(32 + p.Prefix.Bits())
		if a := p.Prefix.Addr(); a.Is4() {
			key := netdKey4{Bits: bits, Gen: gen, Ip: be32(a)}
			e.four = append(e.four, key)
			err = k.obj.Rules4.Put(&key, &rules)
		} else {
			key := netdKey6{Bits: bits, Gen: gen, Ip: a.As16()}
			e.six = append(e.six, key)
			err = k.obj.Rules6.Put(&key, &rules)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.Prefix, err)
		}
	}
	return nil
}

func encode(p policy.PrefixRules) (r netdRules, proxied bool, err error) {
	if len(p.Entries) > len(r.Rule) {
		return r, false, fmt.Errorf("%s: %w", p.Prefix, policy.ErrTooComplex)
	}
	r.N, r.Fallback = uint16(len(p.Entries)), uint8(p.Default)
	proxied = p.Default == policy.L7
	for i, e := range p.Entries {
		r.Rule[i] = netdRule{Protocol: uint8(e.Proto), Action: uint8(e.Action), Slot: e.Slot, Low: e.Lo, High: e.Hi}
		proxied = proxied || e.Action == policy.L7
	}
	return r, proxied, nil
}

// drop ends a link's use of a generation.
func (k *Kernel) drop(gen uint32) {
	if e := k.entries[gen]; e != nil {
		if e.links--; e.links <= 0 {
			k.remove(gen)
		}
	}
}

// remove removes a generation's entries, which no link uses any more. What can't be
// removed stays for the next process to find.
func (k *Kernel) remove(gen uint32) {
	e := k.entries[gen]
	if e == nil {
		return
	}
	k.room.Give(gen, k.room.Used(gen))
	delete(k.entries, gen)
	delete(k.shared, e.content)
	for i := range e.four {
		_ = forget(k.obj.Rules4, &e.four[i])
	}
	for i := range e.six {
		_ = forget(k.obj.Rules6, &e.six[i])
	}
}

// limit fills the buckets and names them in s. It is called with mu held.
func (k *Kernel) limit(s *netdSandbox, l Limits) error {
	s.Team = teamNumber(l.Team)
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

// dropBuckets removes a link's bucket, and its team's with the last of its links.
func (k *Kernel) dropBuckets(s *netdSandbox) error {
	if s.Flags&netdFlagLimited != 0 {
		if err := k.fill(netdBucketId{Id: s.Serial}, Bandwidth{}); err != nil {
			return err
		}
	}
	if s.Flags&netdFlagShared == 0 {
		return nil
	}
	for _, other := range k.links {
		if other.Team == s.Team && other.Flags&netdFlagShared != 0 {
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

// SetAlways says which networks no policy opens, in the place of those said before.
func (k *Kernel) SetAlways(all []netip.Prefix) error {
	four, six := map[netdFixed4]bool{}, map[netdFixed6]bool{}
	for _, p := range all {
		p = p.Masked()
		if p.Addr().Is4() {
			four[netdFixed4{Bits: uint32(p.Bits()), Ip: be32(p.Addr())}] = true
		} else {
			six[netdFixed6{Bits: uint32(p.Bits()), Ip: p.Addr().As16()}] = true
		}
	}
	return errors.Join(replace(k.obj.Always4, four), replace(k.obj.Always6, six))
}

// replace adds before it removes, so that nothing is open in between.
func replace[K comparable](m *ebpf.Map, want map[K]bool) error {
	for key := range want {
		if err := m.Put(&key, uint8(1)); err != nil {
			return err
		}
	}
	var key K
	var v uint8
	var gone []K
	it := m.Iterate()
	for it.Next(&key, &v) {
		if !want[key] {
			gone = append(gone, key)
		}
	}
	for _, key := range gone {
		if err := forget(m, &key); err != nil {
			return err
		}
	}
	return it.Err()
}
