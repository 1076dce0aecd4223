package netd_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
)

// What comes of an attempt.
func denied(o outcome) bool  { return o.Err != "" && o.Out == "" && o.Status == 0 }
func refused(o outcome) bool { return o.Err == "refused" && o.Out == "" }
func echoed(o outcome) bool  { return o.Err == "" && o.Out == "echo ping" }
func sent(o outcome) bool    { return o.Err == "" }

func answers(what string) func(outcome) bool {
	return func(o outcome) bool { return o.Err == "" && strings.Contains(o.Out, what) }
}

func status(n int) func(outcome) bool { return func(o outcome) bool { return o.Status == n } }

func connect(network, ip, port string) *attempt {
	return &attempt{Op: "connect", Network: network, To: net.JoinHostPort(ip, port)}
}

// datagram is one that is answered, if only by a refusal.
func datagram(ip, port string) *attempt {
	a := connect("udp", ip, port)
	a.Answered = true
	return a
}

// naming names whatever a policy can name.
const naming = `{"mode":"allow-all","egress":{"trafficRules":[{"name":"all","action":"allow","cidrs":["0.0.0.0/0","::/0","10.0.0.0/8","169.254.0.0/16","100.64.0.0/10","fd00::/8","10.77.0.0/16"]}]}}`

// onlyFar lets nothing but these pass the sink.
func onlyFar(t *testing.T, s *sink, ports ...uint16) {
	t.Helper()
	for _, p := range s.packets() {
		if ip := p.dst.Addr().String(); ip != far4 && ip != far6 || !slices.Contains(ports, p.dst.Port()) {
			t.Errorf("protocol %d got out to %s", p.protocol, p.dst)
		}
	}
}

// What is always denied is denied to a real sandbox with raw sockets, too, though its
// policy names it, and no packet of it gets out.
func TestE01_E02_E03_E14_E15_E16_E17_FromGVisor(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWorld(t)
	w.start()
	w.far("80")
	b, neighbour := w.sandbox(), w.sandbox()
	b.policy(naming)
	neighbour.policy(naming)
	outside, beside := w.sink(w.beyond, "eth"), w.sink(neighbour.ns, "eth0")
	all := map[*attempt]func(outcome) bool{
		connect("tcp", far4, "80"): echoed, connect("tcp", far6, "80"): echoed, datagram(far4, "80"): echoed, datagram(far6, "80"): echoed,
		connect("tcp", "10.77.0.1", "15001"): refused, connect("tcp", "fd77::1", "15001"): refused,
	}
	for _, ip := range append(w.uplink(),
		"169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", // E01
		host4, host6, "240.0.0.1", "192.88.99.1", "0.0.0.1", // E02
		"64:ff9b::5db8:2", "2002:5db8:2::1", "2001::1", "fec0::1", // E03
		neighbour.slot.IPv4.String(), neighbour.slot.IPv6.String(), // E17
	) {
		all[connect("tcp", ip, "80")], all[connect("udp", ip, "80")] = denied, denied
	}
	all[connect("udp", "224.0.0.1", "80")], all[connect("udp", "ff02::1", "80")], all[connect("udp", "255.255.255.255", "80")] = denied, denied, denied
	for _, protocol := range []int{unix.IPPROTO_ICMP, unix.IPPROTO_GRE, unix.IPPROTO_SCTP, unix.IPPROTO_IPIP, unix.IPPROTO_ESP} { // E14, E15
		all[&attempt{Op: "raw", Proto: protocol, To: far4}] = func(outcome) bool { return true } // what counts is the sink
	}
	spoofed := b.frame(unix.IPPROTO_UDP, far4, func(f []byte) { f[29]++; f[37] = 81 })[14:] // E16
	all[&attempt{Op: "raw", Data: spoofed, To: far4}] = sent
	all[&attempt{Op: "raw", Proto: unix.IPPROTO_ICMPV6, To: far6}] = sent
	b.wants(all)
	onlyFar(t, outside, 80)
	if got := beside.packets(); len(got) > 0 {
		t.Errorf("the neighbour saw %v", got)
	}
}

