package httpapi

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"s0.run/api/internal/apidoc"
	"s0.run/api/internal/exposure"
	"s0.run/api/internal/services"
)

// pipes is a listener within the process: in a bubble of its own, time passes at
// once when everybody waits.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

// serveAlone serves what needs neither database nor node.
func serveAlone(t *testing.T) *pipes {
	t.Helper()
	domain, err := services.NewDomain("local", "http://s0.localhost:30080")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	a := New(Config{
		Registry: prometheus.NewRegistry(), Log: log, Hosts: NewHostList(nil), Rate: 1000, Burst: 1000,
		Exposure: exposure.New(exposure.Config{Domain: domain, Rate: 1000, Burst: 1000, Log: log}),
		Doc:      &apidoc.Doc{YAML: make([]byte, 1<<20)},
	})
	p := &pipes{make(chan net.Conn), make(chan struct{})}
	srv := a.Server()
	done := make(chan error, 1)
	go func() { done <- srv.Serve(p) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return p
}

// A09: whoever is slow is cut off when its time is up, neither sooner nor later.
func TestA09_SlowClientsAreCutOffInTime(t *testing.T) {
	t.Parallel()
	const login = "POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
	for name, c := range map[string]struct {
		send  string
		drip  string // after it, again and again
		reads bool   // the client takes the answers
		after time.Duration
		says  string // in the last answer
	}{
		"nothing at all":       {reads: true, after: readHeaderTimeout},
		"half a header":        {send: "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", reads: true, after: readHeaderTimeout},
		"a header in drops":    {send: "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", drip: "x", reads: true, after: readHeaderTimeout},
		"no second request":    {send: "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", reads: true, after: idleTimeout, says: "200"},
		"half a body":          {send: login + "{", reads: true, after: bodyTimeout, says: "400"},
		"a body in drops":      {send: login + "{", drip: " ", reads: true, after: bodyTimeout, says: "400"},
		"answers are not read": {send: "GET /openapi.yaml HTTP/1.1\r\nHost: localhost\r\n\r\n", after: replyTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				conn := serveAlone(t).dial()
				var sender sync.WaitGroup
				defer sender.Wait()
				defer conn.Close()
				began := time.Now()
				sender.Go(func() {
					_, err := io.WriteString(conn, c.send)
					for c.drip != "" && err == nil {
						time.Sleep(time.Second)
						_, err = io.WriteString(conn, c.drip)
					}
				})
				if !c.reads {
					time.Sleep(c.after - time.Second)
					synctest.Wait()
				}
				got, took := lastOf(conn, began, c.reads, c.after)
				// What is left of a body is waited for before the connection goes.
				if most := c.after + drainTimeout + time.Second; took < c.after || took > most {
					t.Errorf("cut off after %v, want %v", took, c.after)
				}
				if c.says != "" && !strings.Contains(got, "HTTP/1.1 "+c.says) {
					t.Errorf("answered %q, want %s", got, c.says)
				}
			})
		})
	}
}

// lastOf reads until the server hangs up; a client that does not read finds that
// out when it looks at last.
func lastOf(conn net.Conn, began time.Time, reads bool, after time.Duration) (got string, took time.Duration) {
	if !reads {
		time.Sleep(2 * time.Second)
	}
	b, _ := io.ReadAll(bufio.NewReader(conn))
	return string(b), time.Since(began)
}

// A09: one that is slow holds up nobody.
func TestA09_TheOthersAreServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := serveAlone(t)
		for range 100 {
			slow := p.dial()
			defer slow.Close()
			io.WriteString(slow, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
		}
		began := time.Now()
		conn := p.dial()
		defer conn.Close()
		fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusOK || time.Since(began) != 0 {
			t.Errorf("%v: %v after %v", resp, err, time.Since(began))
		}
	})
}
