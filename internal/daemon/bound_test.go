package daemon

import (
	"io"
	"net"
	"testing"
	"time"
)

// A09: who opens connections without end takes his own places alone, and gives them back.
func TestA09_Bound(t *testing.T) {
	t.Parallel()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Bound(raw, 3, 2)
	defer l.Close()
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	refused := func(c net.Conn) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			if e, ok := err.(net.Error); !ok || e.Timeout() {
				t.Fatalf("not hung up on: %v", err)
			}
		}
	}
	dial("127.0.0.1")
	first := <-accepted
	dial("127.0.0.1")
	<-accepted
	refused(dial("127.0.0.1"))
	dial("127.0.0.2") // has places of its own
	<-accepted
	refused(dial("127.0.0.3")) // there are no more
	first.Close()
	first.Close()
	dial("127.0.0.3")
	<-accepted
	refused(dial("127.0.0.4"))
}
