package netd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/bpf"
	"s0.run/netd/internal/dataplane"
	"s0.run/netd/internal/table"
)

// server is what noded talks to.
type server struct {
	*table.Table
	front   *front
	records *audit.Queue
	info    netdapi.Info
}

func (s *server) Info() netdapi.Info { return s.info }

func (s *server) CA(id sandbox.ID) (netdapi.CA, error) { return s.front.CA(id) }

func (s *server) Events(ctx context.Context, tell func(netdapi.Events) error) error {
	for {
		records, dropped, err := s.records.Take(ctx)
		if err != nil {
			return err
		}
		batch := netdapi.Events{Dropped: dropped, Events: make([]netdapi.Event, len(records))}
		for i, r := range records {
			batch.Events[i] = netdapi.Event(r)
		}
		if err := tell(batch); err != nil {
			return err
		}
	}
}

// record tells of a flow that the kernel let pass or denied. Its end is not seen here:
// what passes by address alone has no sizes.
func record(records *audit.Queue, sandboxes *table.Table, e bpf.Event) {
	g, slot, ok := sandboxes.Known(e.Serial)
	if !ok {
		return // it has ended meanwhile
	}
	r := audit.Record{
		Timestamp: e.Time, FlowID: rand.Text(), SandboxID: string(g.ID), Generation: uint64(g.Gen), TeamID: g.Team,
		SrcIP: slot.IPv4, DestIP: e.Dest.Addr(), DestPort: e.Dest.Port(), Transport: transport(e.Protocol),
		ClassifierResult: "l4", Action: audit.Allow, Outcome: audit.Completed, Adapter: "kernel",
	}
	if e.Dest.Addr().Is6() {
		r.SrcIP = slot.IPv6
	}
	switch e.Action {
	case policy.Deny:
		r.Action, r.Outcome, r.Reason = audit.Deny, audit.Denied, e.Reason.String()
	case policy.WouldDeny:
		r.Action, r.Reason = audit.WouldDeny, e.Reason.String()
	}
	records.Add(r)
}

func transport(protocol uint8) string {
	switch protocol {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return fmt.Sprint(protocol)
}

// kernelListens hands the sockets to the kernel.
func kernelListens(kernel *bpf.Kernel, l *dataplane.Listeners) error {
	for which, socket := range map[bpf.Listener]syscall.Conn{
		bpf.Proxy4: l.Proxy4, bpf.Proxy6: l.Proxy6, bpf.DNSTCP4: l.DNSTCP4, bpf.DNSTCP6: l.DNSTCP6, bpf.DNSUDP4: l.DNSUDP4, bpf.DNSUDP6: l.DNSUDP6,
	} {
		c, err := socket.SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		if err := errors.Join(c.Control(func(fd uintptr) { failed = kernel.Listen(which, fd) }), failed); err != nil {
			return fmt.Errorf("listener %d: %w", which, err)
		}
	}
	return nil
}
