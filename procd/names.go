package procd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// names gives the sandbox its names, as far as it can: one without works, too.
type names struct {
	etc string
	log *slog.Logger

	writes sync.WaitGroup
	mu     sync.Mutex // orders the writes
}

// set names the machine, which PID 1 alone owns. The files that tell its name follow
// behind: they take longer than a claim has time for. The one that tells a clone from what
// it was cloned from is there before anything of the clone's own runs.
func (n *names) set(hostname string) {
	if os.Getpid() != 1 {
		return
	}
	if err := syscall.Sethostname([]byte(hostname)); err != nil {
		n.log.Warn("setting the hostname", "err", err)
	}
	if err := n.identify(hostname); err != nil {
		n.log.Warn("writing the machine id", "err", err)
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

// identify gives a machine that has had another name an id of its own, where it has one
// at all. It follows from the name, so a sandbox that is resumed keeps it.
func (n *names) identify(hostname string) error {
	was, err := os.ReadFile(n.etc + "/hostname")
	if err == nil && string(was) == hostname+"\n" {
		return nil
	}
	f, err := os.OpenFile(n.etc+"/machine-id", os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(machineID(hostname))
	return errors.Join(err, f.Close())
}

// machineID is one in the form of a random UUID's digits, as machine-id(5) wants.
func machineID(hostname string) string {
	id := sha256.Sum256([]byte("s0 machine-id " + hostname))
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return hex.EncodeToString(id[:16]) + "\n"
}

// namesMark tells our own files, which a later name replaces, from those that the image or
// the owner brought.
const namesMark = "# written by s0\n"

// resolvers are who is asked for names. Whichever address a sandbox asks, the node answers:
// these are of nobody (RFC 5737, RFC 3849), and the same on every node.
const resolvers = "nameserver 192.0.2.53\nnameserver 2001:db8::53\n"

// ownHost ends the line of hosts that is ours.
const ownHost = " # written by s0\n"

// writeHosts has the machine find itself without asking anybody: many a server looks up
// its own name when it starts. What the image or the owner wrote stays as it is.
func (n *names) writeHosts(hostname string) error {
	has, err := os.ReadFile(n.etc + "/hosts")
	text := string(has)
	if err != nil || strings.TrimSpace(text) == "" || strings.HasPrefix(text, namesMark) {
		return n.provide("/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 "+hostname+"\n")
	}
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, ownHost) {
			kept.WriteString(line)
		}
	}
	if text = kept.String(); text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return os.WriteFile(n.etc+"/hosts", []byte(text+"127.0.1.1 "+hostname+ownHost), 0o644)
}

// write writes the hostname, the machine's own line of hosts, and resolvers where the
// image has none.
func (n *names) write(hostname string) error {
	return errors.Join(
		os.WriteFile(n.etc+"/hostname", []byte(hostname+"\n"), 0o644),
		n.writeHosts(hostname),
		n.provide("/resolv.conf", resolvers),
	)
}

// provide writes a file of ours where the image and the owner have none. A link that leads
// nowhere, as to what a service manager would write, is none.
func (n *names) provide(name, content string) error {
	has, err := os.ReadFile(n.etc + name)
	if text := strings.TrimSpace(string(has)); err == nil && text != "" && !strings.HasPrefix(text, namesMark[:len(namesMark)-1]) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Remove(n.etc + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.WriteFile(n.etc+name, []byte(namesMark+content), 0o644)
}
