package proxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"

	"s0.run/internal/policy"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/relay"
)

const (
	onlyGood = `{"mode":"block-all","egress":{"trafficRules":[{"name":"good","action":"allow","domains":["good.example","*.good.example","badcert.example","metadata.example","inner.example","nobody.example"]}]}}`
	notOther = `{"mode":"allow-all","egress":{"trafficRules":[{"name":"no other","action":"deny","domains":["other.example"]}]}}`
)

func TestE06_TheNameIsDialledWhateverTheAddress(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	status, body, _ := get(t, b.client(false, false), "https://good.example/e06")
	if status != 200 || !strings.HasPrefix(body, "GET good.example /e06") {
		t.Fatalf("%d %s", status, body)
	}
	r := b.recorded(func(r audit.Record) bool { return r.Host == "good.example" && r.Protocol == "tls" })
	if r.Action != audit.Allow || r.Outcome != audit.Completed || r.Adapter != "splice" || r.DestPort != 443 || r.EgressBytes == 0 || r.IngressBytes == 0 || r.TeamID != "team" {
		t.Errorf("its record: %+v", r)
	}
	if got := r.DestIP.String(); got != good4 && got != good6 {
		t.Errorf("dialled %s", got)
	}
}

func TestE06_IPv6(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"block-all","egress":{"allowedDomains":["six.example"]}}`)
	c, err := b.dialTo(t.Context(), claimed6, "443")
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(c, &tls.Config{ServerName: "six.example", RootCAs: b.trust(false)})
	defer conn.Close()
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if r := b.recorded(func(r audit.Record) bool { return r.Host == "six.example" }); r.DestIP.String() != good6 || r.SrcIP != b.six {
		t.Errorf("%+v", r)
	}
}

// Not parallel: it counts the connections of a server that others may reach.
func TestE04_WhatIsNotNamedIsDenied(t *testing.T) {
	b := newBox(t, onlyGood)
	before := b.w.other.tcp.Load()
	for _, url := range []string{"https://other.example/", "https://" + other4 + "/", "http://other.example/x"} {
		if status, body, _ := get(t, b.client(false, false), url); status == 200 {
			t.Errorf("%s: %s", url, body)
		}
	}
	// By its address, too, where nothing was asked of DNS.
	if c, err := b.dialTo(t.Context(), claimed4, "2222"); err == nil {
		gone(t, c)
	}
	if n := b.w.other.tcp.Load(); n != before {
		t.Errorf("%d connections got there", n-before)
	}
	r := b.recorded(func(r audit.Record) bool { return r.Host == "other.example" && r.Protocol == "tls" })
	if r.Action != audit.Deny || r.Outcome != audit.Denied || !strings.Contains(r.Reason, "denied by the network policy") {
		t.Errorf("its record: %+v", r)
	}
}

func TestE11_NoNameLeadsToForbiddenAddresses(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	before := b.w.inner.tcp.Load()
	for _, name := range []string{"inner.example", "metadata.example"} {
		if status, body, _ := get(t, b.client(false, false), "https://"+name+"/"); status != 0 {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if n := b.w.inner.tcp.Load(); n != before {
		t.Errorf("%d connections got there", n-before)
	}
	// With a rule that names the address it is the tenant's own.
	b.policy(`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","cidrs":["10.99.0.0/24"]},{"action":"allow","domains":["inner.example"]}]}}`)
	b.w.resolver.Forget(b.id, 1)
	if status, body, _ := get(t, b.client(false, false), "https://inner.example/"); status != 200 {
		t.Errorf("by a rule: %d %s", status, body)
	}
}

