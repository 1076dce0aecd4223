package dnsproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/share"
)

// upstream is a resolver that answers from zone lines and counts what it is asked.
type upstream struct {
	at netip.AddrPort

	mu    sync.Mutex
	zone  map[string][]string // "name type" -> records
	asked []string
	twist func(*dns.Msg) *dns.Msg // what a liar does to an answer; nil: nothing
	raw   []*dns.Msg
}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	u := &upstream{zone: map[string][]string{}}
	pc, l := bothOn(t)
	u.at = netip.MustParseAddrPort(pc.LocalAddr().String())
	for _, s := range []*dns.Server{{PacketConn: pc}, {Listener: l}} {
		started := make(chan struct{})
		s.Handler, s.NotifyStartedFunc = u, sync.OnceFunc(func() { close(started) })
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return u
}

// bothOn listens on a port that is free for both.
func bothOn(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if l, err := net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			return pc, l
		}
		pc.Close()
	}
	t.Fatal("no port is free for both")
	return nil, nil
}

func (u *upstream) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := q.Question[0].Name + " " + dns.TypeToString[q.Question[0].Qtype]
	u.asked = append(u.asked, key)
	u.raw = append(u.raw, q.Copy())
	reply := new(dns.Msg)
	reply.SetReply(q)
	lines, known := u.zone[key]
	if !known {
		reply.Rcode = dns.RcodeNameError
	}
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			panic(err)
		}
		reply.Answer = append(reply.Answer, rr)
	}
	if u.twist != nil {
		if reply = u.twist(reply); reply == nil {
			return
		}
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		reply.Truncate(udpSize)
	}
	w.WriteMsg(reply)
}

func (u *upstream) set(key string, lines ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.zone[key] = lines
}

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.asked)
}

// bench is a resolver with its upstream, a server and what it told.
type bench struct {
	*Resolver
	up   *upstream
	udp  string
	tcp  string
	mu   sync.Mutex
	own  guest.Guest
	told []string // what the data plane learnt
	seen []Event
}

// told is what the data plane learns of an address.
func told(g guest.Guest, addr netip.Addr, slots uint64) string {
	return fmt.Sprintf("%s %s %b of %x", g.ID, addr, slots, g.Policy.Naming())
}

func dialAny(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, to.String())
}

func compiled(t testing.TB, json string) *policy.Compiled {
	t.Helper()
	p, err := policy.Parse([]byte(json))
	if err != nil {
		t.Fatal(err)
	}
	c, err := policy.Compile(p, policy.Fixed{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newBench(t *testing.T, json string, before ...netip.AddrPort) *bench {
	t.Helper()
	b := &bench{up: newUpstream(t), own: guest.Guest{ID: "s-1", Gen: 1, Policy: compiled(t, json)}}
	r, err := New(Config{
		Lookup: func(a netip.Addr) (guest.Guest, bool) {
			g := b.guest()
			return g, g.Policy != nil && a == netip.MustParseAddr("127.0.0.1")
		},
		Upstreams: append(before, b.up.at), Dial: dialAny, Log: slog.New(slog.DiscardHandler),
		Learn: func(g guest.Guest, addr netip.Addr, slots uint64, _ time.Duration) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.told = append(b.told, told(g, addr, slots))
		},
		Memory:  share.New[sandbox.ID](share.Config{Sure: 8 << 20, Most: 8 << 20}),
		Observe: func(e Event) { b.mu.Lock(); defer b.mu.Unlock(); b.seen = append(b.seen, e) },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Resolver = r
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.udp, b.tcp = pc.LocalAddr().String(), l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, pc, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) guest() guest.Guest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.own
}

func (b *bench) become(g guest.Guest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own = g
}

func (b *bench) learnt() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.told)
}

func (b *bench) ask(t *testing.T, network, name string, kind uint16) *dns.Msg {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, kind)
	at := b.udp
	if network == "tcp" {
		at = b.tcp
	}
	reply, _, err := (&dns.Client{Net: network, Timeout: 30 * time.Second}).Exchange(q, at)
	if err != nil {
		t.Fatalf("%s %s: %v", name, dns.TypeToString[kind], err)
	}
	return reply
}

func texts(m *dns.Msg) (all []string) {
	for _, addr := range addresses(m.Answer) {
		all = append(all, addr.String())
	}
	return all
}

const only = `{"mode":"block-all","egress":{"trafficRules":[{"name":"ok","action":"allow","domains":["*.good.example"]}]}}`

