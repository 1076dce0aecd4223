package procd

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
)

// names gives the sandbox its name, as far as it can: one without works, too.
type names struct {
	etc string
	log *slog.Logger

	writes sync.WaitGroup
	mu     sync.Mutex // orders the writes
}

// set names the machine, which PID 1 alone owns. The files follow behind: they
// take longer than a claim has time for.
func (n *names) set(hostname string) {
	if os.Getpid() != 1 {
		return
	}
	if err := syscall.Sethostname([]byte(hostname)); err != nil {
		n.log.Warn("setting the hostname", "err", err)
	}
	n.writes.Go(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if err := n.write(hostname); err != nil {
			n.log.Warn("writing the names", "err", err)
		}
	})
}

func (n *names) wait() { n.writes.Wait() }

// namesMark tells our own hosts file, which a later name replaces, from one that
// the image or the owner brought.
const namesMark = "# written by s0\n"

// write writes the hostname, and hosts where the image has none.
func (n *names) write(hostname string) error {
	err := os.WriteFile(n.etc+"/hostname", []byte(hostname+"\n"), 0o644)
	hosts, readErr := os.ReadFile(n.etc + "/hosts")
	if readErr == nil && len(hosts) > 0 && !strings.HasPrefix(string(hosts), namesMark) {
		return err
	}
	content := namesMark + "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 " + hostname + "\n"
	return errors.Join(err, os.WriteFile(n.etc+"/hosts", []byte(content), 0o644))
}