// An allow-list holds against a real sandbox, whatever it says of whom it talks to.
func TestE04_E06_E08_E09_E10_E12_E13_FromGVisor(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWeb(t)
	for _, port := range []string{"80", "853", "8080"} {
		w.far(port)
	}
	b := w.sandbox()
	b.policy(`{"mode":"block-all","egress":{"allowedDomains":["good.example"]}}`)
	outside := w.sink(w.beyond, "eth")
	hello := func(name, ip string) *attempt {
		return &attempt{Op: "hello", Network: "tcp", To: net.JoinHostPort(ip, "443"), Name: name}
	}
	send := func(data, port string) *attempt {
		return &attempt{Op: "bytes", Network: "tcp", To: net.JoinHostPort(other4, port), Data: []byte(data)}
	}
	slowly := send(string(helloBytes(t, "good.example")), "443")
	slowly.Slow = true
	nul := []byte(strings.Replace(string(helloBytes(t, "good-example")), "good-example", "good\x00example", 1))
	all := map[*attempt]func(outcome) bool{
		hello("good.example", other4): answers("internet"), hello("good.example", other6): answers("internet"), // E06
		hello("GOOD.example", other4): answers("internet"), // E08
		hello("other.example", far4):  denied, hello("other.example", far6): denied,
		hello("", far4): denied, hello("", far6): denied,
		hello("good.example.other.example", far4):                       denied,
		hello(strings.Repeat("a", 63)+".example", far4):                 denied,
		send(string(nul), "443"):                                        denied,
		send("\x16\x03\x01\x40\x00"+strings.Repeat("x", 70<<10), "443"): denied,
		connect("tcp", far4, "8080"):                                    denied, connect("tcp", far6, "8080"): denied, // E04
		datagram(other4, "8080"): refused, datagram(other6, "8080"): refused,
		datagram(far4, "443"): refused, datagram(far6, "443"): refused, // E13
		connect("tcp", far4, "853"): denied, connect("tcp", far6, "853"): denied, // E12
	}
	for _, smuggled := range []string{ // E10
		"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
		"GET / HTTP/1.1\nHost: good.example\n\n",
		"GET http://other.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"CONNECT other.example:443 HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: good.example\r\nX-A: b\r\n folded\r\n\r\n",
	} {
		all[send(smuggled, "80")] = func(o outcome) bool { return strings.HasPrefix(o.Out, "HTTP/1.1 400") }
	}
	for server, network := range map[string]string{"1.2.3.4:53": "udp", "[2606:aaaa::99]:53": "udp", "8.8.8.8:53": "tcp", "[2606:aaaa::98]:53": "tcp"} { // E12
		all[&attempt{Op: "ask", Network: network, To: server, Name: "good.example"}] = answers("A " + far4)
		all[&attempt{Op: "ask", Network: network, To: server, Name: "stolen.evil.example"}] = status(dns.RcodeNameError)
		all[&attempt{Op: "ask", Network: network, To: server, Name: "good.example", Proto: int(dns.TypeHTTPS)}] = func(o outcome) bool { // E08: no keys
			return o.Err == "" && o.Status == dns.RcodeSuccess && o.Out == ""
		}
	}
	for _, ip := range []string{other4, other6} { // E08: a name that may be, and behind it one that may not
		all[&attempt{Op: "ech", Network: "tcp", To: net.JoinHostPort(ip, "443"), URL: "good.example", Name: "other.example", Roots: w.bundle}] = denied
		all[&attempt{Op: "h2", To: net.JoinHostPort(ip, "443"), URL: "https://good.example/", Roots: w.bundle}] = answers("HTTP/2.0 good.example from ")
	}
	for _, ip := range []string{far4, far6} { // QUIC, E13
		w.serves(w.beyond, "udp", net.JoinHostPort(ip, "443"))
	}
	b.wants(all)
	b.wants(map[*attempt]func(outcome) bool{ // by itself: all of it must come in time (E09)
		slowly: func(o outcome) bool { return len(o.Out) > 5 && o.Out[0] == 22 },
	})
	b.wants(map[*attempt]func(outcome) bool{ // now that the name's addresses are known
		datagram(far4, "443"): refused, datagram(far6, "443"): refused, hello("good.example", far4): answers("internet"),
	})
	for _, p := range outside.packets() {
		if ip := p.dst.Addr().String(); ip != far4 && ip != far6 || p.dst.Port() != 443 || p.protocol != unix.IPPROTO_TCP {
			t.Errorf("protocol %d got out to %s", p.protocol, p.dst)
		}
	}
	w.tells("a hello that is encrypted", func(e netdapi.Event) bool {
		return e.Host == "good.example" && e.Action == "deny" && strings.Contains(e.Reason, "encrypted")
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range w.asked {
		if strings.ToLower(name) != "good.example." {
			t.Errorf("upstream was asked for %s", name)
		}
	}
}

// tells waits for a record.
func (w *world) tells(what string, is func(netdapi.Event) bool) {
	w.t.Helper()
	var mark netdapi.Mark
	w.eventually(what+" is recorded", func() error {
		batch, err := w.client.TakeEvents(w.t.Context(), mark)
		if err != nil {
			return err
		}
		if mark = batch.Mark; slices.ContainsFunc(batch.Events, is) {
			return nil
		}
		return fmt.Errorf("not among %d", len(batch.Events))
	})
}

// helloBytes is a ClientHello.
func helloBytes(t *testing.T, name string) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: name}).Handshake()
		client.Close()
	}()
	buf := make([]byte, 5)
	_, err := io.ReadFull(server, buf)
	if err == nil {
		buf = append(buf, make([]byte, int(buf[3])<<8|int(buf[4]))...)
		_, err = io.ReadFull(server, buf[5:])
	}
	server.Close()
	if err != nil {
		t.Fatal(err)
	}
	return buf
}

