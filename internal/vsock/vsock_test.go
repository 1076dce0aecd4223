package vsock

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// Who is inside the machine is not its host, whatever way he came.
func TestC07_TheHostAloneIsLetIn(t *testing.T) {
	t.Parallel()
	for cid, host := range map[uint32]bool{
		unix.VMADDR_CID_HOST: true, unix.VMADDR_CID_LOCAL: false, unix.VMADDR_CID_HYPERVISOR: false, unix.VMADDR_CID_ANY: false, 3: false, 31513974: false,
	} {
		if fromHost(Addr{CID: cid, Port: 1024}) != host {
			t.Errorf("context id %d is the host: %v", cid, !host)
		}
	}
}

// A listener that is closed ends who waits at it. A kernel without such sockets says so.
func TestAcceptEndsWithTheListener(t *testing.T) {
	t.Parallel()
	l, err := Listen(unix.VMADDR_PORT_ANY)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPERM) {
		t.Skip("there is no vsock here, or none is allowed")
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	l.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}
