package proxy

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

// E21: a connection that is still being made when it is cut is not made.
func TestE21_WhatIsBeingDialledIsCut(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	l := must(net.Listen("tcp", other4+":0")) // takes connections, and says nothing
	defer l.Close()
	b.policy(`{"mode":"block-all","egress":{"allowedDomains":["good.example"],"proxy":{"type":"socks5","address":"` + l.Addr().String() + `"}}}`)
	began := time.Now()
	conn := b.dial("443")
	if _, err := conn.Write(clientHello(t, "good.example")); err != nil {
		t.Fatal(err)
	}
	up := must(l.Accept())
	defer up.Close()
	b.w.Changed(b.policy(`{"mode":"block-all"}`))
	if _, err := io.Copy(io.Discard, up); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	const givesUp = 15 * time.Second // the dialler, by itself
	if took := time.Since(began); took > givesUp-time.Second {
		t.Errorf("it was cut after %v", took)
	}
	gone(t, conn)
}

// F12: what carries a client certificate ends when there is a newer one.
func TestF12_AnOpenTunnelEndsWithItsCertificate(t *testing.T) {
	t.Parallel()
	leaf := theWorld().signer.leaf("client-of-team")
	key := must(x509.MarshalECPrivateKey(leaf.PrivateKey.(*ecdsa.PrivateKey)))
	secret := sealed.Secret{
		CertificatePEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})),
		PrivateKeyPEM:  string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})),
	}
	const rules = `{"mode":"block-all","egress":{"allowedDomains":["good.example"],
		"credentialRules":[{"credentialRef":"c","protocol":"tls","tlsMode":"terminate-reoriginate","domains":["good.example"]}]},
		"credentialBindings":[{"ref":"c","sourceRef":"src","projection":{"type":"tls_client_certificate","tlsClientCertificate":{}}}]}`
	b := newBox(t, rules)
	b.secret("src", secret)
	open := func() net.Conn {
		conn := tls.Client(b.dial("443"), &tls.Config{ServerName: "good.example", RootCAs: b.trust(true)})
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn := open()
	g, _ := b.w.lookup(b.addr)
	if n := b.w.Changed(g); n != 0 {
		t.Errorf("%d were cut that carry the one in force", n)
	}
	b.secret("src", secret)
	if n := b.w.Changed(g); n != 1 {
		t.Errorf("%d were cut", n)
	}
	gone(t, conn)
	conn = open()
	if n := b.w.Changed(b.policy(strings.Replace(rules, `"sourceRef":"src"`, `"sourceRef":"other"`, 1))); n != 1 {
		t.Fatalf("%d were cut that present what was for others", n)
	}
	gone(t, conn)
}

// stream opens a stream through a box, which its policy may have looked into.
func (b *box) stream(own bool) net.Conn {
	b.t.Helper()
	conn := tls.Client(b.dial("443"), &tls.Config{ServerName: "api.good.example", RootCAs: b.trust(own)})
	io.WriteString(conn, "GET /stream HTTP/1.1\r\nHost: api.good.example\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		b.t.Fatalf("%q, %v", line, err)
	}
	return conn
}

// E21, F12: a policy with a proxy leaves nothing open beside it, and what logged in there
// with a credential ends with that.
func TestE21_F12_ConnectionsEndWithTheirEgressProxy(t *testing.T) {
	t.Parallel()
	l := must(net.Listen("tcp", other4+":0"))
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go socks(c, make(chan netip.AddrPort, 1))
		}
	}()
	for own, rules := range map[bool]string{false: ``, true: `"protocolRules":[{"protocol":"http","http":{"methods":{"denied":["PUT"]}}}],`} {
		const bindings = `"credentialBindings":[{"ref":"c","sourceRef":"src","projection":{"type":"username_password","usernamePassword":{}}}]`
		direct := `{"mode":"block-all","egress":{` + rules + `"allowedDomains":["*.good.example"]},` + bindings + `}`
		over := strings.Replace(direct, `"egress":{`, `"egress":{"proxy":{"type":"socks5","address":"`+l.Addr().String()+`","credentialRef":"c"},`, 1)
		b := newBox(t, direct)
		b.secret("src", sealed.Secret{Values: map[string]string{"username": "u", "password": "p"}})
		conn := b.stream(own)
		g := b.policy(over)
		if n := b.w.Changed(g); n != 1 {
			t.Fatalf("%d were cut that go beside the proxy", n)
		}
		gone(t, conn)
		conn = b.stream(own)
		if n := b.w.Changed(b.policy(over)); n != 0 {
			t.Errorf("%d were cut that go over it", n)
		}
		b.secret("src", sealed.Secret{Values: map[string]string{"username": "u", "password": "q"}})
		if n := b.w.Changed(g); n != 1 {
			t.Fatalf("%d were cut that have an older credential", n)
		}
		gone(t, conn)
	}
}

