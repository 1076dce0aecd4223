package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newNamespace makes a network namespace that ends with the test.
func newNamespace(t *testing.T) *os.File {
	t.Helper()
	made := make(chan error)
	var ns *os.File
	go func() {
		runtime.LockOSThread() // and ends with its thread
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// host is what a plane without programs finds, and the order of what it does there.
type host struct {
	t    *testing.T
	p    *Plane
	told []string
	fail error
}

func newHost(t *testing.T) *host {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	h := &host{t: t}
	h.p = &Plane{wayOut: undecided, cfg: Config{
		Host: newNamespace(t), Inside: newNamespace(t), Uplink: "s0t", SetWayOut: h.setWayOut,
		Net4: netip.MustParsePrefix("10.77.0.0/16"), Net6: netip.MustParsePrefix("fd77::/64"),
	}}
	t.Cleanup(h.p.Close)
	if err := errors.Join(h.p.connect(), h.p.setUplink()); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) setWayOut(ifindex int) error {
	h.told = append(h.told, fmt.Sprintf("straight %t, %d routes, translated %t", ifindex != 0, h.routes(), h.translates()))
	return h.fail
}

func (h *host) routes() (n int) {
	h.t.Helper()
	all, err := h.p.host.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, r := range all {
		if to, ok := destination(r); ok && (to == h.p.cfg.Net4 || to == h.p.cfg.Net6) {
			n++
		}
	}
	return n
}

// translates says whether the host's rules do that to sandboxes' own addresses.
func (h *host) translates() bool {
	h.t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(h.p.cfg.Host.Fd())))
	if err != nil {
		h.t.Fatal(err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: hostTable(h.p.cfg.Uplink)}
	rules, err := conn.GetRules(table, &nftables.Chain{Name: "c_postrouting", Table: table})
	if errors.Is(err, unix.ENOENT) {
		return false
	}
	if err != nil {
		h.t.Fatal(err)
	}
	net4 := h.p.cfg.Net4.Addr().AsSlice()
	return slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			c, ok := e.(*expr.Cmp)
			return ok && slices.Equal(c.Data, net4)
		})
	})
}

// refreshes says what the plane told meanwhile.
func (h *host) refreshes(want ...string) {
	h.t.Helper()
	h.told = nil
	if err := h.p.Refresh(); err != nil {
		h.t.Fatal(err)
	}
	if !slices.Equal(h.told, want) {
		h.t.Errorf("told %q, want %q", h.told, want)
	}
}

const (
	isStraight = "straight true, 2 routes, translated true"
	endsFirst  = "straight false, 2 routes, translated true"
	isOver     = "straight false, 0 routes, translated false"
)

// aNetwork is the host's own, and part of the sandboxes'.
func (h *host) aNetwork() (remove func()) {
	h.t.Helper()
	lo, err := h.p.host.LinkByName("lo")
	if err != nil {
		h.t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("10.77.99.1/24")
	if err != nil {
		h.t.Fatal(err)
	}
	if err := errors.Join(h.p.host.LinkSetUp(lo), h.p.host.AddrAdd(lo, addr)); err != nil {
		h.t.Fatal(err)
	}
	return func() {
		if err := h.p.host.AddrDel(lo, addr); err != nil {
			h.t.Fatal(err)
		}
	}
}

// E16: packets leave straight when all is there that this needs, and until any of it goes.
func TestE16_StraightIsTheLastAndTheFirst(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.refreshes(isStraight)
	h.refreshes(isStraight)
	remove := h.aNetwork()
	h.refreshes(endsFirst, isOver)
	remove()
	h.refreshes(isStraight)
}

// E16, X31: what fails is done again, and before packets leave straight.
func TestE16_X31_WhatFailsIsDoneAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ns := h.p.cfg.Host
	withoutRules := func() {
		t.Helper()
		none, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer none.Close()
		h.p.cfg.Host, h.p.cfg.SetWayOut = none, func(ifindex int) error {
			if ifindex != 0 {
				t.Error("packets leave straight without rules")
			}
			return nil
		}
		if err := h.p.Refresh(); err == nil {
			t.Error("rules are set in what is no namespace")
		}
		h.p.cfg.Host, h.p.cfg.SetWayOut = ns, h.setWayOut
	}
	withoutRules()
	h.refreshes(isStraight)
	remove := h.aNetwork()
	h.fail = errors.New("not now")
	if err := h.p.Refresh(); !errors.Is(err, h.fail) || h.routes() != 2 {
		t.Errorf("while packets may leave straight: %v, %d routes", err, h.routes())
	}
	h.fail = nil
	withoutRules()
	h.refreshes("straight false, 0 routes, translated true", isOver)
	remove()
	h.refreshes(isStraight)
}
