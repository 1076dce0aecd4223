package netns

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"s0.run/internal/sandbox"
)

// Traffic is what has passed a sandbox's link, as the sandbox sees it.
type Traffic struct {
	RxBytes, TxBytes     uint64
	RxPackets, TxPackets uint64
	RxErrors, TxErrors   uint64 // dropped and broken packets
}

// Traffic reads the counters of every sandbox's link at once.
func (n *Net) Traffic() (map[sandbox.ID]Traffic, error) {
	links, err := n.host.LinkList()
	if err != nil {
		return nil, fmt.Errorf("reading traffic: %w", err)
	}
	all := make(map[sandbox.ID]Traffic, len(links))
	for _, l := range links {
		if id, err := sandbox.ParseID(l.Attrs().Alias); err == nil && l.Attrs().Group == Group {
			all[id] = traffic(l)
		}
	}
	return all, nil
}

// TrafficOf reads the counters of one sandbox's link.
func (n *Net) TrafficOf(s Slot) (Traffic, error) {
	l, err := n.host.LinkByIndex(firstIfindex + int(s.Index))
	if err == nil && l.Attrs().Alias != string(s.ID) {
		err = errors.New("the link is another's")
	}
	if err != nil {
		return Traffic{}, fmt.Errorf("reading traffic of %s: %w", s.ID, err)
	}
	return traffic(l), nil
}

// traffic turns the view of the link's host end around: what it receives, the
// sandbox has sent.
func traffic(l netlink.Link) Traffic {
	s := l.Attrs().Statistics
	if s == nil {
		return Traffic{}
	}
	return Traffic{
		RxBytes: s.TxBytes, TxBytes: s.RxBytes, RxPackets: s.TxPackets, TxPackets: s.RxPackets,
		RxErrors: s.TxDropped + s.TxErrors, TxErrors: s.RxDropped + s.RxErrors,
	}
}
