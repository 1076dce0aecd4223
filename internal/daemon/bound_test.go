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

// A09: who has an IPv6 address has all of its network, and is one of all the same.
func TestA09_Network(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1", "@": "@", "": "",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "[2001:db8:1:2:7::]:80": "2001:db8:1:2::/64", "[fe80::1%eth0]:80": "fe80::/64",
	} {
		if got := Network(address); got != want {
			t.Errorf("%q is in %q, want %q", address, got, want)
		}
	}
}
