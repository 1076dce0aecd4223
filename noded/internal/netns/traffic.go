package netns

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

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
		id, err := sandbox.ParseID(l.Attrs().Alias)
		if err != nil || l.Attrs().Group != Group {
			continue
		}
		t, err := n.traffic(l)
		if err == nil {
			all[id] = t
		} else if _, gone := n.host.LinkByIndex(l.Attrs().Index); gone == nil {
			return nil, fmt.Errorf("reading traffic of %s: %w", id, err)
		}
	}
	return all, nil
}

// TrafficOf reads the counters of one sandbox's link.
func (n *Net) TrafficOf(s Slot) (t Traffic, err error) {
	l, err := n.host.LinkByIndex(s.Ifindex())
	if err == nil && l.Attrs().Alias != string(s.ID) {
		err = errors.New("the link is another's")
	}
	if err == nil {
		t, err = n.traffic(l)
	}
	if err != nil {
		return Traffic{}, fmt.Errorf("reading traffic of %s: %w", s.ID, err)
	}
	return t, nil
}

// traffic reads both ends of a link.
func (n *Net) traffic(host netlink.Link) (Traffic, error) {
	own, err := n.otherEnd(host)
	if err != nil {
		return Traffic{}, fmt.Errorf("the sandbox's end: %w", err)
	}
	passed, lost := own.Attrs().Statistics, host.Attrs().Statistics
	if passed == nil || lost == nil {
		return Traffic{}, errors.New("a link without counters")
	}
	return view(passed, lost), nil
}

// view is what the sandbox's end has passed: netd moves packets to it past the host's end,
// which counts none of them. What was lost on the way the host's end knows.
func view(own, host *netlink.LinkStatistics) Traffic {
	return Traffic{
		RxBytes: own.RxBytes, TxBytes: own.TxBytes, RxPackets: own.RxPackets, TxPackets: own.TxPackets,
		RxErrors: host.TxDropped + host.TxErrors, TxErrors: host.RxDropped + host.RxErrors,
	}
}

// otherEnd asks for a veth's peer in the peer's namespace, without going there.
func (n *Net) otherEnd(l netlink.Link) (netlink.Link, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: n.raw}}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().ParentIndex)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(l.Attrs().NetNsID))))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 {
		return nil, fmt.Errorf("%d answers", len(answers))
	}
	own, err := netlink.LinkDeserialize(nil, answers[0])
	if err == nil && own.Attrs().ParentIndex != l.Attrs().Index { // it ended, and its namespace's number is another's by now
		return nil, errors.New("the link is another's")
	}
	return own, err
}
