package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/sniff"
)

// The tests run in a network of their own, in which this machine has every address
// they need: the internet's servers, sandboxes, and what sandboxes must not reach.
// The proxy listens where sandboxes "connect to"; no packet is redirected here.
const (
	good4, good6 = "8.8.8.8", "2606:4700::1" // good.example and its like
	other4       = "8.8.4.4"                 // another server's
	claimed4     = "9.9.9.9"                 // where sandboxes connect to
	claimed6     = "2620:fe::9"
	inner4       = "10.99.0.1" // a private server
	deadline     = time.Minute
	nsEnv        = "S0_PROXY_TEST_NS"
)

func TestMain(m *testing.M) {
	for _, a := range os.Args { // a worker of a fuzz target, or a benchmark's list needs none
		if strings.HasPrefix(a, "-test.fuzzworker") {
			os.Exit(m.Run())
		}
	}
	if os.Getenv(nsEnv) != "" {
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Println("needs root for a network namespace")
		if slices.Contains(os.Args, "-test.short=true") {
			os.Exit(0)
		}
		os.Exit(1)
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), nsEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// world is the proxy under test, with the servers behind it.
type world struct {
	*Proxy
	lo     netlink.Link
	origin *origin
	other  *origin
	inner  *origin
	roots  *x509.CertPool
	signer *signer
	zone   sync.Map // "name. TYPE" -> []string
	asked  atomic.Int64
	log    lockedBuffer

	mu      sync.Mutex
	guests  map[netip.Addr]guest.Guest
	secrets map[sandbox.ID]map[string]*sealed.Secret
	version map[sandbox.ID]int64
	fails   map[sandbox.ID]bool
	opening sync.Map // sandbox.ID -> func(), before a credential is opened
	records []audit.Record
	learnt  []string
	next    int
}

var theWorld = sync.OnceValue(makeWorld)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func makeWorld() *world {
	w := &world{
		guests: map[netip.Addr]guest.Guest{}, secrets: map[sandbox.ID]map[string]*sealed.Secret{},
		version: map[sandbox.ID]int64{}, fails: map[sandbox.ID]bool{}, next: 1, signer: newSigner(),
	}
	w.lo = must(netlink.LinkByName("lo"))
	if err := netlink.LinkSetUp(w.lo); err != nil {
		panic(err)
	}
	for _, a := range []string{good4, other4, claimed4, inner4, "169.254.169.254", good6, claimed6} {
		w.address(a)
	}
	w.roots = w.signer.pool()
	w.origin, w.other, w.inner = w.newOrigin(good4, good6), w.newOrigin(other4), w.newOrigin(inner4)
	for name, addrs := range map[string][]string{
		"good.example": {good4, good6}, "api.good.example": {good4}, "other.example": {other4}, "inner.example": {inner4},
		"metadata.example": {"169.254.169.254"}, "six.example": {good6}, "badcert.example": {good4}, "nobody.example": {"8.8.4.99"},
	} {
		w.zone.Store(name+". A", []string(nil))
		w.zone.Store(name+". AAAA", []string(nil))
		for _, a := range addrs {
			kind := "A"
			if strings.Contains(a, ":") {
				kind = "AAAA"
			}
			w.zone.Store(name+". "+kind, []string{name + ". 60 " + kind + " " + a})
		}
	}
	w.start(w.upstream())
	return w
}

func (w *world) address(a string) {
	bits := 32
	if strings.Contains(a, ":") {
		bits = 128
	}
	addr := must(netlink.ParseAddr(fmt.Sprintf("%s/%d", a, bits)))
	addr.Flags |= 0x02 // no duplicate detection: it is used at once
	if err := netlink.AddrAdd(w.lo, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
		panic(err)
	}
}

// upstream is the operator's resolver.
func (w *world) upstream() netip.AddrPort {
	pc := must(net.ListenPacket("udp", "127.0.0.1:0"))
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		w.asked.Add(1)
		reply := new(dns.Msg)
		reply.SetReply(q)
		lines, known := w.zone.Load(q.Question[0].Name + " " + dns.TypeToString[q.Question[0].Qtype])
		if !known {
			reply.Rcode = dns.RcodeNameError
		} else {
			for _, line := range lines.([]string) {
				reply.Answer = append(reply.Answer, must(dns.NewRR(line)))
			}
		}
		rw.WriteMsg(reply)
	})
	started := make(chan struct{})
	s := &dns.Server{PacketConn: pc, Handler: handler, NotifyStartedFunc: func() { close(started) }}
	go s.ActivateAndServe()
	<-started
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// ports are those on which the proxy is reached, and the servers.
var ports = []string{"22", "80", "443", "2222", "6379"}

