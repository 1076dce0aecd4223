package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"s0.run/internal/policy"
)

// G12: whatever step of an attachment or of its end was the last one of a process that
// was killed, the next leaves nothing of it behind, and everything of those that live.
func TestG12_WhatAKilledProcessHasLeft(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	limited := Limits{Team: "living", Own: Bandwidth{Sent: Rate{Bytes: 1 << 30}}, Shared: Bandwidth{Received: Rate{Bytes: 1 << 30}}}
	open4, err := policy.Compile(policy.Default(), fixed)
	if err != nil {
		t.Fatal(err)
	}
	living := attach(t, k, 1)
	if err := k.SetPolicy(living, open4, limited); err != nil {
		t.Fatal(err)
	}
	check(t, k, "a flow", tcp("93.184.0.2", 443), MarkAllow)
	before := sizes(t, k)

	// One that was being attached, or detached: in every table but that of links.
	const ifindex, dead = 77, 1000
	gone := netdSandbox{Serial: dead, Team: teamNumber("dead")}
	limited.Team = "dead"
	if err := errors.Join(k.count(ifindex, dead), k.limit(&gone, limited)); err != nil {
		t.Fatal(err)
	}
	for name, n := range sizes(t, k) {
		if n == before[name] {
			t.Fatalf("nothing was left in %s", name)
		}
	}
	k.Close()
	k = open(t, dir)
	for name, n := range sizes(t, k) {
		if was := before[name]; n != was {
			t.Errorf("%s has %d entries, and had %d", name, n, was)
		}
	}
	check(t, k, "another flow", tcp("93.184.0.3", 443), MarkAllow)
	if n, err := k.Counters(living); err != nil || n.SentPackets != 2 {
		t.Errorf("of the living one it counts %+v, %v", n, err)
	}
	if err := k.Detach(living); err != nil {
		t.Fatal(err)
	}
	for name, n := range sizes(t, k) {
		if n > 0 && !(n == 1 && (name == "opened" || name == "closed")) { // of all together
			t.Errorf("at the end %s has %d entries", name, n)
		}
	}
}

// D08: a team that has all of its share has it after a restart: what its links say again
// is what is there already, and needs no room beside it, whether it is a link's own or
// several links'.
func TestD08_ATeamAtItsShareKeepsItsPolicies(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	const team = "full"
	own, common := naming(t, 200, "93.184.0.2"), naming(t, 100, "93.184.0.3")
	opened := policyOf(t, `{"mode":"block-all","egress":{"allowedDomains":["good.example"]}}`) // by the proxy
	compiled := []*policy.Compiled{own, common, common, opened}
	put := func() {
		t.Helper()
		for i, c := range compiled {
			at := Place{Ifindex: 70 + i, Owner: uint64(i), IPv4: addr4, IPv6: addr6, MAC: sandboxMAC}
			serial, err := k.Attach(at)
			if err == nil {
				err = k.SetPolicy(serial, c, Limits{Team: team})
			}
			if err != nil {
				t.Fatalf("link %d: %v", at.Ifindex, err)
			}
		}
	}
	rest := roomForRules.Most - beyond(len(own.L4)) - beyond(len(common.L4))
	full := func() bool { return k.room.Take(teamNumber(team), rest) && !k.room.Take(teamNumber(team), 1) }
	put()
	if !full() {
		t.Fatal("the team has not all of its share")
	}
	before := sizeOfRules(t, k)
	k.Close()
	k = open(t, dir)
	if !full() {
		t.Error("the next process counts something else")
	}
	put()
	if n := sizeOfRules(t, k); n != before || len(k.entries) != 3 || len(k.shared) != 3 {
		t.Errorf("%d entries of %d generations, %d of them known by what they say; there were %d", n, len(k.entries), len(k.shared), before)
	}
	for i, want := range []bool{false, false, false, true} {
		if got := k.entries[k.links[70+i].Gen].proxied; got != want {
			t.Errorf("link %d is proxied: %v", 70+i, got)
		}
	}
}

// A team that has all of its share replaces a large policy by one as large, for the old
// one's room is the new one's; a larger one has no room, and the old one stays.
func TestD08_ALargePolicyTakesAnothersPlace(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	const team = "full"
	serial := attach(t, k, 1)
	set := func(networks int, host string) error {
		return k.SetPolicy(serial, naming(t, networks, host), Limits{Team: team})
	}
	if err := set(200, "93.184.0.2"); err != nil {
		t.Fatal(err)
	}
	number := teamNumber(team)
	if !k.room.Take(number, roomForRules.Most-k.room.Used(number)) {
		t.Fatal("the team has not all of its share")
	}
	before := sizeOfRules(t, k)
	for _, host := range []string{"93.184.0.3", "93.184.0.4"} {
		if err := set(200, host); err != nil {
			t.Fatal(err)
		}
		if n := sizeOfRules(t, k); n != before || k.room.Used(number) != roomForRules.Most {
			t.Errorf("%d entries, and %d are counted", n, k.room.Used(number))
		}
	}
	gen := k.links[loopback].Gen
	if err := set(201, "93.184.0.5"); !errors.Is(err, ErrNoRoom) || k.links[loopback].Gen != gen {
		t.Errorf("one more: %v", err)
	}
	if err := k.Detach(serial); err != nil {
		t.Fatal(err)
	}
	if n := sizeOfRules(t, k); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

// sizeOfRules counts what is there once nothing is leaving any more.
func sizeOfRules(t *testing.T, k *Kernel) int {
	t.Helper()
	k.mu.Lock()
	for k.leavingSize > 0 {
		k.fewer.Wait()
	}
	k.mu.Unlock()
	return size(t, k.obj.Rules4) + size(t, k.obj.Rules6)
}

// A change that fails behind its first writes leaves nothing at the attachment's end.
func TestG12_BandwidthOfAChangeThatFailed(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 1)
	half := *k.links[loopback]
	half.Team = teamNumber("t")
	if err := k.limit(&half, Limits{Team: "t", Own: Bandwidth{Sent: Rate{Bytes: 1}}, Shared: Bandwidth{Sent: Rate{Bytes: 1}}}); err != nil {
		t.Fatal(err)
	}
	k.links[loopback].Team = half.Team // which the policy before had said
	if err := k.Detach(serial); err != nil {
		t.Fatal(err)
	}
	if n := size(t, k.obj.Buckets); n != 0 {
		t.Errorf("%d buckets are left", n)
	}
}

// counting are the tables that a link has entries in beside its own.
func (k *Kernel) counting() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{"counts": k.obj.Counts, "opened": k.obj.Opened, "closed": k.obj.Closed, "buckets": k.obj.Buckets}
}

func sizes(t *testing.T, k *Kernel) map[string]int {
	t.Helper()
	all := map[string]int{}
	for name, m := range k.counting() {
		all[name] = size(t, m)
	}
	return all
}

func size(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	key, err := m.NextKeyBytes(nil)
	for ; key != nil && err == nil; n++ {
		key, err = m.NextKeyBytes(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}
