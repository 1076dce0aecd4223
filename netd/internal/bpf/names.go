package bpf

import (
	"fmt"
	"net/netip"
	"time"

	"s0.run/netd/internal/share"
)

// roomForNames are what MAX_NAMES holds of learnt addresses. What one sandbox learns
// beyond its share takes the place of what it learnt before.
var roomForNames = share.Config{Sure: 8, Most: 2048, Spare: 1 << 17}

// Learnt is an address that a sandbox was answered for a name.
type Learnt struct {
	Serial uint32 // of [Kernel.Attach]
	Naming uint64 // of the policy that the slots are of
	IP     netip.Addr
	Slots  uint64
	TTL    time.Duration
}

// Learn opens an address to a sandbox for a while, in the slots that a name was
// resolved for, and for as long as its policy's slots stand for what they do. Of an
// attachment that has ended nothing is learnt.
func (k *Kernel) Learn(l Learnt) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.bySerial[l.Serial]; !ok {
		return nil
	}
	key := netdNameKey{Naming: l.Naming, Serial: l.Serial, Ip: l.IP.As16()}
	now := bootTime()
	next := netdName{Until: now + uint64(max(l.TTL, 0)), Slots: l.Slots}
	known, is := k.names[l.Serial][key]
	switch {
	case is && known.Until > now:
		next.Until, next.Slots = max(next.Until, known.Until), next.Slots|known.Slots
	case !is && !k.nameRoom.Take(l.Serial, 1) && !k.makeRoom(l.Serial, l.Naming):
		return fmt.Errorf("no room for an address of attachment %d", l.Serial)
	}
	if k.names[l.Serial] == nil {
		k.names[l.Serial] = map[netdNameKey]netdName{}
	}
	k.names[l.Serial][key] = next
	return k.obj.Names.Update(&key, &netdNameRow{Key: key, Of: next}, inPlace)
}

// makeRoom forgets one address of a sandbox: one that no policy in force has use for,
// or the one that ends first. Its place is taken.
func (k *Kernel) makeRoom(serial uint32, naming uint64) bool {
	var first netdNameKey
	ends, found := uint64(0), false
	for key, n := range k.names[serial] {
		if key.Naming != naming {
			n.Until = 0
		}
		if !found || n.Until < ends {
			first, ends, found = key, n.Until, true
		}
	}
	if !found || forget(k.obj.Names, &first) != nil {
		return false
	}
	delete(k.names[serial], first)
	return true
}

// forgetNames forgets what a sandbox learnt. What can't be removed is nobody's: its
// serial is not used again.
func (k *Kernel) forgetNames(serial uint32) {
	for key := range k.names[serial] {
		_ = forget(k.obj.Names, &key)
	}
	k.nameRoom.Give(serial, len(k.names[serial]))
	delete(k.names, serial)
}

// gatherNames finds what an earlier process has learnt, and removes what is of
// attachments that have ended. Links are known by then.
func (k *Kernel) gatherNames() error {
	var key netdNameKey
	var row netdNameRow
	var gone []netdNameKey
	all := k.obj.Names.Iterate()
	for all.Next(&key, &row) {
		k.serial = max(k.serial, key.Serial)
		if _, ok := k.bySerial[key.Serial]; !ok || !k.nameRoom.Take(key.Serial, 1) {
			gone = append(gone, key)
			continue
		}
		if k.names[key.Serial] == nil {
			k.names[key.Serial] = map[netdNameKey]netdName{}
		}
		k.names[key.Serial][key] = row.Of
	}
	for _, key := range gone {
		if err := forget(k.obj.Names, &key); err != nil {
			return err
		}
	}
	return all.Err()
}