func TestE08_NamesThatAreNone(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	for _, name := range []string{"good.example\x00.evil.example", "8.8.8.8.", "a..good.example", strings.Repeat("a", 64) + ".good.example", "good.example/x", "bücher.example"} {
		c := b.dial("443")
		hello := clientHello(t, name)
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
		gone(t, c)
	}
	r := b.recorded(func(r audit.Record) bool { return r.Action == audit.Deny })
	if r.Outcome != audit.Denied {
		t.Errorf("%+v", r)
	}
	// One name in two spellings is one name.
	conn := tls.Client(b.dial("443"), &tls.Config{ServerName: "GOOD.Example.", InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		t.Errorf("in capitals: %v", err)
	}
}

// clientHello is one that a client of Go's would send, for any name.
func clientHello(t *testing.T, name string) []byte {
	t.Helper()
	// crypto/tls refuses such names; one of the same length is replaced in its bytes.
	stand := strings.Repeat("x", len(name)-2) + ".y"
	client, server := net.Pipe()
	defer client.Close()
	go tls.Client(client, &tls.Config{ServerName: stand, CurvePreferences: []tls.CurveID{tls.X25519}}).Handshake()
	buf := make([]byte, 16<<10)
	n, err := server.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(strings.Replace(string(buf[:n]), stand, name, 1))
}

func TestE09_AHelloInPiecesArrives(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	conn := tls.Client(&pieces{b.dial("443")}, &tls.Config{ServerName: "good.example", RootCAs: b.trust(false)})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
}

// pieces writes single bytes.
type pieces struct{ net.Conn }

func (p *pieces) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := p.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func TestE12_DNSIsAnsweredByNetd(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	ask := func(network, name string) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		client := dns.Client{Net: network, Timeout: deadline, Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: b.addr.AsSlice()}}}
		if network == "tcp" {
			client.Dialer.LocalAddr = &net.TCPAddr{IP: b.addr.AsSlice()}
		}
		m, _, err := client.Exchange(q, claimed4+":53")
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, network := range []string{"udp", "tcp"} {
		if m := ask(network, "good.example."); len(m.Answer) != 1 {
			t.Errorf("over %s: %v", network, m)
		}
		if m := ask(network, "stolen.evil.example."); m.Rcode != dns.RcodeNameError {
			t.Errorf("over %s: %v", network, m)
		}
	}
	r := b.recorded(func(r audit.Record) bool { return r.Host == "stolen.evil.example" })
	if r.Action != audit.Deny || r.Protocol != "dns" {
		t.Errorf("%+v", r)
	}
}

func TestServerFirstProtocolsGoByTheirAddressesNames(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"block-all","egress":{"allowedDomains":["shell.example"]}}`)
	b.w.zone.Store("shell.example. A", []string{"shell.example. 60 A " + claimed4})
	b.w.zone.Store("shell.example. AAAA", []string{"shell.example. 60 AAAA " + claimed6})
	for range 2 { // of each family
		gone(t, b.dial("2222")) // not before the name was asked for
	}
	g, _ := b.w.lookup(b.addr)
	if _, err := b.w.resolver.Addrs(t.Context(), g, "shell.example"); err != nil {
		t.Fatal(err)
	}
	// The address is the proxy's own here, where a second flow is begun that is
	// nobody's: what matters is that this one was allowed and dialled.
	for _, from := range []netip.Addr{b.addr, b.six} {
		gone(t, b.dial("2222"))
		if r := b.recorded(func(r audit.Record) bool { return r.Host == "shell.example" && r.Protocol == "" && r.SrcIP == from }); r.Action != audit.Allow {
			t.Errorf("%+v", r)
		}
	}
}

func TestE08_WaitingGetsPastNoRule(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"allow-all","egress":{"protocolRules":[{"name":"read only","protocol":"http","http":{"methods":{"allowed":["GET"]}}}]}}`)
	gone(t, b.dial("2222")) // silent for longer than anybody waits
	c := b.dial("2222")
	io.WriteString(c, "\x00\x01 nothing known, and long enough to know that")
	gone(t, c)
	if r := b.recorded(func(r audit.Record) bool { return r.ClassifierResult == "silent" }); r.Action != audit.Deny || !strings.Contains(r.Reason, "look inside") {
		t.Errorf("%+v", r)
	}
}

