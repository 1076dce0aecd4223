package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"s0.run/internal/procapi"
	"s0.run/internal/warm"
	"s0.run/procd/internal/proc"
)

const (
	maxHeaderBytes = 16 << 10 // of an answer to a probe; its body is not read
	tailBytes      = 2 << 10  // where a last line is looked for
	maxLineBytes   = 200

	userAgent = "s0-probe"
)

// what names a probe's action in a message.
func what(p *warm.Probe) string {
	switch {
	case len(p.Exec) > 0:
		return fmt.Sprintf("command %.40q", p.Exec[0])
	case p.HTTP != nil:
		return fmt.Sprintf("GET %s", address(p.HTTP))
	case p.TCPPort != 0:
		return fmt.Sprintf("port %d", p.TCPPort)
	case p.GRPC != nil:
		return fmt.Sprintf("gRPC health of port %d", p.GRPC.Port)
	}
	return "process"
}

// exec runs a command beside the subject; it must exit with 0.
func exec(ctx context.Context, argv []string, s Subject) error {
	command, err := s.Start(argv)
	if err != nil {
		return err
	}
	defer command.Close()
	select {
	case <-command.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	if command.Exit().ExitCode != 0 {
		return errors.New(Ending(command.Exit(), command.Log()))
	}
	return nil
}

// loopback dials a port of the sandbox itself, whatever the address says: no name
// is looked up and no other host is reached.
func loopback(ctx context.Context, network, addr string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return conn, nil
	}
	if conn, err := d.DialContext(ctx, network, net.JoinHostPort("::1", port)); err == nil {
		return conn, nil
	}
	return nil, err
}

// client sends the requests of probes, each over a connection of its own.
var client = &http.Client{
	Transport: &http.Transport{
		DialContext: loopback, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeaderBytes,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the server is this sandbox
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func address(h *warm.HTTPGet) string {
	scheme := "http"
	if h.TLS {
		scheme = "https"
	}
	return scheme + "://localhost:" + strconv.Itoa(h.Port) + h.Path
}

// httpGet asks a server inside; it must answer with a success or a redirect.
func httpGet(ctx context.Context, h *warm.HTTPGet) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address(h), http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", userAgent)
	for _, header := range h.Headers {
		if http.CanonicalHeaderKey(header.Name) == "Host" {
			req.Host = header.Value
		}
		req.Header.Add(header.Name, header.Value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return plain(err)
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

func tcpConnect(ctx context.Context, port int) error {
	conn, err := loopback(ctx, "tcp", net.JoinHostPort("localhost", strconv.Itoa(port)))
	if err != nil {
		return plain(err)
	}
	return conn.Close()
}

// plain is what of a network's error helps the template's author.
func plain(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// Ending says how a process ended, with the last line that it printed.
func Ending(exit procapi.Exit, log *proc.Log) string {
	said := fmt.Sprintf("exited with code %d", exit.ExitCode)
	if exit.State == proc.StateKilled {
		said = "was killed"
	}
	if line := lastLine(log); line != "" {
		said += ": " + line
	}
	return said
}

func lastLine(log *proc.Log) string {
	end := log.End()
	raw, _ := log.Collect(end-min(end, tailBytes), end)
	raw = bytes.TrimSpace(raw)
	return Printable(string(raw[bytes.LastIndexAny(raw, "\r\n")+1:]), maxLineBytes)
}

// Printable makes text from inside fit for a line of at most limit bytes.
func Printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return '?'
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit-3], "") + "..."
	}
	return s
}
