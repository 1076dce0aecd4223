package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"s0.run/internal/policy"
)

// byName opens UDP port 9 to one name.
func byName(name string) string {
	return `{"mode":"block-all","egress":{"trafficRules":[{"name":"n","action":"allow","domains":["` + name + `"],"ports":[{"port":9,"protocol":"udp"}]}]}}`
}

// The process ended before it had forgotten what the last owner learnt.
func TestE23_ASerialIsNotUsedAgainAfterARestart(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	first := attach(t, k, 7)
	setPolicy(t, k, byName("example.com"))
	naming := k.links[loopback].Naming
	if err := k.Detach(first); err != nil {
		t.Fatal(err)
	}
	both := []string{"93.184.0.2", "2606:aaaa::2"}
	for _, ip := range both {
		left := netdNameKey{Naming: naming, Serial: first, Ip: netip.MustParseAddr(ip).As16()}
		if err := k.obj.Names.Put(&left, &netdNameRow{Key: left, Of: netdName{Until: bootTime() + uint64(time.Hour), Slots: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	k.Close()
	k = open(t, dir)
	if second := attach(t, k, 8); second == first {
		t.Error("two sandboxes have one serial")
	}
	setPolicy(t, k, byName("example.com"))
	for _, ip := range both {
		check(t, k, "the last owner's names", udp(ip, 9), MarkDeny)
	}
	if n := size(t, k.obj.Names); n != 0 {
		t.Errorf("%d of what nobody has any more are kept", n)
	}
}

// E21: an address that was learnt for a name is not open to a policy that says
// nothing of the name, though its packets' rules look the same.
func TestE21_WhatWasLearntEndsWithItsNamesPolicy(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	serial := attach(t, k, 7)
	for _, ip := range []string{"93.184.0.2", "2606:aaaa::2"} {
		setPolicy(t, k, byName("example.com"))
		if err := k.learn(serial, netip.MustParseAddr(ip), 1, time.Hour); err != nil {
			t.Fatal(err)
		}
		check(t, k, "learnt", udp(ip, 9), MarkAllow)
		setPolicy(t, k, byName("example.org"))
		check(t, k, "of a policy before", udp(ip, 9), MarkDeny)
		setPolicy(t, k, byName("example.com"))
		check(t, k, "of the same policy again", udp(ip, 9), MarkAllow)
	}
	k.Close()
	k = open(t, dir)
	check(t, k, "in the next process", udp("93.184.0.2", 9), MarkAllow)
}

// E23: what is said of an attachment that has ended concerns nobody.
func TestE23_NobodyActsOnASuccessorsLink(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	first := attach(t, k, 7)
	second := attach(t, k, 8)
	setPolicy(t, k, `{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.2/32","2606:aaaa::2/128"]}}`)
	open, err := policy.Compile(policy.Default(), fixed)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.SetPolicy(first, open, Limits{}); err == nil {
		t.Error("the last owner's policy was taken")
	}
	if err := k.Detach(first); err != nil {
		t.Error(err)
	}
	if _, err := k.Counters(first); err == nil {
		t.Error("the last owner has counters")
	}
	if err := k.Learn(Learnt{Serial: first, IP: netip.MustParseAddr("93.184.0.3"), Slots: 1, TTL: time.Hour}); err != nil || len(k.names) != 0 {
		t.Errorf("it learns %v, %v", k.names, err)
	}
	for _, net := range []string{"93.184.0.", "2606:aaaa::"} {
		check(t, k, "the next owner's policy", tcp(net+"2", 443), MarkAllow)
		check(t, k, "the next owner's policy", tcp(net+"3", 443), MarkDeny)
	}
	if got, ok := k.At(loopback); !ok || got.Serial != second {
		t.Errorf("there is %+v", got)
	}
}

// D11: what one sandbox learns takes no other's place in the table.
func TestD11_NamesAreLearntUpToAShare(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 7)
	setPolicy(t, k, byName("example.com"))
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{93, 185, byte(i >> 8), byte(i)}) }
	for i := range roomForNames.Most + 100 {
		if err := k.learn(serial, at(i), 1, time.Hour+time.Duration(i)*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(k.names[serial]); n != roomForNames.Most || k.nameRoom.Used(serial) != n {
		t.Errorf("it keeps %d, and counts %d", n, k.nameRoom.Used(serial))
	}
	check(t, k, "what ended first", udp(at(99).String(), 9), MarkDeny)
	check(t, k, "the next", udp(at(100).String(), 9), MarkAllow)
	check(t, k, "the last", udp(at(roomForNames.Most+99).String(), 9), MarkAllow)
	if err := k.Detach(serial); err != nil {
		t.Fatal(err)
	}
	var key netdNameKey
	var n netdName
	if it := k.obj.Names.Iterate(); it.Next(&key, &n) || k.nameRoom.Used(serial) != 0 {
		t.Errorf("left: %+v, counted %d", key, k.nameRoom.Used(serial))
	}
}

// naming is a policy that names so many networks, and something else each time.
func naming(t *testing.T, networks int, what string) *policy.Compiled {
	t.Helper()
	text := `{"mode":"block-all","egress":{"allowedCidrs":["` + what + `/32"`
	for i := range networks {
		text += fmt.Sprintf(`,"11.0.%d.0/24"`, i)
	}
	return policyOf(t, text+`]}}`)
}

func policyOf(t *testing.T, text string) *policy.Compiled {
	t.Helper()
	c, err := policy.Compile(mustParse(t, text), fixed)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// D08: policies that name many networks leave the others' their room, and a team's
// the other teams'.
func TestD08_LargePoliciesLeaveRoom(t *testing.T) {
	needKernel(t)
	dir := pins(t)
	k := open(t, dir)
	attach(t, k, 7)
	set := func(c *policy.Compiled, team string) error {
		return k.SetPolicy(k.links[loopback].Serial, c, Limits{Team: team})
	}
	large, small := naming(t, 200, "93.184.0.2"), naming(t, 0, "93.184.0.3")
	if !k.room.Take(teamNumber("greedy"), roomForRules.Most) {
		t.Fatal("there is no room from the start")
	}
	if err := errors.Join(k.SetAlways(fixed.Always()), set(small, "greedy")); err != nil {
		t.Fatalf("a policy as most are: %v", err)
	}
	if err := set(large, "greedy"); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a team's policy beyond its part: %v", err)
	}
	check(t, k, "the one before stays", tcp("93.184.0.3", 443), MarkAllow)
	check(t, k, "the one before stays", tcp("93.184.0.2", 443), MarkDeny)
	if err := set(large, "modest"); err != nil {
		t.Fatalf("another team's: %v", err)
	}
	check(t, k, "the large one", tcp("93.184.0.2", 443), MarkAllow)
	size := beyond(len(large.L4))
	used := func(k *Kernel) int { return k.room.Used(teamNumber("modest")) }
	if used(k) != size {
		t.Errorf("it counts %d of %d", used(k), size)
	}
	if err := set(large, "modest"); err != nil || used(k) != size { // the same again takes nothing
		t.Errorf("it counts %d of %d, %v", used(k), size, err)
	}
	k.Close()
	k = open(t, dir)
	if used(k) != size {
		t.Errorf("the next process counts %d of %d", used(k), size)
	}
	if err := set(small, "modest"); err != nil || used(k) != 0 {
		t.Errorf("%d are left, %v", used(k), err)
	}
}

func mustParse(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// comesIn runs a frame through to_sandbox.
func comesIn(t *testing.T, k *Kernel, frame []byte) (passed bool) {
	t.Helper()
	ret, err := k.obj.ToSandbox.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		t.Fatal(err)
	}
	return ret == 0
}

// back is a packet from somewhere to the sandbox.
func back(protocol uint8, from string, port uint16) frame {
	f := frame{src: netip.MustParseAddr(from), dst: addr4, protocol: protocol, sport: port, dport: 40000, srcMAC: hostMAC, dstMAC: sandboxMAC}
	if f.src.Is6() {
		f.dst = addr6
	}
	return f
}

// E21: answers of whom the policy has closed do not come in, though connections are
// tracked that they belong to.
func TestE21_NoDatagramsFromWhomThePolicyHasClosed(t *testing.T) {
	needKernel(t)
	k := open(t, pins(t))
	serial := attach(t, k, 7)
	want := func(name string, passes bool, f frame) {
		t.Helper()
		if got := comesIn(t, k, f.bytes()); got != passes {
			t.Errorf("%s: passed %v, want %v", name, got, passes)
		}
	}
	for near, far := range map[string]string{"93.184.0.2": "93.184.0.3", "2606:aaaa::2": "2606:aaaa::3"} {
		want("before there is a policy", false, back(unix.IPPROTO_UDP, near, 50009))
		setPolicy(t, k, `{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.2/32","2606:aaaa::2/128"],"allowedPorts":[{"port":50009,"protocol":"udp"}]}}`)
		want("allowed", true, back(unix.IPPROTO_UDP, near, 50009))
		want("another port", false, back(unix.IPPROTO_UDP, near, 50010))
		want("another address", false, back(unix.IPPROTO_UDP, far, 50009))
		want("the resolver's", true, back(unix.IPPROTO_UDP, far, 53))
		want("TCP", true, back(unix.IPPROTO_TCP, far, 443)) // which the sandbox's next packet ends
		setPolicy(t, k, byName("example.com"))
		want("closed", false, back(unix.IPPROTO_UDP, near, 50009))
		want("not learnt", false, back(unix.IPPROTO_UDP, near, 9).with(func(f *frame) { f.sport = 50009 }))
		if err := k.Detach(serial); err != nil {
			t.Fatal(err)
		}
		serial = attach(t, k, 7)
	}
}
