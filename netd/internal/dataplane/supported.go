package dataplane

import (
	"errors"
	"os"
	"runtime"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Supported says what the kernel lacks for the data plane's rules, nil when that is
// nothing. It tries them in a network namespace that ends with the attempt.
func Supported() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and ends with its thread
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			ns, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer ns.Close()
			p := &Plane{cfg: Config{Host: ns, Inside: ns, Net4: uplinks, Net6: anyNet6, Uplink: "s0up"}, uplink: uplinkAt(uplinks.Addr())}
			return errors.Join(p.setRules(), p.setHostRules(0))
		}()
	}()
	return <-result
}

// Clean removes the rules that an uplink has left on its host.
func Clean(uplink string, host *os.File) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(host.Fd())))
	if err != nil {
		return err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name == hostTable(uplink) {
			conn.DelTable(t)
		}
	}
	return conn.Flush()
}
