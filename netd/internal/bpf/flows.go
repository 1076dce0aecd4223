package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"s0.run/internal/policy"
)

// A flow is over when nothing of it was seen for so long. Package dataplane has the
// kernel forget its connections no later, so that what is open here is what they take.
const (
	ClosedIdle      = 5 * time.Second  // both sides have ended it, or one has reset it
	UnansweredIdle  = 30 * time.Second // nothing came back
	DatagramIdle    = time.Minute
	HalfClosedIdle  = time.Minute // one side has ended it
	EstablishedIdle = time.Hour
)

// Flow is a connection, or datagrams back and forth, that passed by its address alone.
type Flow struct {
	Serial         uint32 // of the attachment
	Action         policy.Action
	Reason         Reason // of [policy.WouldDeny]
	Protocol       uint8  // of IP
	Source         uint16
	Dest           netip.AddrPort
	Began, Last    time.Time
	Sent, Received uint64 // bytes of frames
	Straight       bool   // past the namespace's rules: the host tracks it
}

// everybody stands for the serial of all sandboxes together.
const everybody uint32 = 0

// flowBatch is how many entries are looked at in one call.
const flowBatch = 4096

// EndFlows takes out the flows that are over, those of links that are detached
// included, and hands them over.
func (k *Kernel) EndFlows(take func(Flow)) error { return k.endFlows(bootTime(), take) }

func (k *Kernel) endFlows(now uint64, take func(Flow)) error {
	attached := k.serials()
	ended := map[uint32]uint64{}
	err := k.eachFlow(func(key *netdFlowKey, f *netdFlow) error {
		if attached[key.Serial] && !over(key, f, now) {
			return nil
		}
		if err := k.obj.Flows.Delete(key); errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		ended[key.Serial]++
		ended[everybody]++
		take(flowOf(key, f, now))
		return nil
	})
	return errors.Join(err, k.addClosed(ended))
}

func (k *Kernel) serials() map[uint32]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	serials := make(map[uint32]bool, len(k.links))
	for _, s := range k.links {
		serials[s.Serial] = true
	}
	return serials
}

// eachFlow looks at every flow. What f deletes meanwhile is no matter.
func (k *Kernel) eachFlow(f func(*netdFlowKey, *netdFlow) error) error {
	keys, values := make([]netdFlowKey, flowBatch), make([]netdFlow, flowBatch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := k.obj.Flows.BatchLookup(&cursor, keys, values, nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return fmt.Errorf("reading flows: %w", err)
		}
		for i := range n {
			if err := f(&keys[i], &values[i]); err != nil {
				return fmt.Errorf("a flow of serial %d: %w", keys[i].Serial, err)
			}
		}
		if last {
			return nil
		}
	}
}

func over(key *netdFlowKey, f *netdFlow, now uint64) bool {
	limit := EstablishedIdle
	switch fin := f.FinSent != 0 || f.FinReceived != 0; {
	case f.Reset != 0 || f.FinSent != 0 && f.FinReceived != 0:
		limit = ClosedIdle
	case f.Received == 0:
		limit = UnansweredIdle
	case key.Protocol == protocolUDP:
		limit = DatagramIdle
	case fin:
		limit = HalfClosedIdle
	}
	return now > f.Last && now-f.Last > uint64(limit)
}

const protocolUDP = uint8(policy.ProtoUDP)

func flowOf(key *netdFlowKey, f *netdFlow, now uint64) Flow {
	at := func(boot uint64) time.Time { return time.Now().Add(-time.Duration(now - boot)) }
	return Flow{
		Serial: key.Serial, Action: policy.Action(f.Action), Reason: Reason(f.Reason), Protocol: key.Protocol, Source: key.Sport,
		Dest:  netip.AddrPortFrom(netip.AddrFrom16(key.Dst).Unmap(), key.Dport),
		Began: at(f.Began), Last: at(f.Last), Sent: f.Sent, Received: f.Received, Straight: f.Straight != 0,
	}
}

// addClosed counts what was taken out.
func (k *Kernel) addClosed(ended map[uint32]uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for serial, n := range ended {
		var closed uint64
		err := k.obj.Closed.Lookup(serial, &closed)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue // it was detached
		}
		if err == nil {
			err = k.obj.Closed.Update(serial, closed+n, ebpf.UpdateExist)
		}
		if err != nil {
			return fmt.Errorf("counting the flows of serial %d: %w", serial, err)
		}
	}
	return nil
}

// countFlows lets a serial have flows. It is called with mu held, or before anybody
// else has the Kernel.
func (k *Kernel) countFlows(serial uint32) error {
	for _, m := range []*ebpf.Map{k.obj.Closed, k.obj.Opened} {
		if err := m.Update(serial, uint64(0), ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("flows of serial %d: %w", serial, err)
		}
	}
	return nil
}

func (k *Kernel) forgetCounts(serial uint32) error {
	return errors.Join(forget(k.obj.Opened, serial), forget(k.obj.Closed, serial))
}

// takeOverFlows counts what an earlier process has left, and makes sure that no serial
// is given out that a flow has.
func (k *Kernel) takeOverFlows() error {
	serials := []uint32{everybody}
	for _, s := range k.links {
		serials = append(serials, s.Serial)
	}
	opened := map[uint32]uint64{} // before flows are counted: what begins meanwhile counts twice, never less
	for _, serial := range serials {
		if err := k.countFlows(serial); err != nil {
			return err
		}
		var n uint64
		if err := k.obj.Opened.Lookup(serial, &n); err != nil {
			return err
		}
		opened[serial] = n
	}
	open := map[uint32]uint64{}
	err := k.eachFlow(func(key *netdFlowKey, _ *netdFlow) error {
		open[key.Serial]++
		open[everybody]++
		k.serial = max(k.serial, key.Serial)
		return nil
	})
	for _, serial := range serials {
		err = errors.Join(err, k.obj.Closed.Put(serial, opened[serial]-min(opened[serial], open[serial])))
	}
	return err
}