func TestE12_ADeniedNameLeavesNoPacket(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	b.up.set("a.good.example. A", "a.good.example. 60 A 8.8.8.8")
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"secret-data.evil.example.", "good.example.evil.", "xgood.example.", "localhost.", "metadata.google.internal.", "1.2.3.4."} {
			if m := b.ask(t, network, name, dns.TypeTXT); m.Rcode == dns.RcodeSuccess || len(m.Answer) > 0 {
				t.Errorf("%s over %s: %v", name, network, m)
			}
		}
	}
	if n := b.up.count(); n != 0 {
		t.Fatalf("upstream was asked %q", b.up.asked)
	}
	if m := b.ask(t, "udp", "A.Good.Example.", dns.TypeA); !slices.Equal(texts(m), []string{"8.8.8.8"}) {
		t.Errorf("what is allowed: %v", m)
	}
	if m := b.ask(t, "tcp", "a.good.example.", dns.TypeA); !slices.Equal(texts(m), []string{"8.8.8.8"}) || b.up.count() != 1 {
		t.Errorf("again, over TCP: %v, upstream asked %d times", m, b.up.count())
	}
}

// Whoever has no policy yet need not wait to hear that there is nothing for him.
func TestAFreeSlotIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	b.become(guest.Guest{ID: "s-1", Gen: 1})
	for _, network := range []string{"udp", "tcp"} {
		if m := b.ask(t, network, "www.good.example.", dns.TypeA); m.Rcode != dns.RcodeRefused || len(m.Answer) != 0 {
			t.Errorf("%s: %v", network, m)
		}
	}
	if b.up.count() != 0 {
		t.Error("a query left")
	}
	b.become(guest.Guest{}) // of whom nobody was told: perhaps soon
	q := new(dns.Msg)
	q.SetQuestion("www.good.example.", dns.TypeA)
	if m, _, err := (&dns.Client{Timeout: 200 * time.Millisecond}).Exchange(q, b.udp); err == nil {
		t.Errorf("an unknown one was answered %v", m)
	}
}

func TestE12_NothingElseOfAQueryLeaves(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	q := new(dns.Msg)
	q.SetQuestion("A.gOOd.example.", dns.TypeA)
	q.SetEdns0(4096, true)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("stolen")})
	q.CheckingDisabled = true
	if _, _, err := (&dns.Client{Timeout: 30 * time.Second}).Exchange(q, b.udp); err != nil {
		t.Fatal(err)
	}
	b.up.mu.Lock()
	defer b.up.mu.Unlock()
	got := b.up.raw[0]
	if got.Question[0].Name != "a.good.example." || got.CheckingDisabled || len(got.IsEdns0().Option) > 0 || got.IsEdns0().Do() {
		t.Errorf("upstream got %v", got)
	}
}

func TestE11_AddressesThatANameMayNotHave(t *testing.T) {
	t.Parallel()
	b := newBench(t, `{"mode":"allow-all"}`)
	b.up.set("mix.example. A", "mix.example. 0 A 10.0.0.1", "mix.example. 0 A 8.8.4.4", "mix.example. 0 A 169.254.169.254", "mix.example. 0 A 127.0.0.1")
	b.up.set("mix.example. AAAA", "mix.example. 0 AAAA fd00:ec2::254", "mix.example. 0 AAAA ::1", "mix.example. 0 AAAA 2606:4700::1", "mix.example. 0 AAAA ::ffff:10.0.0.1", "mix.example. 0 AAAA 64:ff9b::a9fe:a9fe")
	m := b.ask(t, "udp", "mix.example.", dns.TypeA)
	if !slices.Equal(texts(m), []string{"8.8.4.4"}) || m.Answer[0].Header().Ttl == 0 {
		t.Errorf("A: %v", m)
	}
	if m := b.ask(t, "udp", "mix.example.", dns.TypeAAAA); !slices.Equal(texts(m), []string{"2606:4700::1"}) {
		t.Errorf("AAAA: %v", m)
	}
	addrs, err := b.Addrs(t.Context(), b.guest(), "mix.example")
	if err != nil || len(addrs) != 2 || addrs[0].String() != "8.8.4.4" {
		t.Errorf("to dial: %v, %v", addrs, err)
	}
	b.up.set("bad.example. A", "bad.example. 60 A 192.168.1.1")
	b.up.set("bad.example. AAAA")
	if _, err := b.Addrs(t.Context(), b.guest(), "bad.example"); err == nil {
		t.Error("a private address is dialled")
	}
	b.become(guest.Guest{ID: "s-1", Gen: 2, Policy: compiled(t, `{"mode":"allow-all","egress":{"trafficRules":[{"action":"allow","cidrs":["192.168.1.0/24"]}]}}`)})
	if m := b.ask(t, "udp", "bad.example.", dns.TypeA); !slices.Equal(texts(m), []string{"192.168.1.1"}) {
		t.Errorf("a private address that a rule names: %v", m)
	}
}

