package netd_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
)

// guestEnv has this program make attempts, inside of gVisor, and print what came of them.
const guestEnv = "S0_TEST_GUEST"

// An attempt is something that code in a sandbox tries. Which fields count Op says.
type attempt struct {
	Op       string // connect, hello, bytes, hold, raw, get, twice, ask, h2, grpc, ws, ech
	Network  string // tcp or udp
	To       string // address and port; of raw, an address
	Answered bool   // of udp: an echo or a refusal must come, and is waited for
	Data     []byte // what is sent
	Slow     bool   // in pieces of one byte
	Name     string // server name, or name to ask for
	URL      string
	Method   string // GET, if it is not said
	Header   http.Header
	Roots    string // PEM
	Proto    int    // of raw; of ask: the type, if it is not A; of twice: HTTP's version
}

type outcome struct {
	Out    string // what came back
	Status int
	Err    string // of errors, the kind: refused, reset, timeout, denied, ended, or its text
}

// runGuest is the probe's main. It ends when every attempt was made. Most wait for what
// does not come: so they do it beside each other.
func runGuest(text string) error {
	var all []attempt
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return err
	}
	outcomes := make([]outcome, len(all))
	var group errgroup.Group
	group.SetLimit(atATime)
	for i, a := range all {
		group.Go(func() error {
			outcomes[i] = a.try()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	enc := json.NewEncoder(os.Stdout)
	for _, o := range outcomes {
		if err := enc.Encode(o); err != nil {
			return err
		}
	}
	return nil
}

// atATime is how many attempts a guest makes beside each other.
const atATime = 16

// quiet is how long nothing has to happen to have been lost.
const quiet = 2 * time.Second

func (a attempt) try() (o outcome) {
	var err error
	switch a.Op {
	case "connect":
		o.Out, err = a.connect()
	case "hello":
		o.Out, err = a.hello()
	case "bytes":
		o.Out, err = a.bytes()
	case "hold":
		o.Out, err = a.hold()
	case "raw":
		err = a.raw()
	case "get":
		o.Status, o.Out, err = a.get()
	case "twice":
		o.Out, err = a.twice()
	case "ask":
		o.Status, o.Out, err = a.ask()
	case "h2":
		o.Status, o.Out, err = a.h2()
	case "grpc":
		o.Status, o.Out, err = a.grpc()
	case "ws":
		o.Status, o.Out, err = a.ws()
	case "ech":
		o.Out, err = a.ech()
	}
	o.Err = kind(err)
	return o
}

func kind(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "ended"
	}
	return err.Error()
}

func (a attempt) dial() (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: deadline}).Dial(a.Network, a.To)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(deadline))
	}
	return c, err
}

// connect sends a word and wants it echoed.
func (a attempt) connect() (string, error) {
	c, err := a.dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	if a.Network == "tcp" {
		return exchange(c, "ping")
	}
	limit := quiet
	if a.Answered {
		limit = deadline
	}
	for end := time.Now().Add(limit); ; { // datagrams, and refusals of them, may be lost
		got, err := within(c, "ping", quiet/5)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return got, err
		}
	}
}

// hold has a word echoed, and waits for the connection's end.
func (a attempt) hold() (string, error) {
	c, err := a.dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	got, err := exchange(c, "ping")
	for err == nil {
		_, err = exchange(c, "again")
	}
	return got, err
}

// hello makes a TLS connection under a name, and says whose certificate answers.
func (a attempt) hello() (string, error) {
	c, err := a.dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	conn := tls.Client(c, &tls.Config{ServerName: a.Name, InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		return "", err
	}
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

// bytes sends what it is told to, and reads to the end.
func (a attempt) bytes() (string, error) {
	c, err := a.dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	pieces := [][]byte{a.Data}
	if a.Slow {
		pieces = nil
		for i := range a.Data {
			pieces = append(pieces, a.Data[i:i+1])
		}
	}
	for _, p := range pieces {
		if _, err := c.Write(p); err != nil {
			return "", err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(c)
	return string(got), err
}

// raw sends an IP packet of a protocol. With Data it is the whole packet, header and all.
func (a attempt) raw() error {
	ip := net.ParseIP(a.To)
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: [16]byte(ip.To16())})
	if four := ip.To4(); four != nil {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte(four)}
	}
	proto := a.Proto
	if a.Data != nil {
		proto = unix.IPPROTO_RAW
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	payload := a.Data
	if payload == nil {
		payload = make([]byte, 40)
		payload[0] = 8 // an echo, of ICMP
	}
	return unix.Sendto(fd, payload, 0, to)
}

func (a attempt) get() (int, string, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(a.Roots))
	t := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", a.To) },
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
	}
	r, err := http.NewRequest(cmp.Or(a.Method, http.MethodGet), a.URL, bytes.NewReader(a.Data))
	if err != nil {
		return 0, "", err
	}
	if a.Header != nil {
		r.Header = a.Header
	}
	if a.Name != "" {
		r.Host = a.Name
	}
	c := &http.Client{Transport: t, Timeout: deadline, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// twice asks for the URL's host and then, by the same connection, for Name's.
func (a attempt) twice() (string, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(a.Roots))
	dials, out := 0, ""
	t := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			dials++
			return net.Dial("tcp", a.To)
		},
		TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: a.Proto == 2,
	}
	c := &http.Client{Transport: t, Timeout: deadline}
	for _, host := range []string{"", a.Name} {
		r, err := http.NewRequest(http.MethodGet, a.URL, nil)
		if err != nil {
			return "", err
		}
		r.Host = host
		resp, err := c.Do(r)
		if err != nil {
			return "", err
		}
		if out == "" {
			out = fmt.Sprintf("HTTP/%d", resp.ProtoMajor)
		}
		out += fmt.Sprint(" ", resp.StatusCode)
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s over %d", out, dials), nil
}

