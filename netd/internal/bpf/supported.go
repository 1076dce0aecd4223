package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Supported says what the kernel lacks for the programs, nil when that is nothing.
func Supported() error {
	for _, p := range []ebpf.ProgramType{ebpf.SchedCLS, ebpf.SkLookup} {
		if err := features.HaveProgramType(p); err != nil {
			return fmt.Errorf("BPF programs of type %s: %w", p, err)
		}
	}
	for _, m := range []ebpf.MapType{ebpf.LPMTrie, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.RingBuf, ebpf.SockMap} {
		if err := features.HaveMapType(m); err != nil {
			return fmt.Errorf("BPF maps of type %s: %w", m, err)
		}
	}
	if err := features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectPeer); err != nil {
		return fmt.Errorf("BPF programs that redirect to another namespace: %w", err)
	}
	return nil
}

// countsPeers says whether the kernel counts for a sandbox's end of its link what a program
// moves there past the other end: use is metered by that. Linux 6.7 does; there is no asking
// but by a packet.
func countsPeers() (bool, error) {
	version, err := features.LinuxVersionCode()
	if err != nil {
		return false, fmt.Errorf("the kernel's version: %w", err)
	}
	return version >= 6<<16|7<<8, nil
}