func TestE08_NoKeysAndNoHintsOfQUIC(t *testing.T) {
	t.Parallel()
	b := newBench(t, `{"mode":"allow-all"}`)
	for _, kind := range []uint16{dns.TypeHTTPS, dns.TypeSVCB, dns.TypeANY} {
		if m := b.ask(t, "udp", "a.example.", kind); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 {
			t.Errorf("%s: %v", dns.TypeToString[kind], m)
		}
	}
	if n := b.up.count(); n != 0 {
		t.Errorf("upstream was asked %d times", n)
	}
}

func TestAliasesAreLearntUnderTheAskedName(t *testing.T) {
	t.Parallel()
	b := newBench(t, `{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","domains":["www.good.example"],"ports":[{"port":5000,"protocol":"udp"}]},{"action":"allow","domains":["www.good.example"]}]}}`)
	b.up.set("www.good.example. A",
		"cdn.example. 10 A 9.9.9.9", "www.good.example. 300 CNAME x.cdn.example.", "x.cdn.example. 300 CNAME cdn.example.",
		"other.example. 300 A 6.6.6.6")
	m := b.ask(t, "udp", "www.good.example.", dns.TypeA)
	if !slices.Equal(texts(m), []string{"9.9.9.9"}) || len(m.Answer) != 3 {
		t.Errorf("%v", m)
	}
	if names := b.Names(b.guest(), netip.MustParseAddr("9.9.9.9")); !slices.Equal(names, []string{"www.good.example"}) {
		t.Errorf("the address stands for %q", names)
	}
	if names := b.Names(b.guest(), netip.MustParseAddr("6.6.6.6")); names != nil {
		t.Errorf("an answer to another question was learnt: %q", names)
	}
	if told := b.learnt(); len(told) != 1 || !strings.HasPrefix(told[0], "s-1 9.9.9.9") {
		t.Errorf("the data plane was told %q", told)
	}
	b.Refresh(b.guest())
	if told := b.learnt(); len(told) != 2 || told[0] != told[1] {
		t.Errorf("told again: %q", told)
	}
}

// A policy that comes while a name is looked up learns its addresses, too: what is answered
// is kept, and would not be looked up again for as long as it holds.
func TestAPolicyThatComesWithAnAnswer(t *testing.T) {
	t.Parallel()
	const rule = `{"action":"allow","domains":[%q],"ports":[{"port":5000,"protocol":"udp"}]}`
	policies := func(names ...string) string {
		rules := make([]string, 0, len(names))
		for _, name := range names {
			rules = append(rules, fmt.Sprintf(rule, name))
		}
		return `{"mode":"block-all","egress":{"trafficRules":[` + strings.Join(rules, ",") + `]}}`
	}
	b := newBench(t, policies("www.good.example"))
	b.up.set("www.good.example. A", "www.good.example. 300 A 9.9.9.9")
	before := b.guest()
	next := before
	next.Policy = compiled(t, policies("other.example", "www.good.example"))
	b.up.mu.Lock()
	b.up.twist = func(m *dns.Msg) *dns.Msg {
		b.become(next)
		b.Refresh(next)
		return m
	}
	b.up.mu.Unlock()
	b.ask(t, "udp", "www.good.example.", dns.TypeA)
	addr := netip.MustParseAddr("9.9.9.9")
	want := []string{told(before, addr, 1), told(next, addr, 1)}
	if all := b.learnt(); !slices.Equal(all, want) {
		t.Errorf("the data plane was told %q, want %q", all, want)
	}
}

