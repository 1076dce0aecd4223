package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"s0.run/internal/policy"
)

// Reason is why a packet was denied.
type Reason uint8

func (r Reason) String() string {
	names := [...]string{
		netdReasonWHY_RULE: "policy", netdReasonWHY_NOPOLICY: "no policy", netdReasonWHY_FIXED: "always denied",
		netdReasonWHY_UNLEARNED: "address of no resolved name", netdReasonWHY_SPOOFED: "spoofed source",
		netdReasonWHY_NOT_IP: "not IP", netdReasonWHY_FRAGMENT: "fragment", netdReasonWHY_OPTIONS: "IP options",
		netdReasonWHY_PROTOCOL: "protocol", netdReasonWHY_ICMP: "ICMP", netdReasonWHY_SHORT: "malformed",
		netdReasonWHY_FLOWS: "too many flows",
	}
	if int(r) < len(names) && names[r] != "" {
		return names[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Event is one packet that was denied.
type Event struct {
	Time     time.Time
	Serial   uint32 // of the attachment
	Action   policy.Action
	Reason   Reason
	Protocol uint8 // of IP
	Source   uint16
	Dest     netip.AddrPort
}

// eventBytes is an event's size on the ring.
const eventBytes = 40

// Events hands over verdicts until ctx ends. It is called once.
func (k *Kernel) Events(ctx context.Context, take func(Event)) error {
	r, err := ringbuf.NewReader(k.obj.Events)
	if err != nil {
		return fmt.Errorf("reading verdicts: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	defer r.Close()
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); errors.Is(err, ringbuf.ErrClosed) {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("reading verdicts: %w", err)
		}
		if len(rec.RawSample) == eventBytes {
			take(parseEvent(rec.RawSample))
		}
	}
}

func parseEvent(b []byte) Event {
	native := binary.NativeEndian
	age := time.Duration(bootTime() - native.Uint64(b))
	return Event{
		Time: time.Now().Add(-age), Serial: native.Uint32(b[8:]),
		Action: policy.Action(b[12]), Reason: Reason(b[13]), Protocol: b[14],
		Source: native.Uint16(b[16:]),
		Dest:   netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[20:36])).Unmap(), native.Uint16(b[18:])),
	}
}

// Counters are a link's since it was attached.
type Counters struct {
	SentPackets, SentBytes, ReceivedPackets, ReceivedBytes uint64
	Denied, Malformed, Throttled                           uint64
	Flows                                                  uint64 // that were let begin, to netd's proxy included
	LostEvents                                             uint64
}

// Counters reads those of an attachment.
func (k *Kernel) Counters(serial uint32) (sum Counters, err error) {
	k.mu.Lock()
	ifindex, ok := k.bySerial[serial]
	k.mu.Unlock()
	if !ok {
		return sum, fmt.Errorf("attachment %d has ended", serial)
	}
	var each []netdCounters
	if err := k.obj.Counts.Lookup(uint32(ifindex), &each); err != nil {
		return sum, fmt.Errorf("counters of link %d: %w", ifindex, err)
	}
	for _, c := range each {
		sum.SentPackets += c.SentPackets
		sum.SentBytes += c.SentBytes
		sum.ReceivedPackets += c.ReceivedPackets
		sum.ReceivedBytes += c.ReceivedBytes
		sum.Denied += c.Denied
		sum.Malformed += c.Malformed
		sum.Throttled += c.Throttled
		sum.Flows += c.Flows
		sum.LostEvents += c.Lost
	}
	return sum, nil
}
