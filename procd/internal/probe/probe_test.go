package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/freeport"
	"s0.run/internal/warm"
	"s0.run/procd/internal/proc"
)

// patience is how long an attempt may take that is to succeed.
const patience = time.Minute

func attempt(t *testing.T, p *warm.Probe, s Subject) string {
	t.Helper()
	if err := Attempt(t.Context(), p, patience, s); err != nil {
		return err.Error()
	}
	return ""
}

func portOf(t *testing.T, address string) int {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return a.Port
}

// health is a server with gRPC's health protocol.
func health(t *testing.T, answer func(service string) (status string, serving byte)) int {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != healthPath || r.Header.Get("Content-Type") != "application/grpc" || int(binary.BigEndian.Uint32(body[1:])) != len(body)-grpcPrefix {
			t.Errorf("asked for %s of %s with %q: %v", r.URL.Path, r.Header, body, err)
		}
		service := ""
		if len(body) > grpcPrefix {
			service = string(body[grpcPrefix+2:])
		}
		status, serving := answer(service)
		w.Header().Set("Content-Type", "application/grpc")
		if status != "0" { // no answer, only what would follow it
			w.Header().Set("Grpc-Status", status)
			w.Header().Set("Grpc-Message", "unknown service")
			return
		}
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, fieldOne, serving})
		w.Header().Set("Grpc-Status", status)
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return portOf(t, server.Listener.Addr().String())
}

func TestGRPCHealth(t *testing.T) {
	t.Parallel()
	port := health(t, func(service string) (string, byte) {
		switch service {
		case "", "db":
			return "0", healthServing
		case "tired":
			return "0", 2
		}
		return "5", 0
	})
	for service, want := range map[string]string{
		"": "", "db": "", "tired": "health status 2", "none": `gRPC status "5": unknown service`,
	} {
		got := attempt(t, &warm.Probe{GRPC: &warm.GRPC{Port: port, Service: service}}, Subject{})
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", service, got, want)
		}
	}
	plainServer := httptest.NewServer(http.NotFoundHandler())
	defer plainServer.Close()
	if got := attempt(t, &warm.Probe{GRPC: &warm.GRPC{Port: portOf(t, plainServer.Listener.Addr().String())}}, Subject{}); got == "" {
		t.Error("a server of something else is healthy")
	}
}

func TestHTTPAndTCP(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	port := portOf(t, server.Listener.Addr().String())
	if got := attempt(t, &warm.Probe{HTTP: &warm.HTTPGet{Path: "/", Port: port}}, Subject{}); got != "" {
		t.Error(got)
	}
	if got := attempt(t, &warm.Probe{HTTP: &warm.HTTPGet{Path: "/bad", Port: port}}, Subject{}); !strings.HasSuffix(got, "/bad: status 503") {
		t.Error(got)
	}
	if got := attempt(t, &warm.Probe{TCPPort: port}, Subject{}); got != "" {
		t.Error(got)
	}
	closed, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	if got := attempt(t, &warm.Probe{TCPPort: closed}, Subject{}); !strings.Contains(got, "refused") {
		t.Error(got)
	}
}

// command is one that has ended, or never does.
type command struct {
	code   int
	ended  chan struct{}
	log    *proc.Log
	closed bool
}

func (c *command) Done() <-chan struct{} { return c.ended }
func (c *command) Exit() procapi.Exit {
	return procapi.Exit{ExitCode: c.code, State: proc.StateStopped}
}
func (c *command) Log() *proc.Log { return c.log }
func (c *command) Close()         { c.closed = true }

func TestCommands(t *testing.T) {
	t.Parallel()
	p := &warm.Probe{Exec: []string{"look"}}
	for code, want := range map[int]string{0: "", 3: `command "look": exited with code 3: oh`} {
		c := &command{code: code, ended: make(chan struct{}), log: proc.NewLog(1 << 10)}
		c.log.Append(proc.Stdout, []byte("well\noh\n"))
		close(c.ended)
		if got := attempt(t, p, Subject{Start: func([]string) (Command, error) { return c, nil }}); got != want || !c.closed {
			t.Errorf("%q, closed %v", got, c.closed)
		}
	}
	hangs := &command{ended: make(chan struct{}), log: proc.NewLog(1 << 10)}
	err := Attempt(t.Context(), p, time.Millisecond, Subject{Start: func([]string) (Command, error) { return hangs, nil }})
	if err == nil || err.Error() != `command "look": nothing within 1ms` || !hangs.closed {
		t.Errorf("%v, closed %v", err, hangs.closed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Attempt(ctx, p, patience, Subject{Start: func([]string) (Command, error) { return hangs, nil }}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := attempt(t, p, Subject{Start: func([]string) (Command, error) { return nil, errors.New("no such file") }}); got != `command "look": no such file` {
		t.Error(got)
	}
	if got := attempt(t, &warm.Probe{Process: true}, Subject{Running: func() error { return errors.New("it is paused") }}); got != "process: it is paused" {
		t.Error(got)
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"a\x00b\n": "a?b?", "ü": "ü", "\xff": "?", strings.Repeat("ü", 10): "üü..."} {
		if got := Printable(in, 8); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