func TestX32_LyingUpstreams(t *testing.T) {
	t.Parallel()
	for name, twist := range map[string]func(*dns.Msg) *dns.Msg{
		"another name":       func(m *dns.Msg) *dns.Msg { m.Question[0].Name = "evil.example."; return m },
		"another type":       func(m *dns.Msg) *dns.Msg { m.Question[0].Qtype = dns.TypeTXT; return m },
		"a failure":          func(m *dns.Msg) *dns.Msg { m.Rcode = dns.RcodeServerFailure; return m },
		"no question":        func(m *dns.Msg) *dns.Msg { m.Question = nil; return m },
		"a query, no answer": func(m *dns.Msg) *dns.Msg { m.Response = false; return m },
		"an endless alias": func(m *dns.Msg) *dns.Msg {
			loop, _ := dns.NewRR("a.good.example. 60 CNAME a.good.example.")
			m.Answer, m.Rcode = []dns.RR{loop}, dns.RcodeSuccess
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, only)
			b.up.set("a.good.example. A", "a.good.example. 60 A 8.8.8.8")
			b.up.mu.Lock()
			b.up.twist = twist
			b.up.mu.Unlock()
			if m := b.ask(t, "udp", "a.good.example.", dns.TypeA); len(m.Answer) > 0 {
				t.Errorf("%v", m)
			}
		})
	}
}

func TestX32_ASecondUpstreamAnswersForTheFirst(t *testing.T) {
	t.Parallel()
	down := netip.MustParseAddrPort("127.0.0.99:9") // an address that no test listens on
	b := newBench(t, only, down)
	b.up.set("a.good.example. A", "a.good.example. 60 A 8.8.8.8")
	if m := b.ask(t, "udp", "a.good.example.", dns.TypeA); !slices.Equal(texts(m), []string{"8.8.8.8"}) {
		t.Errorf("%v", m)
	}
	lost := &Resolver{config: b.config, guests: map[sandbox.ID]*state{}}
	lost.config.Upstreams = []netip.AddrPort{down}
	if a := lost.answer(t.Context(), b.guest(), dns.Question{Name: "b.good.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}); a.rcode != dns.RcodeServerFailure {
		t.Errorf("all down: %v", a)
	}
}

func TestX32_NoSandboxPlantsAnAnswerForAnother(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	b.up.set("a.good.example. A", "a.good.example. 60 A 6.6.6.6")
	b.ask(t, "udp", "a.good.example.", dns.TypeA)
	b.up.set("a.good.example. A", "a.good.example. 60 A 8.8.8.8")
	other := b.guest()
	other.ID = "s-2"
	b.become(other)
	if m := b.ask(t, "udp", "a.good.example.", dns.TypeA); !slices.Equal(texts(m), []string{"8.8.8.8"}) {
		t.Errorf("%v", m)
	}
}

func TestALargeAnswerComesOverTCP(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	var lines []string
	for i := range 60 {
		lines = append(lines, fmt.Sprintf("big.good.example. 60 TXT \"%d %s\"", i, strings.Repeat("x", 100)))
	}
	b.up.set("big.good.example. TXT", lines...)
	if m := b.ask(t, "udp", "big.good.example.", dns.TypeTXT); !m.Truncated {
		t.Errorf("over UDP: %d records, not truncated", len(m.Answer))
	}
	if m := b.ask(t, "tcp", "big.good.example.", dns.TypeTXT); len(m.Answer) != 60 || b.up.count() != 2 {
		t.Errorf("over TCP: %d records, %d queries upstream", len(m.Answer), b.up.count())
	}
}

func TestD11_QueriesAreLimited(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	limit := b.state(b.guest()).limit
	limit.SetLimit(0) // nothing comes back while the test looks
	for range queryBurst {
		limit.Allow()
	}
	if m := b.ask(t, "udp", "a.good.example.", dns.TypeA); m.Rcode != dns.RcodeRefused || b.up.count() != 0 {
		t.Errorf("beyond the limit: %v", m)
	}
	other := b.guest()
	other.ID = "s-2"
	b.become(other)
	if m := b.ask(t, "udp", "a.good.example.", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("a neighbour: %v", m)
	}
}

func TestD11_WhatIsKeptIsBounded(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	s := b.state(b.guest())
	later := time.Now().Add(time.Hour)
	for i := range maxLearnt + 500 {
		s.keep(question{fmt.Sprint(i), 1}, answer{until: later.Add(time.Duration(i))})
		s.stand(netip.AddrFrom4([4]byte{9, 9, byte(i >> 8), byte(i)}), "x", later.Add(time.Duration(i)))
		s.stand(netip.MustParseAddr("8.8.8.8"), fmt.Sprint(i), later.Add(time.Duration(i)))
	}
	if len(s.answers) > maxAnswers || len(s.learnt) > maxLearnt || len(s.learnt[netip.MustParseAddr("8.8.8.8")]) > maxNames {
		t.Errorf("%d answers, %d addresses, %d names", len(s.answers), len(s.learnt), len(s.learnt[netip.MustParseAddr("8.8.8.8")]))
	}
	if _, ok := s.kept(question{fmt.Sprint(maxLearnt + 499), 1}); !ok {
		t.Error("the newest answer is gone")
	}
}

// D11: what is kept is of the sandbox's memory, and comes back.
func TestD11_WhatIsKeptTakesMemory(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	b.config.Memory = share.New[sandbox.ID](share.Config{Sure: 3000, Most: 3000})
	s := b.state(b.guest())
	later := time.Now().Add(time.Hour)
	long := strings.Repeat("x", 1000)
	for i := range 20 {
		s.keep(question{fmt.Sprint(i, long), 1}, answer{until: later})
	}
	if n := len(s.answers); n != 2 || b.config.Memory.Used("s-1") != s.bytes {
		t.Errorf("%d answers are kept in %d bytes, %d counted", n, s.bytes, b.config.Memory.Used("s-1"))
	}
	for i := range 20 {
		s.stand(netip.AddrFrom4([4]byte{9, 9, 9, byte(i)}), fmt.Sprint(i), later)
	}
	if n := len(s.learnt); n == 0 || n > 5 {
		t.Errorf("%d addresses are kept in %d bytes", n, s.bytes)
	}
	s.keep(question{fmt.Sprint(0, long), 1}, answer{until: later.Add(time.Hour)})
	if a, ok := s.kept(question{fmt.Sprint(0, long), 1}); !ok || !a.until.After(later) {
		t.Error("a newer answer has no room in the place of the old one")
	}
	b.Prune(func(sandbox.ID) bool { return false })
	if n := b.config.Memory.Used("s-1"); n != 0 {
		t.Errorf("%d bytes are left of who is gone", n)
	}
	s.keep(question{"late", 1}, answer{until: later})
	if n := b.config.Memory.Used("s-1"); n != 0 {
		t.Errorf("%d bytes are kept for who is gone", n)
	}
}

func TestE23_AGenerationBeginsWithNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, only)
	b.up.set("a.good.example. A", "a.good.example. 60 A 8.8.8.8")
	b.ask(t, "udp", "a.good.example.", dns.TypeA)
	next := b.guest()
	next.Gen = 2
	if names := b.Names(next, netip.MustParseAddr("8.8.8.8")); names != nil {
		t.Errorf("inherited: %q", names)
	}
	b.Forget("s-1", 1)
	if len(b.guests) == 0 {
		t.Error("an older generation's end took the next along")
	}
	b.Forget("s-1", 2)
	if len(b.guests) != 0 {
		t.Error("a sandbox that is gone is remembered")
	}
}