const carried = `{"mode":"block-all","egress":{"allowedDomains":["good.example","other.example"],
	"credentialRules":[{"credentialRef":"tok","protocol":"https","tlsMode":"terminate-reoriginate","domains":["good.example"],"httpMatch":{"pathPrefixes":["/api","/reflect","/elsewhere"]}}]},
	"credentialBindings":[{"ref":"tok","sourceRef":"src","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"Bearer {{ .token }}"}]}}}]}`

// carries gives a sandbox a version of a credential.
func (w *web) carries(b *box, token string, version int64) {
	w.t.Helper()
	blob, err := w.public.SealSecret(sealed.Of{Team: "team", Source: "src", Kind: policy.StaticHeaders, Version: version}, sealed.Secret{Values: map[string]string{"token": token}})
	w.must(err)
	w.must(w.client.SetPolicy(w.t.Context(), netdapi.Policy{
		ID: b.slot.ID, Generation: 1, Team: "team", Policy: json.RawMessage(carried),
		Credentials: []sealed.Credential{{Source: "src", Kind: policy.StaticHeaders, Version: version, Blob: blob}},
	}))
}

// tokens are what servers got since they were last asked for.
func (w *web) tokens() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.seen {
		all = append(all, strings.Join(h["Authorization"], "|"))
	}
	w.seen = nil
	slices.Sort(all)
	return all
}

