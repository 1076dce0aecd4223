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
