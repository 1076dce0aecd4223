package netdapi_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/netdapi"
)

// X31: a connection that is closed a second time closes nobody else's descriptor, which
// has its number by then.
func TestX31_AHeldConnectionIsClosedOnce(t *testing.T) {
	for name, end := range map[string]func(*netdapi.Held){"Close": (*netdapi.Held).Close, "Cut": (*netdapi.Held).Cut} {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		const from = 700 // where nobody else gets one in between
		at := func() int {
			t.Helper()
			fd, err := unix.FcntlInt(uintptr(ends[0]), unix.F_DUPFD_CLOEXEC, from)
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}
		h := netdapi.Held{Client: at(), Upstream: at()}
		was := [2]int{h.Client, h.Upstream}
		end(&h)
		if now := [2]int{at(), at()}; now != was {
			t.Fatalf("%s: %v are closed, and free are %v", name, was, now)
		}
		h.Cut()
		h.Close()
		for _, fd := range was {
			if err := unix.Close(fd); err != nil {
				t.Errorf("%s: somebody else's is closed: %v", name, err)
			}
		}
		unix.Close(ends[0])
		unix.Close(ends[1])
	}
}
