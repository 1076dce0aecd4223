package netd_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"s0.run/internal/netdapi"
)

// named has the resolver answer for a name.
func (w *web) named(name string, answers ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.names == nil {
		w.names = map[string][]string{}
	}
	w.names[name+"."] = answers
}

// Each request of a connection is for its server, however it is spoken, and one that is
// for another in a connection that nobody opens carries nothing: from a real sandbox.
func TestE05_E07_FromGVisor(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWeb(t)
	b := w.sandbox()
	w.carries(b, "canary", 1)
	ca, err := w.client.CA(t.Context(), b.slot.ID)
	w.must(err)
	all := map[*attempt]func(outcome) bool{}
	var want []string
	for _, ip := range []string{other4, other6} {
		to := net.JoinHostPort(ip, "443")
		for _, proto := range []int{1, 2} {
			all[&attempt{Op: "twice", To: to, URL: "https://good.example/api/x", Name: "other.example", Roots: ca.PEM, Proto: proto}] = answers(fmt.Sprintf("HTTP/%d 200 421 over 1", proto)) // E05
			all[&attempt{Op: "twice", To: to, URL: "https://good.example/api/x", Name: "GOOD.example:443", Roots: ca.PEM, Proto: proto}] = answers(fmt.Sprintf("HTTP/%d 200 200 over 1", proto))
			all[&attempt{Op: "twice", To: to, URL: "https://other.example/api/x", Name: "good.example", Roots: w.bundle, Proto: proto}] = answers(fmt.Sprintf("HTTP/%d 200 200 over 1", proto)) // E07
			want = append(want, "", "", "Bearer canary", "Bearer canary", "Bearer canary")
		}
	}
	b.wants(all)
	slices.Sort(want)
	if got := w.tokens(); !slices.Equal(got, want) {
		t.Errorf("servers got %q, want %q", got, want)
	}
}

// No name leads a real sandbox to an address that it may not have, whatever is answered
// beside it.
func TestE11_FromGVisor(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWeb(t)
	b := w.sandbox()
	b.policy(`{"mode":"block-all","egress":{"allowedDomains":["*.example"]}}`)
	w.named("rebound.example", "0 A 10.9.0.1", "0 AAAA fd12::1")
	w.named("metadata.example", "0 A 169.254.169.254", "0 AAAA fd00:ec2::254")
	w.named("host.example", "0 A "+host4, "0 AAAA "+host6)
	w.named("inside.example", "0 A 127.0.0.1", "0 AAAA ::1")
	w.named("mapped.example", "0 A 0.0.0.0", "0 AAAA ::ffff:10.9.0.1", "0 AAAA 64:ff9b::a09:1", "0 AAAA 2002:a09:1::1")
	w.named("alias.example", "0 CNAME private.example.", "private.example. 0 A 10.9.0.1", "private.example. 0 AAAA fd12::1")
	w.named("mixed.example", "0 A 10.9.0.1", "0 A "+far4, "0 AAAA fd12::1", "0 AAAA "+far6)
	outside := w.sink(w.beyond, "eth")
	all := map[*attempt]func(outcome) bool{}
	for _, name := range []string{"rebound", "metadata", "host", "inside", "mapped", "alias"} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			all[&attempt{Op: "ask", Network: "udp", To: "8.8.8.8:53", Name: name + ".example", Proto: int(kind)}] = func(o outcome) bool {
				return o.Err == "" && !strings.Contains(o.Out, " A ") && !strings.Contains(o.Out, " AAAA ")
			}
		}
		for _, ip := range []string{far4, far6} {
			all[&attempt{Op: "hello", Network: "tcp", To: net.JoinHostPort(ip, "443"), Name: name + ".example"}] = denied
		}
	}
	for kind, far := range map[uint16]string{dns.TypeA: far4, dns.TypeAAAA: far6} {
		all[&attempt{Op: "ask", Network: "tcp", To: "8.8.8.8:53", Name: "mixed.example", Proto: int(kind)}] = func(o outcome) bool {
			return strings.Contains(o.Out, far) && !strings.Contains(o.Out, "10.9.0.1") && !strings.Contains(o.Out, "fd12::1")
		}
		all[&attempt{Op: "hello", Network: "tcp", To: net.JoinHostPort(far, "443"), Name: "mixed.example"}] = answers("internet")
	}
	b.wants(all)
	b.wants(map[*attempt]func(outcome) bool{ // now that names were answered
		connect("tcp", "10.9.0.1", "443"): denied, connect("tcp", "fd12::1", "443"): denied, connect("tcp", "169.254.169.254", "443"): denied,
	})
	onlyFar(t, outside, 443)
}

// What a sandbox does at a host that others use, too, is bounded by method and path, or by
// tools of MCP, and told with its size; what it asked for is told by nobody.
func TestE24_F06_FromGVisor(t *testing.T) {
	t.Parallel() // it mostly waits, in a world of its own
	w := newWeb(t)
	b := w.sandbox()
	b.policy(`{"mode":"block-all","egress":{"allowedDomains":["good.example","other.example"],"protocolRules":[
		{"name":"tools","protocol":"mcp","domains":["other.example"],"mcp":{"tools":{"allowed":["read"]}}},
		{"name":"own","protocol":"http","tlsMode":"terminate-reoriginate","domains":["good.example"],"http":{"methods":{"allowed":["GET"]},"paths":{"allowedPrefixes":["/api/own"]}}}]}}`)
	ca, err := w.client.CA(t.Context(), b.slot.ID)
	w.must(err)
	all := map[*attempt]func(outcome) bool{}
	forbidden := func(o outcome) bool { return o.Status == http.StatusForbidden }
	for _, ip := range []string{far4, far6} {
		get := func(method, path string) *attempt {
			return &attempt{Op: "get", Method: method, URL: "https://good.example" + path, To: net.JoinHostPort(ip, "443"), Roots: ca.PEM, Data: []byte("canary in a body")}
		}
		all[get("GET", "/api/own/x?key=canary-in-a-query")] = status(http.StatusOK)
		all[get("PUT", "/api/own/x?key=canary-in-a-query")] = forbidden
		all[get("GET", "/api/others?key=canary-in-a-query")] = forbidden
		all[get("GET", "/api/own/../others")] = func(o outcome) bool { return o.Status >= 400 }
		all[get("GET", "/api/own/%2e%2e/others")] = func(o outcome) bool { return o.Status >= 400 }
		tool := func(name string) *attempt {
			return &attempt{
				Op: "get", Method: "POST", URL: "https://other.example/mcp", To: net.JoinHostPort(ip, "443"), Roots: ca.PEM, Header: http.Header{"Content-Type": {"application/json"}},
				Data: []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + name + `"}}`),
			}
		}
		all[tool("read")] = answers("other.example from ")
		all[tool("write")] = func(o outcome) bool { return strings.Contains(o.Out, `"error"`) && !strings.Contains(o.Out, " from ") }
	}
	b.wants(all)
	if got := w.tokens(); len(got) != 4 {
		t.Errorf("servers got %d requests, want 4", len(got))
	}
	told := 0
	w.tells("a request with its size", func(e netdapi.Event) bool {
		text, err := json.Marshal(e)
		w.must(err)
		if strings.Contains(string(text), "canary") {
			t.Errorf("told %s", text)
		}
		if e.Host == "good.example" && e.Action == "allow" && e.EgressBytes > 0 && e.IngressBytes > 0 {
			told++
		}
		return told >= 2
	})
}