// What is not understood could be anything: it passes where nothing that it could be
// is denied, or has to carry a login.
func TestE08_WhatIsNotUnderstoodMayBeWhatIsDenied(t *testing.T) {
	t.Parallel()
	const login = `"credentialBindings":[{"ref":"r","sourceRef":"src","projection":{"type":"ssh_proxy","sshProxy":{"knownHosts":["* ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"]}}}]}`
	for _, policy := range []string{
		`{"mode":"allow-all","egress":{"trafficRules":[{"name":"no shells","action":"deny","appProtocols":["ssh"]}]}}`,
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"r","protocol":"ssh"}]},` + login,
	} {
		b := newBox(t, policy)
		for _, says := range []string{"", "PING\r\n"} { // a client that waits, or in a way that only its server knows
			c := b.dial("6379")
			io.WriteString(c, says)
			gone(t, c)
		}
		for _, kind := range []string{"silent", "unknown"} {
			if r := b.recorded(func(r audit.Record) bool { return r.ClassifierResult == kind }); r.Action != audit.Deny || !strings.Contains(r.Reason, "that is understood") {
				t.Errorf("%s: %+v", kind, r)
			}
		}
	}
	b := newBox(t, `{"mode":"allow-all","egress":{"trafficRules":[{"action":"deny","appProtocols":["ssh"],"ports":[{"port":22}]}]}}`)
	gone(t, b.dial("6379"))
	if r := b.recorded(func(r audit.Record) bool { return r.ClassifierResult == "silent" }); r.Action != audit.Allow {
		t.Errorf("on another port: %+v", r)
	}
}

func TestE08_NoNameIsEveryName(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	b.policy(strings.Replace(withToken(""), "block-all", "allow-all", 1))
	byAddress := tls.Client(b.dial("443"), &tls.Config{ServerName: claimed4, RootCAs: b.trust(true)}) // which is no name to send
	if err := byAddress.Handshake(); err == nil {
		t.Error("somebody answered")
	}
	if r := b.recorded(func(r audit.Record) bool { return r.Protocol == "tls" }); r.Action != audit.Deny || !strings.Contains(r.Reason, "no name") {
		t.Errorf("%+v", r)
	}
}

func TestE10_EmptyLinesHideNoRequest(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"allow-all","egress":{"protocolRules":[{"name":"read only","protocol":"http","domains":["good.example"],"http":{"methods":{"allowed":["GET"]}}}]}}`)
	c := b.dial("80")
	io.WriteString(c, "\r\n\r\nDELETE /hidden HTTP/1.1\r\nHost: good.example\r\n\r\n")
	gone(t, c)
	if r := b.recorded(func(r audit.Record) bool { return true }); r.Protocol != "http" || b.w.origin.find("/hidden") != nil {
		t.Errorf("%+v", r)
	}
}

func TestE20_AResetArrivesAndTheSlotIsFreed(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	conn := tls.Client(b.dial("443"), &tls.Config{ServerName: "good.example", RootCAs: b.trust(false)})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if n := b.w.flows.Open(b.id); n != 1 {
		t.Errorf("%d flows are open", n)
	}
	conn.NetConn().(*net.TCPConn).SetLinger(0)
	conn.NetConn().Close()
	b.recorded(func(r audit.Record) bool { return r.Host == "good.example" })
	if n := b.w.dialer.Open(b.id); n != 0 {
		t.Errorf("%d connections to upstream are left", n)
	}
}

func TestX33_NobodyListens(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	b.w.address("8.8.4.99")
	c := b.dial("443")
	if _, err := c.Write(clientHello(t, "nobody.example")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v", err)
	}
	r := b.recorded(func(r audit.Record) bool { return r.Host == "nobody.example" && r.Outcome == audit.Failed })
	if !strings.Contains(r.Error, "refused") {
		t.Errorf("%+v", r)
	}
}

