package publicnet

import (
	"net/netip"
	"testing"
)

func TestA17_OnlyThePublicInternet(t *testing.T) {
	t.Parallel()
	const public, ours, nobodys = "public", "private", "never"
	for address, want := range map[string]string{
		"8.8.8.8": public, "172.32.0.1": public, "::ffff:8.8.8.8": public, "2606:4700::1111": public,
		"127.0.0.1": ours, "::1": ours, "::ffff:127.0.0.1": ours, "10.0.0.1": ours, "172.31.0.1": ours, "192.168.1.1": ours, "fd00::1": ours, "100.64.0.1": ours,
		"169.254.169.254": nobodys, "::ffff:169.254.169.254": nobodys, "64:ff9b::a9fe:a9fe": nobodys, "2002:a9fe:a9fe::": nobodys, "::a9fe:a9fe": nobodys,
		"fe80::1%eth0": nobodys, "fe80::1": nobodys, "fec0::1": nobodys, "0.0.0.0": nobodys, "0.0.0.1": nobodys, "::": nobodys, "192.0.0.192": nobodys,
		"fd00:ec2::254": nobodys, "100.100.100.200": nobodys, "168.63.129.16": nobodys, "224.0.0.1": nobodys, "ff02::1": nobodys, "255.255.255.255": nobodys,
		"2001:db8::1": nobodys, "198.18.0.1": nobodys, "2606:4700::1111%eth0": nobodys,
	} {
		ip := netip.MustParseAddr(address)
		got := nobodys
		switch {
		case Is(ip) && IsPrivate(ip):
			got = "both"
		case Is(ip):
			got = public
		case IsPrivate(ip):
			got = ours
		}
		if got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
		at := netip.AddrPortFrom(ip, 443).String()
		if err := Control(t.Context(), "tcp", at, nil); (err == nil) != (want == public) {
			t.Errorf("dialling %s: %v", at, err)
		}
	}
	if Is(netip.Addr{}) || IsPrivate(netip.Addr{}) || Control(t.Context(), "tcp", "example.com:443", nil) == nil {
		t.Error("what is no address passes")
	}
}