// A credential goes where its rule says, once, over TLS that is verified, and a real
// sandbox never sees it.
func TestF01_F02_F03_F04_F05_F07_F12_F13_F14_FromGVisor(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWeb(t)
	w.far("80")
	const token, newer = "canary-of-the-first", "canary-of-the-second"
	b, neighbour := w.sandbox(), w.sandbox()
	w.carries(b, token, 1)
	neighbour.policy(carried) // which has no such source
	ca, err := w.client.CA(t.Context(), b.slot.ID)
	w.must(err)
	theirs, err := w.client.CA(t.Context(), neighbour.slot.ID)
	w.must(err)
	get := func(path, roots, ip string, h http.Header) *attempt {
		return &attempt{Op: "get", URL: "https://good.example" + path, To: net.JoinHostPort(ip, "443"), Roots: roots, Header: h}
	}
	own := http.Header{"Authorization": {"Bearer mine", "Basic x"}, "authorization": {"y"}, "Connection": {"authorization"}}
	fronted := get("/api", ca.PEM, other4, nil)
	fronted.Name = "other.example"
	clean := func(n int) func(outcome) bool {
		return func(o outcome) bool { return o.Status == n && !strings.Contains(o.Out, "canary") }
	}
	outside := w.sink(w.beyond, "eth")
	b.wants(map[*attempt]func(outcome) bool{
		get("/api/x", ca.PEM, other4, nil):     clean(200),
		get("/api/y", ca.PEM, other6, own):     clean(200), // F05
		get("/apiary", ca.PEM, other4, nil):    clean(200), // F01
		get("/reflect", ca.PEM, other4, nil):   clean(200), // F02
		get("/elsewhere", ca.PEM, other4, nil): clean(302), // F03
		get("/api", w.bundle, other4, nil):     denied,     // F13
		fronted:                                status(421),
		{Op: "get", URL: "http://good.example/api", To: net.JoinHostPort(other4, "80")}: func(o outcome) bool { return o.Status >= 400 }, // F04
	})
	if got, want := w.tokens(), []string{"", "Bearer " + token, "Bearer " + token, "Bearer " + token, "Bearer " + token}; !slices.Equal(got, want) {
		t.Errorf("servers got %q", got)
	}
	const words = "HTTP/2.0 ONE TWO THREE status 0"
	of := func(o outcome) string { return strings.TrimSpace(fmt.Sprint(o.Status, " ", o.Out, o.Err)) }
	is := func(what string) func(outcome) bool {
		return func(o outcome) bool { return strings.HasPrefix(of(o), what) }
	}
	various := map[*attempt]func(outcome) bool{
		{Op: "ech", Network: "tcp", To: net.JoinHostPort(other4, "443"), URL: "good.example", Name: "other.example", Roots: ca.PEM}: denied, // E08: nobody opens it
	}
	want := []string{}
	for _, ip := range []string{other4, other6} { // whatever is spoken, in connections that are opened and in those that are not
		for name, roots := range map[string]string{"good.example": ca.PEM, "other.example": w.bundle} {
			to, carries := net.JoinHostPort(ip, "443"), ""
			if name == "good.example" {
				carries = "Bearer " + token
			}
			various[&attempt{Op: "h2", To: to, URL: "https://" + name + "/api/h2", Roots: roots}] = is("200 HTTP/2.0 " + name + " from ")
			various[&attempt{Op: "grpc", To: to, URL: "https://" + name + "/api/grpc", Roots: roots}] = is("200 " + words)
			various[&attempt{Op: "ws", To: to, URL: "wss://" + name + "/api/ws", Roots: roots}] = is("101 ONE 3 \x00TWO 4 THRE 100000")
			want = append(want, carries, carries, carries)
		}
	}
	b.wants(various)
	slices.Sort(want)
	if got := w.tokens(); !slices.Equal(got, want) {
		t.Errorf("by HTTP/2, gRPC and WebSocket servers got %q", got)
	}
	neighbour.wants(map[*attempt]func(outcome) bool{ // F07, F14
		get("/api", theirs.PEM, other4, nil): status(503),
		get("/api", ca.PEM, other6, nil):     denied,
	})
	if got := w.tokens(); len(got) != 0 {
		t.Errorf("servers got %q of who has no credential", got)
	}
	w.carries(b, newer, 2) // F12
	b.wants(map[*attempt]func(outcome) bool{get("/api", ca.PEM, other6, nil): clean(200)})
	if got := w.tokens(); !slices.Equal(got, []string{"Bearer " + newer}) {
		t.Errorf("after a rotation servers got %q", got)
	}
	onlyFar(t, outside, 443, 80)
}

