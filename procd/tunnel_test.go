package procd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/freeport"
)

// openTunnel opens a tunnel and returns its two ends.
func openTunnel(t *testing.T, query string) (input *io.PipeWriter, resp *http.Response) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	resp, err := connect(t).Do(ctx, http.MethodPost, procapi.PathTunnel+"?"+query, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		w.Close()
		resp.Body.Close()
	})
	return w, resp
}

// listen serves connections on the loopback, one after the other.
func listen(t *testing.T, network, address string, serve func(net.Conn)) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	return l
}

func portOf(l net.Listener) string { return strconv.Itoa(l.Addr().(*net.TCPAddr).Port) }

// upper reads to the end of its input before it answers: it sees a half-close.
func upper(c net.Conn) {
	b, _ := io.ReadAll(c)
	c.Write(bytes.ToUpper(b))
}

func TestTunnelKeepsHalfCloses(t *testing.T) {
	for _, at := range []struct{ network, address string }{{"tcp", "127.0.0.1:0"}, {"tcp", "[::1]:0"}, {"unix", procapi.FunctionSocket("upper")}} {
		t.Run(at.network+" "+at.address, func(t *testing.T) {
			l := listen(t, at.network, at.address, upper)
			query := procapi.TunnelFunction + "=upper"
			if at.network == "tcp" {
				query = procapi.TunnelPort + "=" + portOf(l)
			}
			input, resp := openTunnel(t, query)
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("status %d", resp.StatusCode)
			}
			want := strings.Repeat("abc", 1<<17)
			if _, err := io.WriteString(input, want); err != nil {
				t.Fatal(err)
			}
			input.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || string(got) != strings.ToUpper(want) {
				t.Errorf("%d bytes back, %v", len(got), err)
			}
		})
	}
}

func TestTunnelTellsABreakFromAnEnd(t *testing.T) {
	cut := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		c.Read(make([]byte, 1)) // the tunnel is open: a reset before that is a refusal
		c.Write([]byte("half"))
		c.(*net.TCPConn).SetLinger(0)
	})
	begin, resp := openTunnel(t, "port="+portOf(cut))
	io.WriteString(begin, "x")
	if got, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a reset connection ended like a complete one: %q", got)
	}
	// Input that breaks off resets the connection: a service must not take it for whole.
	ended := make(chan error, 1)
	whole := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	input, _ := openTunnel(t, "port="+portOf(whole))
	io.WriteString(input, "half")
	input.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-ended; err == nil {
		t.Error("input that broke off looked complete to the service")
	}
}

func TestA21_TunnelRefusals(t *testing.T) {
	free, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		query  string
		status int
		code   string
	}{
		{"port=" + strconv.Itoa(free), http.StatusServiceUnavailable, procapi.CodePortRefused},
		{"function=none", http.StatusServiceUnavailable, procapi.CodePortRefused},
		{"port=0", http.StatusBadRequest, "invalid_request"},
		{"port=65536", http.StatusBadRequest, "invalid_request"},
		{"port=-1", http.StatusBadRequest, "invalid_request"},
		{"port=080x", http.StatusBadRequest, "invalid_request"},
		{"port=80&port=81", http.StatusBadRequest, "invalid_request"},
		{"port=80&function=f", http.StatusBadRequest, "invalid_request"},
		{"function=" + url.QueryEscape("../f"), http.StatusBadRequest, "invalid_request"},
		{"function=", http.StatusBadRequest, "invalid_request"},
		{"", http.StatusBadRequest, "invalid_request"},
		{"host=10.0.0.1&port=80", http.StatusBadRequest, "invalid_request"},
	} {
		_, resp := openTunnel(t, c.query)
		var e procapi.Error
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != c.status || e.Code != c.code {
			t.Errorf("%q: %d %+v, %v", c.query, resp.StatusCode, e, err)
		}
	}
}

func TestTunnelEndsWithItsCaller(t *testing.T) {
	ended := make(chan struct{})
	l := listen(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		fmt.Fprint(c, "hello")
		io.Copy(io.Discard, c)
		close(ended)
	})
	_, resp := openTunnel(t, "port="+portOf(l))
	if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	<-ended
}
