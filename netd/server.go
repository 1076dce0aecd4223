package netd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
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

func (s *server) TakeEvents(ctx context.Context, stored netdapi.Mark) netdapi.Events {
	if stored.Run != s.info.Run {
		stored = netdapi.Mark{Run: s.info.Run}
	}
	records, through := s.records.Take(ctx, stored.Through, netdapi.MaxEvents)
	return netdapi.Events{Mark: netdapi.Mark{Run: s.info.Run, Through: through}, Events: records}
}

// recorder tells of what the kernel judged by itself.
type recorder struct {
	records   *audit.Queue
	sandboxes *table.Table
}

// denied tells of a packet that was denied.
func (r recorder) denied(e bpf.Event) {
	if rec, ok := r.begin(e.Serial, e.Protocol, e.Dest); ok {
		rec.Timestamp, rec.Action, rec.Outcome, rec.Reason = e.Time.UTC(), audit.Deny, audit.Denied, e.Reason.String()
		r.records.Add(rec)
	}
}

// ended tells of a flow that passed. Its sizes are those of its frames.
func (r recorder) ended(f bpf.Flow) {
	rec, ok := r.begin(f.Serial, f.Protocol, f.Dest)
	if !ok {
		return
	}
	rec.Timestamp, rec.DurationMS = f.Began.UTC(), f.Last.Sub(f.Began).Milliseconds()
	rec.EgressBytes, rec.IngressBytes = int64(f.Sent), int64(f.Received)
	rec.Action, rec.Outcome = audit.Allow, audit.Completed
	if f.Action == policy.WouldDeny {
		rec.Action, rec.Reason = audit.WouldDeny, f.Reason.String()
	}
	r.records.Add(rec)
}

// connection is what a flow is for the kernel's tracking, if it is known whose it was.
func (r recorder) connection(f bpf.Flow) (c dataplane.Connection, ok bool) {
	_, slot, ok := r.sandboxes.Known(f.Serial)
	from := slot.IPv4
	if f.Dest.Addr().Is6() {
		from = slot.IPv6
	}
	return dataplane.Connection{Straight: f.Straight, Protocol: f.Protocol, From: netip.AddrPortFrom(from, f.Source), To: f.Dest}, ok
}

// warn says when flows were lost since there were so many: nobody reads.
func (r recorder) warn(log *slog.Logger, before uint64) (lost uint64) {
	if lost = r.records.Lost(); lost > before {
		log.Warn("flows are neither recorded nor counted: nobody takes the records", "flows", lost-before)
	}
	return lost
}

// begin is not ok for what was nobody's: a slot that no sandbox has been told of.
func (r recorder) begin(serial uint32, protocol uint8, to netip.AddrPort) (rec audit.Record, ok bool) {
	g, slot, ok := r.sandboxes.Known(serial)
	if !ok || g.Team == "" {
		return rec, false
	}
	rec = audit.Record{
		FlowID: rand.Text(), SandboxID: string(g.ID), Generation: uint64(g.Gen), TeamID: g.Team,
		SrcIP: slot.IPv4, DestIP: to.Addr(), DestPort: to.Port(), Transport: transport(protocol), ClassifierResult: "l4", Adapter: "kernel",
	}
	if to.Addr().Is6() {
		rec.SrcIP = slot.IPv6
	}
	return rec, true
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