func TestUpstreamsOfAFile(t *testing.T) {
	t.Parallel()
	if _, err := Upstreams(t.TempDir() + "/none"); err == nil {
		t.Error("no file, no error")
	}
	if all, err := Upstreams("testdata/resolv.conf"); err != nil || fmt.Sprint(all) != "[8.8.8.8:53 [2606:4700::1111]:53]" {
		t.Errorf("%v, %v", all, err)
	}
}

func FuzzAccept(f *testing.F) {
	zone := new(dns.Msg)
	zone.SetQuestion("a.good.example.", dns.TypeA)
	for _, s := range []string{"a.good.example. 60 A 8.8.8.8", "a.good.example. 60 CNAME b.example.", "b.example. 1 A 10.0.0.1", "b.example. 0 AAAA ::1"} {
		rr, err := dns.NewRR(s)
		if err != nil {
			f.Fatal(err)
		}
		zone.Answer = append(zone.Answer, rr)
	}
	packed, err := zone.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	p := compiled(f, only)
	r := &Resolver{config: Config{Memory: share.New[sandbox.ID](share.Config{Sure: 8 << 20, Most: 8 << 20}), Learn: func(_ guest.Guest, a netip.Addr, _ uint64, _ time.Duration) {
		if !p.Reachable(a) {
			panic("learnt " + a.String())
		}
	}}, guests: map[sandbox.ID]*state{}}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		g := guest.Guest{ID: "s", Policy: p}
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT} {
			a := r.accept(g, r.state(g), question{"a.good.example", kind}, m)
			if left := time.Until(a.until); left > maxTTL || left < minTTL-time.Second || len(a.records) > maxRecords {
				t.Fatalf("%d records for %v", len(a.records), left)
			}
			for _, addr := range addresses(a.records) {
				if !p.Reachable(addr) {
					t.Fatalf("answered %v", addr)
				}
			}
		}
	})
}
