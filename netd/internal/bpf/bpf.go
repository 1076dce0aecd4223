// Package bpf is netd's part in the kernel: the programs that judge every packet
// of a sandbox, and the tables that they judge by.
//
// The programs are netd.c, compiled ahead of time (go generate) and embedded. The
// tables and the sk_lookup link are pinned, so that they outlive this process: after
// its death every packet is still judged as the last policy said, and the next
// process takes them over. In user space the package keeps only what it needs to
// find its own entries again. It resolves nothing and knows no sandbox by its id,
// only by its link; whose a link is its caller decides.
//
// A [Kernel] owns one goroutine, which removes what no policy in force says any more,
// and ends with [Kernel.Close].
package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"s0.run/netd/internal/share"
)

// Config says where the sandboxes are.
type Config struct {
	PinDir  string       // on a bpffs; made when it is missing
	Net4    netip.Prefix // holds every sandbox's address
	Net6    netip.Prefix // the same, a /64
	HostMAC net.HardwareAddr
}

// The marks with which packets leave from_sandbox.
const (
	MarkLocal = uint32(netdMarkMARK_LOCAL) // to netd's own sockets
	MarkDeny  = uint32(netdMarkMARK_DENY)  // to be refused
	MarkAllow = uint32(netdMarkMARK_ALLOW) // to be forwarded
)

// A Listener is one of netd's sockets that packets of sandboxes are handed to.
type Listener uint32

// The listeners.
const (
	Proxy4  = Listener(netdListenerSOCK_PROXY4)
	Proxy6  = Listener(netdListenerSOCK_PROXY6)
	DNSTCP4 = Listener(netdListenerSOCK_DNS_TCP4)
	DNSTCP6 = Listener(netdListenerSOCK_DNS_TCP6)
	DNSUDP4 = Listener(netdListenerSOCK_DNS_UDP4)
	DNSUDP6 = Listener(netdListenerSOCK_DNS_UDP6)
)

// Kernel is the loaded programs and their tables. It is safe for concurrent use, but
// of one link's changes the caller makes one at a time.
type Kernel struct {
	cfg         Config
	peerCounted bool // see countsPeers
	obj         netdObjects
	lookup      link.Link // nil before AttachLookup
	grace       *grace
	removed     chan struct{} // closed when nothing is removed any more

	mu         sync.Mutex
	generation uint32                              // the last one given out
	serial     uint32                              // likewise
	links      map[int]*netdSandbox                // by ifindex, as the table has them
	bySerial   map[uint32]int                      // the links' numbers
	entries    map[uint32]*entries                 // by generation
	shared     map[[32]byte]uint32                 // generations by whose they are and what they say
	room       *share.Pool[uint32]                 // of the rules' tables, by team
	names      map[uint32]map[netdNameKey]netdName // by serial, as the table has them
	nameRoom   *share.Pool[uint32]                 // of that, by serial

	left        chan struct{} // says that something is leaving; nil once it is closed
	leaving     []*entries    // that judge no packet but those that are being judged
	leavingSize int           // how many are in the tables yet: of leaving and what is being removed
	fewer       *sync.Cond    // tells of leavingSize, on mu
}

// Open loads the programs, over the tables that an earlier process has pinned. Tables
// of another layout are given up: nothing passes until they are filled again.
func Open(cfg Config) (*Kernel, error) {
	peerCounted, err := countsPeers()
	if err != nil {
		return nil, err
	}
	return openOn(cfg, peerCounted)
}

func openOn(cfg Config, peerCounted bool) (*Kernel, error) {
	if !cfg.Net4.Addr().Is4() || !cfg.Net6.Addr().Is6() || cfg.Net6.Bits() != 64 || len(cfg.HostMAC) != 6 {
		return nil, fmt.Errorf("sandboxes' networks %v and %v behind %v: want IPv4, an IPv6 /64 and a MAC", cfg.Net4, cfg.Net6, cfg.HostMAC)
	}
	if err := os.MkdirAll(cfg.PinDir, 0o700); err != nil {
		return nil, err
	}
	k := &Kernel{
		cfg: cfg, peerCounted: peerCounted, links: map[int]*netdSandbox{}, bySerial: map[uint32]int{}, entries: map[uint32]*entries{}, shared: map[[32]byte]uint32{},
		room: share.New[uint32](roomForRules), names: map[uint32]map[netdNameKey]netdName{}, nameRoom: share.New[uint32](roomForNames),
		removed: make(chan struct{}), left: make(chan struct{}, 1),
	}
	k.fewer = sync.NewCond(&k.mu)
	err := k.load()
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		if err = unpin(cfg.PinDir); err == nil {
			err = k.load()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("loading BPF programs: %w", err)
	}
	if k.grace, err = newGrace(); err != nil {
		k.obj.Close()
		return nil, err
	}
	go k.removeLeaving(k.left)
	if err := k.takeOver(); err != nil {
		k.Close()
		return nil, fmt.Errorf("reading pinned tables: %w", err)
	}
	return k, nil
}

