package noded_test

import (
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"s0.run/internal/s0test"
)

// departures are where Go's HTTP/2 server differs from what h2spec expects, each
// with why that attacks nobody.
var departures = map[string]string{
	"Sends invalid connection preface":                                          "it is told 400 in HTTP/1.1, and the connection ends",
	"Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE": "the frame is larger than the standard's default and smaller than what we allow",
	"Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE":                     "the connection ends: nobody needs a setting twice",

	"Sends a HEADERS frame that contains the connection-specific header field":                                                             "the answer is 400 and not a reset",
	`Sends a HEADERS frame that contains the TE header field with any value other than "trailers"`:                                         "likewise",
	`Sends a HEADERS frame with the "content-length" header field which does not equal the DATA frame payload length`:                      "a handler that needs no body has answered before it came",
	`Sends a HEADERS frame with the "content-length" header field which does not equal the sum of the multiple DATA frames payload length`: "likewise",
	"Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream":                                   "likewise, and so has ended the stream",
}

// A10: the node API, which is the control plane's alone, speaks HTTP/2 as its
// standard says, whatever the other end sends.
func TestA10_H2Spec(t *testing.T) {
	if testing.Short() {
		t.Skip("needs h2spec, a tool of make test")
	}
	t.Parallel()
	d := run(t, simulated(t))
	host, port, _ := net.SplitHostPort(forward(t, d.cfg.Socket))
	out, _ := exec.CommandContext(d.ctx(), s0test.Binary(t, "h2spec"), "-h", host, "-p", port, "--timeout", "3").CombinedOutput()
	passed, failures, ended := strings.Cut(string(out), "Failures:")
	if !ended {
		failures = ""
	}
	if !strings.Contains(string(out), "145 tests,") || strings.Count(passed, "✔") < 145-len(departures) {
		t.Errorf("h2spec did not try everything:\n%s", out)
	}
	for _, m := range regexp.MustCompile(`× \d+: (.*)`).FindAllStringSubmatch(failures, -1) {
		if departures[m[1]] == "" {
			t.Errorf("%s\n%s", m[1], failures)
		}
	}
	if resp, err := d.http.Get("http://node/nothing"); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("the node does not answer any more: %v", err)
	} else {
		resp.Body.Close()
	}
}

// forward lets a program that knows no unix sockets reach one.
func forward(t *testing.T, socket string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { join(from, socket) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

// join carries bytes both ways until either side ends.
func join(from net.Conn, socket string) {
	defer from.Close()
	to, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	var back sync.WaitGroup
	defer back.Wait()
	defer to.Close()
	back.Go(func() {
		io.Copy(from, to)
		from.Close()
	})
	io.Copy(to, from)
}