func (w *world) start(resolver netip.AddrPort) {
	never := must(policy.Compile(policy.Default(), policy.Fixed{}))
	var err error
	w.Proxy, err = New(Config{
		Lookup: w.lookup, Resolvers: []netip.AddrPort{resolver}, Credentials: w, Roots: w.roots, Records: w,
		Forbidden: func(a netip.Addr) bool { return !never.Reachable(a) && !a.IsPrivate() },
		Learn: func(g guest.Guest, a netip.Addr, slots uint64, _ time.Duration) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.learnt = append(w.learnt, fmt.Sprint(g.ID, a, slots))
		},
		Log:    slog.New(slog.NewJSONHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Limits: sniff.Limits{Bytes: sniff.MaxHello, Timeout: 20 * time.Second, Quiet: time.Second},
	})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	go w.Run(ctx)
	for _, addr := range []string{claimed4, claimed6} {
		for _, port := range ports {
			l := must(net.Listen("tcp", net.JoinHostPort(addr, port)))
			go w.Serve(ctx, l)
		}
	}
	go w.ServeDNS(ctx, must(net.ListenPacket("udp", claimed4+":53")), must(net.Listen("tcp", claimed4+":53")))
}

// Add takes a record. The world is where they go, all of them.
func (w *world) Add(r audit.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, r)
}

func (w *world) lookup(a netip.Addr) (guest.Guest, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, ok := w.guests[a]
	return g, ok
}

// The world is the source of credentials.
func (w *world) Secret(of guest.Guest, b *policy.Binding) (*sealed.Secret, bool, error) {
	if f, ok := w.opening.Load(of.ID); ok {
		f.(func())()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.secrets[of.ID][b.SourceRef]
	if s == nil || w.fails[of.ID] {
		return nil, false, errors.New("it does not open")
	}
	return s, true, nil
}

func (w *world) Version(id sandbox.ID, _ sandbox.Generation, _ string) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.version[id]
}

// box is a sandbox.
type box struct {
	t    testing.TB
	w    *world
	id   sandbox.ID
	addr netip.Addr
	six  netip.Addr

	dials atomic.Int64
}

// claimed is an address of the sandbox's choice, of each family in turn: whatever is
// tested here is tested with both.
func (b *box) claimed() string {
	if b.dials.Add(1)%2 == 0 {
		return claimed6
	}
	return claimed4
}

func newBox(t testing.TB, json string) *box {
	t.Helper()
	w := theWorld()
	w.mu.Lock()
	w.next++
	n := w.next
	w.mu.Unlock()
	b := &box{t: t, w: w, id: sandbox.ID(fmt.Sprintf("s-%d", n)), addr: netip.MustParseAddr(fmt.Sprintf("10.77.%d.%d", n>>8, n&255)), six: netip.MustParseAddr(fmt.Sprintf("fd77::%x", n))}
	w.address(b.addr.String())
	w.address(b.six.String())
	b.policy(json)
	t.Cleanup(b.end)
	return b
}

// end takes the sandbox away.
func (b *box) end() {
	b.w.mu.Lock()
	g := b.w.guests[b.addr]
	delete(b.w.guests, b.addr)
	delete(b.w.guests, b.six)
	b.w.mu.Unlock()
	b.w.Gone(g, true)
}

func (b *box) policy(text string) guest.Guest {
	b.t.Helper()
	p, err := policy.Parse([]byte(text))
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return b.told(p)
}

// told is policy for one that nobody validated.
func (b *box) told(p *policy.Policy) guest.Guest {
	b.t.Helper()
	c, err := policy.Compile(p, policy.Fixed{})
	if err != nil {
		b.t.Fatal(err)
	}
	g := guest.Guest{ID: b.id, Gen: 1, Team: "team", Policy: c}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.guests[b.addr], b.w.guests[b.six] = g, g
	return g
}

func (b *box) secret(source string, s sealed.Secret) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	if b.w.secrets[b.id] == nil {
		b.w.secrets[b.id] = map[string]*sealed.Secret{}
	}
	b.w.secrets[b.id][source] = &s
	b.w.version[b.id]++
}

// dial connects as the sandbox, to an address of its choice.
func (b *box) dial(port string) net.Conn {
	b.t.Helper()
	c, err := b.dialTo(b.t.Context(), b.claimed(), port)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

func (b *box) dialTo(ctx context.Context, host, port string) (net.Conn, error) {
	from := b.addr
	if strings.Contains(host, ":") {
		from = b.six
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: deadline}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err == nil {
		c.SetDeadline(time.Now().Add(deadline))
	}
	return c, err
}

// trust is what the sandbox trusts: its bundle and the internet's authority.
func (b *box) trust(own bool) *x509.CertPool {
	b.t.Helper()
	pool := b.w.signer.pool()
	if own {
		pem, err := b.w.CA(b.id)
		if err != nil {
			b.t.Fatal(err)
		}
		pool = x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
	}
	return pool
}

// client is an HTTP client in the sandbox. Whatever it connects to, it gets to the proxy.
func (b *box) client(own bool, h2 bool) *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(addr)
			return b.dialTo(ctx, b.claimed(), port)
		},
		TLSClientConfig: &tls.Config{RootCAs: b.trust(own)}, ForceAttemptHTTP2: h2,
	}
	if !h2 {
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	b.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: deadline, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t testing.TB, c *http.Client, url string, change ...func(*http.Request)) (status int, body string, header http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close = true // its record is written when the connection ends
	for _, f := range change {
		f(r)
	}
	resp, err := c.Do(r)
	if err != nil {
		return 0, err.Error(), nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, err.Error(), resp.Header
	}
	return resp.StatusCode, string(data), resp.Header
}

