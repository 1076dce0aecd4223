package table

import (
	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
)

// Counters: see [netdapi.Client.Counters].
func (t *Table) Counters() (map[sandbox.ID]netdapi.Counters, error) {
	serials := t.serials()
	all := make(map[sandbox.ID]netdapi.Counters, len(serials))
	for id, serial := range serials {
		n, err := t.cfg.Kernel.Counters(serial)
		if err != nil {
			continue // it has just ended
		}
		all[id] = netdapi.Counters{
			SentPackets: n.SentPackets, SentBytes: n.SentBytes, ReceivedPackets: n.ReceivedPackets, ReceivedBytes: n.ReceivedBytes,
			Denied: n.Denied, Malformed: n.Malformed, Throttled: n.Throttled, Flows: n.Flows,
		}
	}
	return all, nil
}

func (t *Table) serials() map[sandbox.ID]uint32 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make(map[sandbox.ID]uint32, len(t.byID))
	for id, e := range t.byID {
		all[id] = e.serial
	}
	return all
}