// E20, E21, E22: a real sandbox's connections before, under and after its policy.
func TestE20_E21_E22_FromGVisor(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWorld(t)
	w.start()
	w.far("80")
	w.far("22")
	b := w.link(0)
	outside := w.sink(w.beyond, "eth")
	b.wants(map[*attempt]func(outcome) bool{ // nobody has told netd of it
		connect("udp", far4, "80"): denied, connect("udp", far6, "80"): denied,
		{Op: "raw", Proto: unix.IPPROTO_UDP, To: far4}: sent,
	})
	if got := outside.packets(); len(got) > 0 {
		t.Fatalf("%v got out of a link that nobody attached", got)
	}
	w.must(w.client.Attach(t.Context(), b.slot))
	echoes := func(what string) func(outcome) bool {
		return func(o outcome) bool { return o.Err == "" && o.Out == "echo "+what }
	}
	for _, ip := range []string{far4, far6} {
		b.policy(`{"mode":"block-all","egress":{"trafficRules":[
			{"name":"ssh","action":"allow","cidrs":["93.184.0.2/32","2606:aaaa::2/128"],"appProtocols":["ssh"],"ports":[{"port":22}]},
			{"name":"echo","action":"allow","cidrs":["93.184.0.2/32","2606:aaaa::2/128"],"ports":[{"port":80},{"port":81}]}]}}`)
		b.wants(map[*attempt]func(outcome) bool{ // whose ends pass, spliced and by address
			{Op: "bytes", Network: "tcp", To: net.JoinHostPort(ip, "22"), Data: []byte("SSH-2.0-x\r\n")}: echoes("SSH-2.0-x\r\n"),
			{Op: "bytes", Network: "tcp", To: net.JoinHostPort(ip, "80"), Data: []byte("hello")}:         echoes("hello"),
		})
		talks := w.talks(net.JoinHostPort(ip, "81"))
		closed := make(chan error, 1)
		go func() {
			<-talks
			closed <- w.client.SetPolicy(t.Context(), netdapi.Policy{ID: b.slot.ID, Generation: 1, Team: "team", Policy: json.RawMessage(`{"mode":"block-all"}`)})
		}()
		b.wants(map[*attempt]func(outcome) bool{
			{Op: "hold", Network: "tcp", To: net.JoinHostPort(ip, "81")}: func(o outcome) bool { return o.Out == "echo ping" && o.Err != "" && o.Err != "timeout" },
		})
		w.must(<-closed)
	}
}

// talks echoes, and says when it has done so for the first time.
func (w *world) talks(at string) (first chan struct{}) {
	first = make(chan struct{})
	w.must(in(w.beyond, func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			defer close(first)
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 100)
			if n, err := c.Read(buf); err == nil {
				_, _ = c.Write(append([]byte("echo "), buf[:n]...))
			}
			go func() {
				defer c.Close()
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(append([]byte("echo "), buf[:n]...)); err != nil {
						return
					}
				}
			}()
		}()
		return nil
	}))
	return first
}

// What a sandbox's root changes of its own network changes nothing (E18).
func TestE18_SettingsInsideChangeNothing(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.far("80")
	b, neighbour := w.sandbox(), w.sandbox()
	b.policy(`{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.2/32","2606:aaaa::2/128"]}}`)
	outside, beside := w.sink(w.beyond, "eth"), w.sink(neighbour.ns, "eth0")
	inner := w.handle(b.ns)
	eth, err := inner.LinkByName("eth0")
	w.must(err)
	for _, other := range []string{other4, other6, "169.254.169.254", neighbour.slot.IPv4.String(), neighbour.slot.IPv6.String()} {
		ip := net.ParseIP(other)
		bits := 128
		if four := ip.To4(); four != nil {
			ip, bits = four, 32
		}
		w.must(inner.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, bits)}}))
		for _, mac := range []net.HardwareAddr{hostMAC, neighbour.mac} { // past the gateway, and to another's link
			w.must(inner.NeighSet(&netlink.Neigh{LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac}))
			if c, err := b.dialWithin("tcp", net.JoinHostPort(other, "80"), quiet/10); err == nil {
				c.Close()
				t.Errorf("%s answers", other)
			}
		}
	}
	t.Setenv("HTTPS_PROXY", "http://"+other4)
	w.must(inner.AddrReplace(eth, &netlink.Addr{IPNet: &net.IPNet{IP: neighbour.slot.IPv4.AsSlice(), Mask: net.CIDRMask(32, 32)}}))
	if c, err := b.dialWithin("tcp", net.JoinHostPort(other4, "80"), quiet/10); err == nil {
		c.Close()
		t.Error("it got out under another's address")
	}
	b.reaches("tcp", net.JoinHostPort(far4, "80"))
	b.reaches("tcp", net.JoinHostPort(far6, "80"))
	onlyFar(t, outside, 80)
	if got := beside.packets(); len(got) > 0 {
		t.Errorf("the neighbour saw %v", got)
	}
}