// ask looks a name up; the status is the answer's code.
func (a attempt) ask() (int, string, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(a.Name), cmp.Or(uint16(a.Proto), dns.TypeA))
	c := dns.Client{Net: a.Network, Timeout: quiet}
	m, _, err := c.Exchange(q, a.To)
	for range 30 { // as box.ask does
		if err == nil {
			break
		}
		m, _, err = c.Exchange(q, a.To)
	}
	if err != nil {
		return 0, "", err
	}
	out := ""
	for _, rr := range m.Answer {
		out += strings.ReplaceAll(rr.String(), "\t", " ") + "\n"
	}
	return m.Rcode, out, nil
}

// inGVisor makes attempts from a sandbox that is one: a sentry in the box's network,
// with raw sockets, as code in it that has got everything.
func (b *box) inGVisor(all ...attempt) []outcome {
	t := b.w.t
	t.Helper()
	h := b.w.handle(b.w.inside)
	link, err := h.LinkByIndex(b.slot.Ifindex)
	b.w.must(err)
	b.configure(h, link) // anew: a sentry takes the addresses off
	text, err := json.Marshal(all)
	b.w.must(err)
	exe, err := os.Executable()
	b.w.must(err)
	caps := []string{"CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"}
	spec := map[string]any{
		"ociVersion": "1.0.0",
		"process": map[string]any{
			"user": map[string]int{"uid": 0, "gid": 0}, "args": []string{exe}, "cwd": "/", "env": []string{guestEnv + "=" + string(text)},
			"capabilities": map[string]any{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"root":   map[string]any{"path": "/", "readonly": true},
		"mounts": []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux": map[string]any{"namespaces": []map[string]string{
			{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
			{"type": "network", "path": fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.ns)},
		}},
	}
	bundle, err := os.MkdirTemp("", "netd-guest")
	b.w.must(err)
	t.Cleanup(func() { // runsc leaves a mount
		for unix.Unmount(filepath.Join(bundle, "state", "null-netns"), unix.MNT_DETACH) == nil {
		}
		os.RemoveAll(bundle)
	})
	config, err := json.Marshal(spec)
	b.w.must(err)
	b.w.must(os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600))
	ctx, cancel := context.WithTimeout(context.Background(), 3*deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, s0test.Binary(t, "runsc"), "--root="+filepath.Join(bundle, "state"), "--platform=systrap", "--network=sandbox",
		"--net-raw", "--ignore-cgroups", "--overlay2=none", "run", "--bundle="+bundle, "netd-"+string(b.slot.ID))
	cmd.WaitDelay = deadline
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("runsc: %v: %s", err, stderr.String())
	}
	var outcomes []outcome
	for dec := json.NewDecoder(&stdout); dec.More(); {
		var o outcome
		b.w.must(dec.Decode(&o))
		outcomes = append(outcomes, o)
	}
	if len(outcomes) != len(all) {
		t.Fatalf("%d outcomes of %d attempts: %s", len(outcomes), len(all), stderr.String())
	}
	return outcomes
}

// wants makes attempts in gVisor, and holds what comes of each against what should.
func (b *box) wants(all map[*attempt]func(outcome) bool) {
	b.w.t.Helper()
	var list []attempt
	var check []func(outcome) bool
	for a, want := range all {
		list, check = append(list, *a), append(check, want)
	}
	for i, o := range b.inGVisor(list...) {
		if !check[i](o) {
			a := list[i]
			a.Roots = ""
			b.w.t.Errorf("%+v: %+v", a, o)
		}
	}
}
