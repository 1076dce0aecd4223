package netd_test

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/netdapi"
)

const sshOnly = `{"mode":"block-all","egress":{"trafficRules":[{"name":"ssh","action":"allow","cidrs":["93.184.0.2/32","2606:aaaa::2/128"],"appProtocols":["ssh"],"ports":[{"port":22}]}]}}`

// holder takes what a netd leaves, in noded's place.
type holder struct {
	conn *netdapi.HeldConn
	left chan []netdapi.Held
}

func (w *world) holds(back ...netdapi.Held) *holder {
	w.t.Helper()
	conn, err := w.client.DialHeld(w.t.Context())
	w.must(err)
	h := &holder{conn: conn, left: make(chan []netdapi.Held, 1)}
	for _, b := range back {
		w.must(conn.Send(b))
		b.Close()
	}
	go func() {
		var all []netdapi.Held
		for {
			one, err := conn.Receive()
			if err != nil {
				h.left <- all
				return
			}
			all = append(all, one)
		}
	}()
	w.t.Cleanup(func() { conn.Close() })
	return h
}

// stop has netd end, and returns what it leaves.
func (h *holder) stop(w *world) []netdapi.Held {
	w.t.Helper()
	w.must(w.process.Process.Signal(syscall.SIGTERM))
	w.must(w.process.Wait())
	w.client.Close()
	return <-h.left
}

// X31: connections that are passed on as they are outlive a netd that is told to stop.
// Without one nothing of them moves; the next judges them anew and counts on, and what
// may not be any more, or is no longer the sandbox's, ends.
func TestX31_SplicedConnectionsOutliveNetd(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("22")
	b, other := w.sandbox(), w.sandbox()
	both := both("22", far4, far6)
	open := func(b *box) (all []net.Conn) {
		t.Helper()
		b.policy(sshOnly)
		for _, at := range both {
			c, err := b.dial("tcp", at)
			w.must(err)
			t.Cleanup(func() { c.Close() })
			if got, err := exchange(c, "SSH-2.0-x\r\n"); err != nil || got != "echo SSH-2.0-x\r\n" {
				t.Fatalf("%s: %q, %v", at, got, err)
			}
			all = append(all, c)
		}
		return all
	}
	live, doomed := open(b), open(other)
	left := w.holds().stop(w)
	if len(left) != 4 {
		t.Fatalf("it left %d connections, not 4", len(left))
	}
	outside := w.sink(w.beyond, "eth")
	for _, c := range live {
		_, err := c.Write([]byte("meanwhile"))
		w.must(err)
		w.acknowledged(c)
	}
	for _, p := range outside.packets() {
		if p.payload > 0 { // the kernel acknowledges what came before when it likes
			t.Errorf("without netd %d bytes got out to %s", p.payload, p.dst)
		}
	}

	w.start()
	for _, b := range []*box{b, other} {
		w.must(w.client.Attach(t.Context(), b.slot))
	}
	b.policy(sshOnly)
	other.policy(`{"mode":"block-all"}`)
	next := w.holds(left...)
	for i, c := range live {
		w.must(c.SetReadDeadline(time.Now().Add(deadline)))
		buf := make([]byte, 100)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "echo meanwhile" {
			t.Errorf("%s: what was said meanwhile: %q, %v", both[i], buf[:n], err)
		}
		if got, err := exchange(c, "again"); err != nil || got != "echo again" {
			t.Errorf("%s: afterwards: %q, %v", both[i], got, err)
		}
	}
	for i, c := range doomed {
		w.must(c.SetReadDeadline(time.Now().Add(deadline)))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: what the policy forbids now ends in %v", both[i], err)
		}
	}
	// A record of each, which holds all that it carried.
	live[0].Close()
	rec := w.record(func(e netdapi.Event) bool { return e.SandboxID == string(b.slot.ID) })
	if want := int64(len("SSH-2.0-x\r\n" + "meanwhile" + "again")); rec.EgressBytes != want || rec.Outcome != "completed" || rec.Adapter != "splice" {
		t.Errorf("recorded %+v, want %d bytes", rec, want)
	}

	// Of a generation that is over nothing goes on.
	left = next.stop(w)
	if len(left) != 1 {
		t.Fatalf("it left %d connections, not 1", len(left))
	}
	w.start()
	b.slot.Generation++
	w.must(w.client.Attach(t.Context(), b.slot))
	b.policy(sshOnly)
	w.holds(left...)
	w.eventually("another generation's connection ends", func() error { // what the kernel knew of it is forgotten, a reset's way included
		if _, err := within(live[1], "x", 100*time.Millisecond); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			return fmt.Errorf("it ends in %v", err)
		}
		return nil
	})
}

// acknowledged waits until the other side's kernel has all that was written.
func (w *world) acknowledged(c net.Conn) {
	w.t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	w.must(err)
	w.eventually("it is acknowledged", func() (err error) {
		gone := raw.Control(func(fd uintptr) {
			var n int
			if n, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ); err == nil && n > 0 {
				err = fmt.Errorf("%d bytes are not", n)
			}
		})
		return errors.Join(err, gone)
	})
}

// record waits for the first record that is wanted.
func (w *world) record(wanted func(netdapi.Event) bool) (found netdapi.Event) {
	w.t.Helper()
	var mark netdapi.Mark
	w.eventually("a record", func() error {
		batch, err := w.client.TakeEvents(w.t.Context(), mark)
		if err != nil {
			return err
		}
		mark = batch.Mark
		for _, e := range batch.Events {
			if wanted(e) {
				found = e
				return nil
			}
		}
		return errors.New("none")
	})
	return found
}
