package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

const (
	// tokenTimeout bounds the showing of a token, which fits into any socket's buffer.
	tokenTimeout = time.Second
	// machineOverhead is the memory of the node that a virtual machine takes beside its
	// sandbox's: the hypervisor's, the guest kernel's and what shares files with it. It
	// is what Kubernetes counts for Kata Containers with QEMU, and the most of all.
	machineOverhead = 160 << 20
)

// isMachine reports whether a sandbox is a virtual machine: no socket of the host's
// leads into it, and what memory it has is decided when it starts.
func isMachine(spec sandbox.Spec) bool { return spec.RuntimeClass == sandbox.Kata }

func (m *Manager) tokenFile(id sandbox.ID) string {
	return filepath.Join(m.slotDir(id), filepath.Base(procapi.TokenFile))
}

// makeToken makes what tells noded from others who find the sandbox's socket: on a
// host with vhost-vsock every process of it can connect to every machine.
func (m *Manager) makeToken(id sandbox.ID) error {
	var b [procapi.TokenBytes / 2]byte
	rand.Read(b[:]) // never fails
	return os.WriteFile(m.tokenFile(id), []byte(hex.EncodeToString(b[:])), 0o400)
}

// dialGuest connects to procd in a sandbox that is a virtual machine, and shows it
// that this is noded.
func (m *Manager) dialGuest(ctx context.Context, id sandbox.ID) (net.Conn, error) {
	if m.cfg.Guests == nil {
		return nil, fmt.Errorf("this node has no virtual machines")
	}
	token, err := os.ReadFile(m.tokenFile(id))
	if err != nil {
		return nil, err
	}
	conn, err := m.cfg.Guests.Dial(ctx, id)
	if err != nil {
		return nil, err
	}
	err = conn.SetWriteDeadline(time.Now().Add(tokenTimeout))
	if err == nil {
		_, err = conn.Write(token)
	}
	if err == nil {
		err = conn.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// checkMachine refuses other memory than a virtual machine has started with. Its CPU
// is the host's to give.
func checkMachine(spec sandbox.Spec, memory int64) error {
	if isMachine(spec) && memory != 0 && memory != spec.MemoryBytes {
		return errdefs.New(errdefs.InvalidArgument, "a sandbox of runtime class %q keeps its template's memory", sandbox.Kata)
	}
	return nil
}