func TestE21_ATightenedPolicyCutsWhatItForbids(t *testing.T) {
	t.Parallel()
	b := newBox(t, notOther)
	read := func(name string) (*bufio.Reader, net.Conn) {
		conn := tls.Client(b.dial("443"), &tls.Config{ServerName: name, RootCAs: b.trust(false)})
		io.WriteString(conn, "GET /stream HTTP/1.1\r\nHost: "+name+"\r\n\r\n")
		r := bufio.NewReader(conn)
		if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("%s: %q, %v", name, line, err)
		}
		return r, conn
	}
	_, cut := read("good.example")
	stays, _ := read("api.good.example")
	if n := b.w.Changed(b.policy(notOther)); n != 0 {
		t.Errorf("%d flows were cut by the same policy", n)
	}
	if n := b.w.Changed(b.policy(`{"mode":"block-all","egress":{"allowedDomains":["api.good.example"]}}`)); n != 1 {
		t.Errorf("%d flows were cut", n)
	}
	gone(t, cut)
	for range 10 {
		if _, err := stays.ReadString('\n'); err != nil {
			t.Fatalf("what is still allowed: %v", err)
		}
	}
	b.recorded(func(r audit.Record) bool { return r.Outcome == audit.Denied && strings.Contains(r.Reason, "cut") })
}

func TestE21_WhatIsBegunIsJudgedByThePolicyInForce(t *testing.T) {
	t.Parallel()
	b := newBox(t, notOther)
	c := b.dial("443")
	hello := clientHello(t, "good.example")
	if _, err := c.Write(hello[:20]); err != nil {
		t.Fatal(err)
	}
	for b.w.flows.Open(b.id) == 0 {
		pause(t.Context(), 1e6)
	}
	if n := b.w.Changed(b.policy(`{"mode":"block-all"}`)); n != 0 {
		t.Errorf("%d flows of which nothing is known were cut", n)
	}
	if _, err := c.Write(hello[20:]); err != nil {
		t.Fatal(err)
	}
	gone(t, c)
	if r := b.recorded(func(r audit.Record) bool { return r.Host == "good.example" }); r.Action != audit.Deny || r.IngressBytes != 0 {
		t.Errorf("%+v", r)
	}
}

// A policy that changes between a verdict and its being told to the registry is
// asked again by the connection itself.
func TestE21_AVerdictThatCameTooLate(t *testing.T) {
	t.Parallel()
	b := newBox(t, notOther)
	g, _ := b.w.lookup(b.addr)
	ours, theirs := net.Pipe()
	s := &session{p: b.w.Proxy, guest: g, conn: ours, src: netip.AddrPortFrom(b.addr, 1), flow: &relay.Flow{Sandbox: g.ID}, gen: g.Gen}
	b.policy(`{"mode":"block-all"}`) // the registry was asked before there was an answer
	direct := func(*policy.Compiled) (way, policy.Verdict) { return spliced, policy.Verdict{Allow: true} }
	if s.judge(policy.Flow{Name: "good.example", Port: 443, App: policy.TLS}, direct) {
		t.Error("the policy of before counted")
	}
	gone(t, theirs)
}

func TestE21_TheDialledAddressIsJudgedAgain(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{notOther, `{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{"methods":{"denied":["PUT"]}}}]}}`} {
		b := newBox(t, policy)
		conn := tls.Client(b.dial("443"), &tls.Config{ServerName: "api.good.example", RootCAs: b.trust(policy != notOther)})
		io.WriteString(conn, "GET /stream HTTP/1.1\r\nHost: api.good.example\r\n\r\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("%q, %v", line, err)
		}
		cut := strings.Replace(policy, `"egress":{`, `"egress":{"deniedCidrs":["`+good4+`/32"],`, 1)
		cut = strings.Replace(cut, `"deniedCidrs":["`+good4+`/32"],"trafficRules":[`, `"trafficRules":[{"action":"deny","cidrs":["`+good4+`/32"]},`, 1)
		if n := b.w.Changed(b.policy(cut)); n != 1 {
			t.Errorf("%d flows were cut under %s", n, cut)
		}
		gone(t, conn)
	}
}

