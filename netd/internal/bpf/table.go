package bpf

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

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

// entries are a generation's in the rules. Links of a team whose policies say the same
// share one.
type entries struct {
	four    []netdKey4
	six     []netdKey6
	content [32]byte // of the policy's rules; zero: not yet written
	proxied bool     // some rule names the proxy
	links   int      // that use it
	team    uint32   // that has
	room    int      // so much of what is spare for it
}

func (e *entries) size() int { return len(e.four) + len(e.six) }

// beyond is what a generation of so many entries takes of what is spare.
func beyond(size int) int { return max(size-sureRules, 0) }

// The rules' tables hold MAX_ENTRIES each: a policy that names no more networks than
// most do always has its room. Teams share the rest for their larger ones, and a
// quarter of it is the most that one team gets, however many sandboxes it has: some
// sixty of the largest policies that package policy lets anybody have. Some of it is kept
// for the policy that takes another one's place, for they are there together for a moment.
const (
	sureRules    = 16
	replacedRoom = 1 << 12
)

var roomForRules = share.Config{Most: 1 << 16, Spare: 1<<18 - replacedRoom}

// ErrNoRoom is what a large policy ends in where many are.
var ErrNoRoom = errdefs.New(errdefs.Exhausted, "the node has no room for a network policy of so many networks now")

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
	return Place{Serial: s.Serial, Ifindex: ifindex, Owner: s.Owner, IPv4: from32(s.Ip4), IPv6: netip.AddrFrom16(s.Ip6), MAC: s.Mac[:]}
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
	if err = k.count(p.Ifindex, want.Serial); err == nil {
		err = k.put(p.Ifindex, &want)
	}
	if err == nil {
		err = k.lead(p.Ifindex, &want)
	}
	if err != nil {
		return 0, errors.Join(err, k.detach(p.Ifindex), forget(k.obj.Counts, uint32(p.Ifindex)), k.forgetCounts(want.Serial))
	}
	return want.Serial, nil
}

// addressesOf are a sandbox's, as the table of addresses has them.
func addressesOf(s *netdSandbox) [2]netdAddress {
	return [2]netdAddress{{Ip: from32(s.Ip4).As16()}, {Ip: s.Ip6}}
}

// lead has a sandbox's addresses lead to its link. It is called with mu held.
func (k *Kernel) lead(ifindex int, s *netdSandbox) error {
	for _, a := range addressesOf(s) {
		if err := k.obj.Addresses.Put(a, uint32(ifindex)); err != nil {
			return fmt.Errorf("link %d: its addresses: %w", ifindex, err)
		}
	}
	return nil
}

