package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// takeOver learns what an earlier process has left and removes what no link uses.
func (k *Kernel) takeOver() error {
	var ifindex uint32
	var row netdSandboxRow
	used, team := map[uint32]int{}, map[uint32]uint32{}
	links := k.obj.Sandboxes.Iterate()
	for links.Next(&ifindex, &row) {
		s := row.Of
		k.links[int(ifindex)], k.bySerial[s.Serial] = &s, int(ifindex)
		used[s.Gen]++
		team[s.Gen] = s.Team
		k.generation, k.serial = max(k.generation, s.Gen), max(k.serial, s.Serial)
	}
	said, err := k.gather()
	if err := errors.Join(links.Err(), k.gatherNames(), k.takeOverFlows(), err); err != nil {
		return err
	}
	for gen, e := range k.entries {
		k.generation = max(k.generation, gen)
		e.team, e.room = team[gen], beyond(e.size())
		if !k.room.Take(e.team, e.room) {
			e.room = 0 // of another most: it stays, and is not counted
		}
		if e.links = used[gen]; e.links == 0 {
			k.remove(gen)
			continue
		}
		e.content = contentOf(e.team, said[gen]) // whoever says it again needs no room again
		k.shared[e.content] = gen
	}
	return k.sweep()
}

// sweep removes what an earlier process had made of links that it did not come to, or
// had not yet removed of some that it was done with.
func (k *Kernel) sweep() error {
	teams, leads := map[uint32]bool{}, map[netdAddress]bool{}
	for _, s := range k.links {
		teams[s.Team] = teams[s.Team] || s.Flags&netdFlagShared != 0
		for _, a := range addressesOf(s) {
			leads[a] = true
		}
	}
	attached := func(serial uint32) bool {
		_, ok := k.bySerial[serial]
		return ok || serial == everybody
	}
	return errors.Join(
		k.leadAll(),
		removeOthers(k.obj.Addresses, func(a netdAddress) bool { return leads[a] }),
		removeOthers(k.obj.Counts, func(ifindex uint32) bool { return k.links[int(ifindex)] != nil }),
		removeOthers(k.obj.Opened, attached),
		removeOthers(k.obj.Closed, attached),
		removeOthers(k.obj.Buckets, func(id netdBucketId) bool { return id.Team == 0 && attached(id.Id) || id.Team != 0 && teams[id.Id] }),
	)
}

// leadAll has every address lead to a link that has it: a process that was killed may not
// have come to that, and one of a version before had no table of addresses.
func (k *Kernel) leadAll() error {
	for ifindex, s := range k.links {
		for _, a := range addressesOf(s) {
			var at uint32
			err := k.obj.Addresses.Lookup(a, &at)
			if of := k.links[int(at)]; err == nil && of != nil && has(of, a) {
				continue
			}
			if err := k.obj.Addresses.Put(a, uint32(ifindex)); err != nil {
				return fmt.Errorf("link %d: its addresses: %w", ifindex, err)
			}
		}
	}
	return nil
}

func has(s *netdSandbox, a netdAddress) bool {
	all := addressesOf(s)
	return slices.Contains(all[:], a)
}

// removeOthers removes the entries whose keys are not wanted.
func removeOthers[K comparable](m *ebpf.Map, wanted func(K) bool) error {
	var gone []K
	var key, next K
	err := m.NextKey(nil, &next)
	for ; err == nil; err = m.NextKey(&key, &next) {
		if key = next; !wanted(key) {
			gone = append(gone, key)
		}
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("what is left in %s: %w", m, err)
	}
	for _, key := range gone {
		if err := forget(m, &key); err != nil {
			return fmt.Errorf("what is left in %s: %w", m, err)
		}
	}
	return nil
}

// gather finds every entry of the rules, and what those of each generation say.
func (k *Kernel) gather() (said map[uint32][][32]byte, err error) {
	said = map[uint32][][32]byte{}
	var v netdRules
	learn := func(gen, bits uint32, ip netip.Addr) *entries {
		e, p := k.of(gen), decode(netip.PrefixFrom(ip, int(bits)-32), v)
		e.proxied = e.proxied || proxied(p)
		said[gen] = append(said[gen], statement(p))
		return e
	}
	var k4 netdKey4
	four := k.obj.Rules4.Iterate()
	for four.Next(&k4, &v) {
		e := learn(k4.Gen, k4.Bits, from32(k4.Ip))
		e.four = append(e.four, k4)
	}
	var k6 netdKey6
	six := k.obj.Rules6.Iterate()
	for six.Next(&k6, &v) {
		e := learn(k6.Gen, k6.Bits, netip.AddrFrom16(k6.Ip))
		e.six = append(e.six, k6)
	}
	return said, errors.Join(four.Err(), six.Err())
}

func (k *Kernel) of(gen uint32) *entries {
	if k.entries[gen] == nil {
		k.entries[gen] = &entries{}
	}
	return k.entries[gen]
}