// recorded waits for a record of the sandbox that is as wanted.
func (b *box) recorded(want func(audit.Record) bool) audit.Record {
	b.t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); pause(b.t.Context(), 5*time.Millisecond) {
		for _, r := range b.all() {
			if want(r) {
				return r
			}
		}
	}
	b.t.Fatalf("no such record among %+v", b.all())
	return audit.Record{}
}

func (b *box) all() (mine []audit.Record) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	for _, r := range b.w.records {
		if r.SandboxID == string(b.id) {
			mine = append(mine, r)
		}
	}
	return mine
}

// origin is a server of the internet.
type origin struct {
	*http.Server
	mu   sync.Mutex
	seen []*http.Request
	body []string
	tcp  atomic.Int64 // connections
	big  sync.Once
}

func (w *world) newOrigin(addrs ...string) *origin {
	o := &origin{}
	mux := http.NewServeMux()
	mux.HandleFunc("/", o.serve)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	o.Server = &http.Server{Handler: mux, Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			o.tcp.Add(1)
		}
	}}
	o.TLSConfig = &tls.Config{ClientAuth: tls.RequestClientCert, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h.ServerName == "badcert.example" {
			return w.signer.leaf("elsewhere.example"), nil
		}
		return w.signer.leaf(h.ServerName), nil
	}}
	for _, addr := range addrs {
		plain, secure := must(net.Listen("tcp", net.JoinHostPort(addr, "80"))), must(net.Listen("tcp", net.JoinHostPort(addr, "443")))
		go o.Serve(plain)
		go o.ServeTLS(secure, "", "")
		for _, port := range []string{"2222", "6379"} {
			echo := must(net.Listen("tcp", net.JoinHostPort(addr, port)))
			go o.echo(echo)
		}
	}
	return o
}

func (o *origin) echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		o.tcp.Add(1)
		go func() {
			defer c.Close()
			io.WriteString(c, "hello from "+c.LocalAddr().String()+"\n")
			io.Copy(c, c)
		}()
	}
}

func (o *origin) serve(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/stream":
		o.stream(w, r)
		return
	case "/full":
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	if r.URL.Path == "/duplex" {
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				w.Write(bytes.ToUpper(buf[:n]))
				http.NewResponseController(w).Flush()
			}
			if err != nil {
				w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
				return
			}
		}
	}
	data, _ := io.ReadAll(r.Body)
	o.mu.Lock()
	o.seen = append(o.seen, r)
	o.body = append(o.body, string(data))
	o.mu.Unlock()
	switch r.URL.Path {
	case "/redirect":
		http.Redirect(w, r, "https://other.example/stolen", http.StatusFound)
	case "/reflect":
		w.Header().Set("X-Reflected", r.Header.Get("Authorization"))
		json.NewEncoder(w).Encode(r.Header)
	case "/ws":
		o.upgrade(w)
	default:
		cert := "none"
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			cert = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s %s %s proto=%d client=%s", r.Method, r.Host, r.URL.RequestURI(), r.ProtoMajor, cert)
	}
}

func (o *origin) stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i := 0; r.Context().Err() == nil; i++ {
		if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		pause(r.Context(), 5*time.Millisecond)
	}
}

func (o *origin) upgrade(w http.ResponseWriter) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	rw.Flush()
	line, _ := rw.ReadString('\n')
	io.WriteString(conn, strings.ToUpper(line))
}

// last is the body of what the server was asked last at a path.
func (o *origin) last(path string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, r := range slices.Backward(o.seen) {
		if r.URL.Path == path {
			return o.body[i]
		}
	}
	return ""
}

// find is a request that the server got, by its path.
func (o *origin) find(path string) *http.Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.seen {
		if r.URL.Path == path {
			return r
		}
	}
	return nil
}

// forget drops what an earlier run of a test asked.
func (o *origin) forget(path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, r := range slices.Backward(o.seen) {
		if r.URL.Path == path {
			o.seen, o.body = slices.Delete(o.seen, i, i+1), slices.Delete(o.body, i, i+1)
		}
	}
}

// signer is the internet's certificate authority.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newSigner() *signer {
	s := &signer{key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "internet"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	s.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, s.key.Public(), s.key))))
	return s
}

func (s *signer) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(s.cert)
	return p
}

func (s *signer) leaf(name string) *tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	return &tls.Certificate{Certificate: [][]byte{must(x509.CreateCertificate(rand.Reader, template, s.cert, key.Public(), s.key))}, PrivateKey: key}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// gone waits until a connection has ended, however.
func gone(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(deadline))
	r := bufio.NewReader(c)
	for {
		if _, err := r.ReadByte(); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is still open")
			}
			return
		}
	}
}