func (k *Kernel) load() error {
	spec, err := loadNetd()
	if err != nil {
		return err
	}
	var vars netdVariableSpecs
	if err := spec.Assign(&vars); err != nil {
		return err
	}
	net6 := k.cfg.Net6.Masked().Addr().As16()
	for v, value := range map[*ebpf.VariableSpec]any{
		vars.Net4: be32(k.cfg.Net4.Masked().Addr()), vars.Mask4: mask32(k.cfg.Net4.Bits()),
		vars.Net6:    [2]uint32{binary.NativeEndian.Uint32(net6[:4]), binary.NativeEndian.Uint32(net6[4:8])},
		vars.HostMac: [6]byte(k.cfg.HostMAC), vars.PeerCounted: k.peerCounted,
	} {
		if err := v.Set(value); err != nil {
			return err
		}
	}
	return spec.LoadAndAssign(&k.obj, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: k.cfg.PinDir}})
}

// be32 has an address's bytes in the order of the wire, in memory.
func be32(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// from32 is the way back.
func from32(ip uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.NativeEndian.AppendUint32(nil, ip)))
}

func mask32(bits int) uint32 { return binary.NativeEndian.Uint32(net.CIDRMask(bits, 32)) }

func unpin(dir string) error {
	pins, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if err := os.Remove(filepath.Join(dir, p.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Close removes what is leaving and lets go; what is pinned or attached works on. It may
// be called again.
func (k *Kernel) Close() error {
	k.mu.Lock()
	left := k.left
	k.left = nil
	k.mu.Unlock()
	if left != nil {
		close(left)
		<-k.removed
		k.grace.close()
	}
	var err error
	if k.lookup != nil {
		err = k.lookup.Close()
	}
	return errors.Join(err, k.obj.Close())
}

// FromSandbox and ToSandbox are the descriptors of the programs for both directions of
// each link.
func (k *Kernel) FromSandbox() int { return k.obj.FromSandbox.FD() }

// ToSandbox: see [Kernel.FromSandbox].
func (k *Kernel) ToSandbox() int { return k.obj.ToSandbox.FD() }

// FromUplink is that of the program for what comes in through the way out.
func (k *Kernel) FromUplink() int { return k.obj.FromUplink.FD() }

// SetUplink names the link of the namespace whose other end is in the host's: what
// passes by its address alone leaves there, past the namespace's rules. With 0 it is
// marked [MarkAllow], and so is the rest of what has begun that way.
func (k *Kernel) SetUplink(ifindex int) error {
	if err := k.obj.Uplink.Put(uint32(0), uint32(ifindex)); err != nil {
		return fmt.Errorf("the way out: %w", err)
	}
	return nil
}

// AttachLookup puts the program that picks netd's sockets to work in a network
// namespace, in the place of an earlier process's.
func (k *Kernel) AttachLookup(netns *os.File) error {
	pin := filepath.Join(k.cfg.PinDir, "lookup")
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		if err := l.Update(k.obj.Pick); err == nil {
			k.lookup = l
			return nil
		}
		l.Close() // of a namespace that is gone
		if err := os.Remove(pin); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the pinned sk_lookup link: %w", err)
	}
	l, err := link.AttachNetNs(int(netns.Fd()), k.obj.Pick)
	if err != nil {
		return fmt.Errorf("attaching sk_lookup: %w", err)
	}
	if err := l.Pin(pin); err != nil {
		l.Close()
		return fmt.Errorf("pinning sk_lookup: %w", err)
	}
	k.lookup = l
	return nil
}

// Listen hands to a socket what is meant for a listener. It lasts as long as the
// socket; without one, such packets are dropped.
func (k *Kernel) Listen(l Listener, fd uintptr) error {
	return k.obj.Sockets.Put(uint32(l), uint64(fd))
}
