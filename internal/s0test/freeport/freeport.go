// Package freeport finds ports for servers of tests.
package freeport

import (
	"math/rand/v2"
	"net"
	"strconv"
)

// Find finds a port of the loopback that nobody listens on. It is below those that
// the kernel gives to connections: none of them, not even one to this very port, has it
// before a server listens there, or while that is down.
func Find() (port int, err error) {
	const lowest, ports, tries = 20_000, 12_000, 100
	for range tries {
		port = lowest + rand.IntN(ports)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, err
}