func TestD08_ASandboxHasSoManyFlows(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	for range maxFlows {
		c, err := b.dialTo(t.Context(), claimed4, "443")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "\x16") // begins a hello, and waits
	}
	for b.w.flows.Open(b.id) < maxFlows {
		pause(t.Context(), 1e6)
	}
	if over, err := b.dialTo(t.Context(), claimed4, "443"); err == nil { // it may be refused before it is told
		defer over.Close()
		gone(t, over)
	}
	other := newBox(t, onlyGood)
	if status, body, _ := get(t, other.client(false, false), "https://good.example/d08"); status != 200 {
		t.Errorf("a neighbour: %d %s", status, body)
	}
}

func TestE19_WhoIsUnknownIsRefused(t *testing.T) {
	t.Parallel()
	w := theWorld()
	w.address("10.88.0.1")
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.88.0.1")}}
	if c, err := d.Dial("tcp", claimed4+":443"); err == nil { // it may be refused before it is told
		defer c.Close()
		gone(t, c)
	}
}

func TestE23_AnotherGenerationsFlowsAreCut(t *testing.T) {
	t.Parallel()
	b := newBox(t, notOther)
	conn := tls.Client(b.dial("443"), &tls.Config{ServerName: "good.example", RootCAs: b.trust(false)})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	b.w.mu.Lock()
	g := b.w.guests[b.addr]
	g.Gen = 2
	b.w.guests[b.addr] = g
	b.w.mu.Unlock()
	b.w.Changed(g)
	gone(t, conn)
}

func TestEgressProxy(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	asked := make(chan netip.AddrPort, 10)
	l := must(net.Listen("tcp", other4+":0"))
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go socks(c, asked)
		}
	}()
	b.policy(`{"mode":"block-all","egress":{"allowedDomains":["good.example"],"proxy":{"type":"socks5","address":"` + l.Addr().String() + `"}}}`)
	if status, body, _ := get(t, b.client(false, false), "https://good.example/socks"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if to := <-asked; to.String() != good4+":443" {
		t.Errorf("the proxy was asked for %v", to)
	}
	if status, _, _ := get(t, b.client(false, false), "https://other.example/"); status != 0 || len(asked) != 0 {
		t.Error("what is denied got to the proxy")
	}
}

// socks is a SOCKS5 proxy for addresses, and for anybody.
func socks(c net.Conn, asked chan netip.AddrPort) {
	defer c.Close()
	buf := make([]byte, 300)
	io.ReadFull(c, buf[:2])
	io.ReadFull(c, buf[:buf[1]]) // the logins that are offered
	c.Write([]byte{5, 0})
	io.ReadFull(c, buf[:10])
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(buf[4:8])), uint16(buf[8])<<8|uint16(buf[9]))
	asked <- to
	up, err := net.Dial("tcp", to.String())
	if err != nil {
		return
	}
	defer up.Close()
	c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	go func() { io.Copy(up, c); up.(*net.TCPConn).CloseWrite() }()
	io.Copy(c, up)
}

func TestAuditOnlyTellsAndLetsPass(t *testing.T) {
	t.Parallel()
	b := newBox(t, strings.Replace(onlyGood, `"mode"`, `"enforcement":"audit-only","mode"`, 1))
	if status, body, _ := get(t, b.client(false, false), "https://other.example/audit"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	r := b.recorded(func(r audit.Record) bool { return r.Host == "other.example" })
	if r.Action != audit.WouldDeny || r.Outcome != audit.Completed || r.Reason == "" {
		t.Errorf("%+v", r)
	}
	if status, _, _ := get(t, b.client(false, false), "https://metadata.example/"); status != 0 {
		t.Error("what is always denied passed")
	}
}
