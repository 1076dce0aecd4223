package netd

import (
	"fmt"
	"os"

	"s0.run/netd/internal/bpf"
	"s0.run/netd/internal/dataplane"
)

// Check says what this machine's kernel lacks, nil when that is nothing. It needs root
// and leaves nothing behind.
func Check() error {
	if err := bpf.Supported(); err != nil {
		return err
	}
	if err := dataplane.Supported(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Clean removes what a netd that runs no more has left on the host, beside its
// directory.
func Clean(netns string) error {
	host, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	return dataplane.Clean(UplinkName(netns), host)
}