// E21: what another netd has handed over ends where the policy has it leave in another way.
func TestE21_WhatIsHandedOverLeavesAsThePolicySays(t *testing.T) {
	t.Parallel()
	const over = `{"mode":"block-all","egress":{"allowedDomains":["good.example"],"proxy":{"type":"socks5","address":"` + other4 + `:1080"}}}`
	for name, c := range map[string]struct {
		policy string
		out    wayOut
		lives  bool
	}{
		"directly, as before":    {onlyGood, wayOut{}, true},
		"beside the proxy":       {over, wayOut{}, false},
		"over the proxy":         {over, wayOut{Proxy: policy.Proxy{Type: "socks5", Address: other4 + ":1080"}}, true},
		"over a proxy of before": {onlyGood, wayOut{Proxy: policy.Proxy{Type: "socks5", Address: other4 + ":1080"}}, false},
	} {
		b := newBox(t, c.policy)
		sandbox, client := b.connected(claimed4)
		upstream, server := b.connected(good4)
		state := must(json.Marshal(handover{
			Seen:    sighting{To: policy.Flow{Name: "good.example", Port: 443, App: policy.TLS}, TLS: true},
			Dialled: netip.MustParseAddr(good4), Out: c.out,
		}))
		go b.w.Resume(t.Context(), Handover{Sandbox: b.id, Generation: 1, State: state, Client: client, Upstream: upstream})
		fmt.Fprint(server, "hello")
		if n, _ := io.ReadFull(sandbox, make([]byte, 5)); n == 5 != c.lives {
			t.Errorf("%s: %d bytes have come", name, n)
		}
	}
}

// connected is a connection from the sandbox's address to another, both its ends.
func (b *box) connected(to string) (dialled, accepted *net.TCPConn) {
	b.t.Helper()
	l := must(net.Listen("tcp", to+":0"))
	defer l.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: b.addr.AsSlice()}, Timeout: deadline}
	ours := must(d.DialContext(b.t.Context(), "tcp", l.Addr().String()))
	theirs := must(l.Accept())
	b.t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours.(*net.TCPConn), theirs.(*net.TCPConn)
}

// R2: the end of a generation that is told late takes nothing of the next along.
func TestR2_ALateEndIsNotTheNextGenerations(t *testing.T) {
	t.Parallel()
	b := newBox(t, notOther)
	old, _ := b.w.lookup(b.addr)
	next := old
	next.Gen = 2
	b.w.mu.Lock()
	b.w.guests[b.addr], b.w.guests[b.six] = next, next
	b.w.mu.Unlock()
	conn := tls.Client(b.dial("443"), &tls.Config{ServerName: "good.example", RootCAs: b.trust(false)})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	before := must(b.w.CA(b.id))
	b.w.Gone(old, false)
	fmt.Fprint(conn, "GET /late HTTP/1.1\r\nHost: good.example\r\n\r\n")
	if n, err := conn.Read(make([]byte, 12)); n == 0 {
		t.Errorf("the next one's connection: %v", err)
	}
	if string(must(b.w.CA(b.id))) != string(before) {
		t.Error("the next one's authority is gone")
	}
	conn.Close()
	b.w.Prune(func(id sandbox.ID) bool { return id != b.id })
	b.w.Proxy.mu.Lock()
	defer b.w.Proxy.mu.Unlock()
	if b.w.authorities[b.id] != nil {
		t.Error("who is not known has an authority")
	}
}

// D08: who has more looked into than he may keep waits, and nobody else does.
func TestD08_WhatIsLookedIntoIsBounded(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"allow-all","egress":{"protocolRules":[{"name":"tools","protocol":"mcp","domains":["good.example"],"mcp":{"tools":{"allowed":["read"]}}}]}}`)
	c := b.client(true, false)
	post := func(size int) int {
		t.Helper()
		body := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read","arguments":"` + strings.Repeat("x", size) + `"}}`
		status, text, _ := get(t, c, "https://good.example/d08-bodies", func(r *http.Request) {
			r.Method, r.Body, r.ContentLength = "POST", io.NopCloser(strings.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Type", "application/json")
		})
		if status == 0 {
			t.Log(text)
		}
		return status
	}
	if status := post(500 << 10); status != 200 {
		t.Fatalf("at first: %d", status)
	}
	for b.w.memory.Used(b.id) > 100<<10 { // the answers of the resolver stay
		pause(t.Context(), 1e6)
	}
	full := memory.Most - b.w.memory.Used(b.id)
	if !b.w.memory.Take(b.id, full) {
		t.Fatal("there is no room")
	}
	if status := post(500 << 10); status != http.StatusTooManyRequests {
		t.Errorf("without room: %d", status)
	}
	long := b.dial("443")
	io.WriteString(long, "\x16\x03\x01\x40\x00\x01\x00\x40\x00"+strings.Repeat("x", 8<<10))
	gone(t, long)
	other := newBox(t, onlyGood)
	if status, body, _ := get(t, other.client(false, false), "https://good.example/d08-other"); status != 200 {
		t.Errorf("a neighbour: %d %s", status, body)
	}
	b.w.memory.Give(b.id, full)
	if status := post(500 << 10); status != 200 {
		t.Errorf("with room again: %d", status)
	}
}

// What is answered before all of it was sent is answered to a client, too, that sends all of
// it before it reads: a large body that a server has no room for, or that a rule refuses.
func TestAnEarlyAnswerIsNotLost(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","domains":["good.example"],"http":{"paths":{"deniedPrefixes":["/admin"]}}}]}}`)
	for path, want := range map[string]int{"/full": http.StatusRequestEntityTooLarge, "/admin": http.StatusForbidden} {
		for _, secure := range []bool{false, true} {
			c := b.dial(map[bool]string{false: "80", true: "443"}[secure])
			if secure {
				c = tls.Client(c, &tls.Config{ServerName: "good.example", RootCAs: b.trust(true)})
			}
			const size = 10 << 20
			fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: good.example\r\nContent-Length: %d\r\n\r\n", path, size)
			_, err := c.Write(make([]byte, size))
			resp, readErr := http.ReadResponse(bufio.NewReader(c), nil)
			if err := errors.Join(err, readErr); err != nil {
				t.Errorf("%s, TLS %v: %v", path, secure, err)
			} else if resp.StatusCode != want {
				t.Errorf("%s, TLS %v: %s", path, secure, resp.Status)
			}
		}
	}
}