// mislead ends that, unless they lead to another link by now.
func (k *Kernel) mislead(ifindex int, s *netdSandbox) error {
	for _, a := range addressesOf(s) {
		var at uint32
		err := k.obj.Addresses.Lookup(a, &at)
		if err == nil && at == uint32(ifindex) {
			err = forget(k.obj.Addresses, a)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

// count begins to count for an attachment. It is called with mu held.
func (k *Kernel) count(ifindex int, serial uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	if err := k.obj.Counts.Put(uint32(ifindex), make([]netdCounters, cpus)); err != nil {
		return fmt.Errorf("link %d: counters: %w", ifindex, err)
	}
	return k.countFlows(serial)
}

// put is called with mu held.
func (k *Kernel) put(ifindex int, s *netdSandbox) error {
	row := netdSandboxRow{Link: uint32(ifindex), Of: *s}
	if err := k.obj.Sandboxes.Update(uint32(ifindex), &row, inPlace); err != nil {
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
	err := forget(k.obj.Counts, uint32(ifindex))
	old := k.links[ifindex]
	if old != nil {
		err = errors.Join(err, k.mislead(ifindex, old), k.forgetCounts(old.Serial), k.dropBuckets(old))
	}
	if err != nil { // the link stays known, for who asks again
		return fmt.Errorf("what is left of link %d: %w", ifindex, err)
	}
	if old != nil {
		delete(k.links, ifindex)
		delete(k.bySerial, old.Serial)
		k.drop(old.Gen)
		k.forgetNames(old.Serial)
	}
	return nil
}

// inPlace changes what a program may be reading under its lock.
const inPlace = ebpf.UpdateAny | ebpf.UpdateLock

func forget(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// SetPolicy puts a compiled policy and limits into force for an attachment, at once and
// as a whole: the entries are written beside the old ones, one write makes them count, and
// the old ones stay for the packets that are being judged. After an error the old policy
// stays in force.
func (k *Kernel) SetPolicy(serial uint32, c *policy.Compiled, limits Limits) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.awaitRoom()
	ifindex, ok := k.bySerial[serial]
	if !ok {
		return fmt.Errorf("attachment %d has ended", serial)
	}
	old := k.links[ifindex]
	next := *old
	next.Team = teamNumber(limits.Team)
	gen, err := k.take(next.Team, c.L4, old.Gen)
	if err != nil {
		return fmt.Errorf("link %d: rules: %w", ifindex, err)
	}
	next.Gen, next.Naming = gen, c.Naming()
	next.Flags = old.Flags & netdFlagProxied // connections of before may live
	if k.entries[gen].proxied {
		next.Flags |= netdFlagProxied
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
)

// take finds a team's generation whose entries say just this, or writes one, for one
// more link, which is about to leave another generation. It is called with mu held.
func (k *Kernel) take(team uint32, all []policy.PrefixRules, leaves uint32) (gen uint32, err error) {
	content := contentOf(team, statements(all))
	gen, ok := k.shared[content]
	if !ok {
		if !k.room.Replace(team, beyond(len(all)), k.freed(team, leaves)) {
			return 0, ErrNoRoom
		}
		k.generation++
		gen = k.generation
		k.entries[gen] = &entries{team: team, room: beyond(len(all))}
		if err := k.write(gen, all); err != nil {
			k.remove(gen)
			return 0, err
		}
		k.shared[content], k.entries[gen].content = gen, content
	}
	k.entries[gen].links++
	return gen, nil
}

// freed is what a team's room gains when one link leaves a generation.
func (k *Kernel) freed(team, gen uint32) int {
	if e := k.entries[gen]; e != nil && e.links == 1 && e.team == team {
		return e.room
	}
	return 0
}

func statements(all []policy.PrefixRules) [][32]byte {
	said := make([][32]byte, 0, len(all))
	for _, p := range all {
		said = append(said, statement(p))
	}
	return said
}

// statement stands for what an entry says, of whichever generation it is.
func statement(p policy.PrefixRules) [32]byte { return sha256.Sum256(fmt.Appendf(nil, "%v", p)) }

// contentOf stands for whose a generation is and all that it says, in any order.
func contentOf(team uint32, said [][32]byte) [32]byte {
	slices.SortFunc(said, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	return sha256.Sum256(fmt.Appendf(nil, "%d %x", team, said))
}

// write adds a generation's entries.
func (k *Kernel) write(gen uint32, all []policy.PrefixRules) error {
	e := k.of(gen)
	var four, six []netdRules
	for _, p := range all {
		rules, err := encode(p)
		if err != nil {
			return err
		}
		e.proxied = e.proxied || proxied(p)
		bits := uint32(32 + p.Prefix.Bits())
		if a := p.Prefix.Addr(); a.Is4() {
			e.four, four = append(e.four, netdKey4{Bits: bits, Gen: gen, Ip: be32(a)}), append(four, rules)
		} else {
			e.six, six = append(e.six, netdKey6{Bits: bits, Gen: gen, Ip: a.As16()}), append(six, rules)
		}
	}
	return errors.Join(putAll(k.obj.Rules4, e.four, four), putAll(k.obj.Rules6, e.six, six))
}

// putAll puts entries in one call, where the kernel has one for that.
func putAll[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := m.BatchUpdate(keys, values, nil); err == nil {
		return nil
	}
	for i := range keys {
		if err := m.Put(&keys[i], &values[i]); err != nil {
			return fmt.Errorf("entry %d of %d of %s: %w", i, len(keys), m, err)
		}
	}
	return nil
}

// forgetAll is the same for removing; what can't be removed stays.
func forgetAll[K any](m *ebpf.Map, keys []K) {
	if len(keys) == 0 {
		return
	}
	if _, err := m.BatchDelete(keys, nil); err == nil {
		return
	}
	for i := range keys {
		_ = forget(m, &keys[i])
	}
}

func encode(p policy.PrefixRules) (r netdRules, err error) {
	if len(p.Entries) > len(r.Rule) {
		return r, fmt.Errorf("%s: %w", p.Prefix, policy.ErrTooComplex)
	}
	r.N, r.Fallback = uint16(len(p.Entries)), uint8(p.Default)
	for i, e := range p.Entries {
		r.Rule[i] = netdRule{Protocol: uint8(e.Proto), Action: uint8(e.Action), Slot: e.Slot, Unlearned: uint8(e.Unlearned), Low: e.Lo, High: e.Hi}
	}
	return r, nil
}

// decode is the way back.
func decode(prefix netip.Prefix, r netdRules) policy.PrefixRules {
	p := policy.PrefixRules{Prefix: prefix, Default: policy.Action(r.Fallback)}
	for _, e := range r.Rule[:min(int(r.N), len(r.Rule))] {
		p.Entries = append(p.Entries, policy.Entry{Proto: policy.Proto(e.Protocol), Action: policy.Action(e.Action), Slot: e.Slot, Unlearned: policy.Action(e.Unlearned), Lo: e.Low, Hi: e.High})
	}
	return p
}

// proxied says whether an entry names the proxy.
func proxied(p policy.PrefixRules) bool {
	return p.Default == policy.L7 || slices.ContainsFunc(p.Entries, func(e policy.Entry) bool { return e.Action == policy.L7 })
}

// drop ends a link's use of a generation.
func (k *Kernel) drop(gen uint32) {
	if e := k.entries[gen]; e != nil {
		if e.links--; e.links <= 0 {
			k.remove(gen)
		}
	}
}

// remove gives up a generation, which no link uses any more.
func (k *Kernel) remove(gen uint32) {
	e := k.entries[gen]
	if e == nil {
		return
	}
	k.room.Give(e.team, e.room)
	delete(k.entries, gen)
	if k.shared[e.content] == gen {
		delete(k.shared, e.content)
	}
	k.leave(e)
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