// Egress through a proxy: what is allowed goes there by its address, as netd resolved
// it, with the binding's login; what is not never does, and UDP does not leave.
func TestE06_EgressProxyFromGVisor(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWeb(t)
	w.far("22")
	asked := make(chan string, 100)
	for _, ip := range []string{other4, other6} {
		w.must(in(w.beyond, func() error {
			l, err := net.Listen("tcp", net.JoinHostPort(ip, "1080"))
			if err != nil {
				return err
			}
			w.t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go w.socks(c, asked)
				}
			}()
			return nil
		}))
	}
	b := w.sandbox()
	blob, err := w.public.SealSecret(sealed.Of{Team: "team", Source: "src", Kind: policy.StaticUserPass, Version: 1}, sealed.Secret{Values: map[string]string{"username": "someone", "password": "canary"}})
	w.must(err)
	outside := w.sink(w.beyond, "eth")
	for _, proxy := range []string{other4, other6} {
		w.must(w.client.SetPolicy(t.Context(), netdapi.Policy{
			ID: b.slot.ID, Generation: 1, Team: "team",
			Policy: json.RawMessage(`{"mode":"block-all","egress":{"trafficRules":[
				{"name":"site","action":"allow","domains":["good.example"]},{"name":"echo","action":"allow","cidrs":["93.184.0.2/32","2606:aaaa::2/128"],"ports":[{"port":22},{"port":22,"protocol":"udp"}]}],
				"proxy":{"type":"socks5","address":"` + net.JoinHostPort(proxy, "1080") + `","credentialRef":"login"}},
				"credentialBindings":[{"ref":"login","sourceRef":"src","projection":{"type":"username_password","usernamePassword":{}}}]}`),
			Credentials: []sealed.Credential{{Source: "src", Kind: policy.StaticUserPass, Version: 1, Blob: blob}},
		}))
		all := map[*attempt]func(outcome) bool{
			{Op: "hello", Network: "tcp", To: net.JoinHostPort(other6, "443"), Name: "good.example"}:       answers("internet"),
			{Op: "hello", Network: "tcp", To: net.JoinHostPort(far4, "443"), Name: "other.example"}:        denied,
			{Op: "bytes", Network: "tcp", To: net.JoinHostPort(far6, "22"), Data: []byte("SSH-2.0-x\r\n")}: answers("echo SSH"),
			datagram(far4, "22"): refused, datagram(far6, "22"): refused,
		}
		if proxy == other4 { // which takes what looking at it may take
			all[connect("tcp", other4, "22")], all[connect("tcp", other6, "22")] = denied, denied
		}
		b.wants(all)
		var got []string
		for len(asked) > 0 {
			got = append(got, <-asked)
		}
		slices.Sort(got)
		if want := []string{"someone canary " + net.JoinHostPort(far4, "443"), "someone canary " + net.JoinHostPort(far6, "22")}; !slices.Equal(got, want) {
			t.Errorf("the proxy was asked for %q", got)
		}
	}
	for _, p := range outside.packets() {
		if ip := p.dst.Addr().String(); p.dst.Port() != 1080 || ip != other4 && ip != other6 {
			t.Errorf("protocol %d got out to %s", p.protocol, p.dst)
		}
	}
}

// socks is a SOCKS5 proxy that wants a login, beyond.
func (w *web) socks(c net.Conn, asked chan string) {
	defer c.Close()
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	read(int(read(2)[1]))
	_, _ = c.Write([]byte{5, 2})
	user := string(read(int(read(2)[1])))
	pass := string(read(int(read(1)[0])))
	_, _ = c.Write([]byte{1, 0})
	size := 4
	if read(4)[3] == 4 {
		size = 16
	}
	ip := net.IP(read(size))
	port := read(2)
	to := net.JoinHostPort(ip.String(), strconv.Itoa(int(port[0])<<8|int(port[1])))
	asked <- user + " " + pass + " " + to
	var up net.Conn
	if in(w.beyond, func() (err error) { up, err = net.Dial("tcp", to); return err }) != nil {
		return
	}
	defer up.Close()
	_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, up)
}
