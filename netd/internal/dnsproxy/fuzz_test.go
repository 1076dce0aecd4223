package dnsproxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/share"
)

// wire takes what would leave and answers nothing.
type wire struct {
	net.Conn
	left func([]byte)
}

func (w wire) Write(b []byte) (int, error)    { w.left(b); return len(b), nil }
func (wire) Read([]byte) (int, error)         { return 0, errors.New("nobody answers") }
func (wire) Close() error                     { return nil }
func (wire) SetDeadline(time.Time) error      { return nil }
func (wire) SetReadDeadline(time.Time) error  { return nil }
func (wire) SetWriteDeadline(time.Time) error { return nil }

// answering is how a sandbox is answered.
type answering struct {
	dns.ResponseWriter
	got *dns.Msg
}

func (*answering) RemoteAddr() net.Addr        { return &net.UDPAddr{IP: net.IPv4(10, 77, 0, 2), Port: 4000} }
func (a *answering) WriteMsg(m *dns.Msg) error { a.got = m; return nil }
func (*answering) Close() error                { return nil }

// FuzzQuery asks with any packet: what leaves is a new question for a name that the
// policy opens, and nothing else of it.
func FuzzQuery(f *testing.F) {
	p := compiled(f, only)
	for _, name := range []string{"good.example.", "a.good.example.", "evil.example.", "good.example.evil.example.", "GOOD.example."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeHTTPS, dns.TypeANY, dns.TypeTXT} {
			m := new(dns.Msg)
			m.SetQuestion(name, kind)
			m.SetEdns0(4096, true)
			packed, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packed)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		query := new(dns.Msg)
		var h dns.Header
		if len(b) < 12 || query.Unpack(b) != nil {
			return
		}
		h.Bits, h.Qdcount, h.Ancount, h.Nscount, h.Arcount = uint16(b[2])<<8|uint16(b[3]), uint16(b[4])<<8|uint16(b[5]), uint16(b[6])<<8|uint16(b[7]), uint16(b[8])<<8|uint16(b[9]), uint16(b[10])<<8|uint16(b[11])
		if acceptQuery(h) != dns.MsgAccept || len(query.Question) != 1 {
			return
		}
		g := guest.Guest{ID: "s", Gen: 1, Policy: p}
		r, err := New(Config{
			Lookup: func(netip.Addr) (guest.Guest, bool) { return g, true }, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")},
			Memory: share.New[sandbox.ID](share.Config{Sure: 1 << 20, Most: 1 << 20}), Log: slog.New(slog.DiscardHandler), Observe: func(Event) {},
			Learn: func(guest.Guest, netip.Addr, uint64, time.Duration) { t.Error("something was learnt of no answer") },
			Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) {
				return wire{left: func(b []byte) { judgeWire(t, p, b) }}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		w := &answering{}
		r.handle(context.Background(), w, query)
		if w.got == nil || len(w.got.Answer) != 0 || w.got.Id != query.Id {
			t.Fatalf("answered %v", w.got)
		}
	})
}

// judgeWire reads what would leave, behind its length.
func judgeWire(t *testing.T, p *policy.Compiled, b []byte) {
	left := new(dns.Msg)
	if len(b) < 2 || left.Unpack(b[2:]) != nil || len(left.Question) != 1 || len(left.Answer)+len(left.Ns) != 0 || len(left.Extra) != 1 || left.Extra[0].Header().Rrtype != dns.TypeOPT {
		t.Fatalf("%q would leave", b)
	}
	name, err := policy.Name(left.Question[0].Name)
	if err != nil || !judge(p, name).Allow || !forwarded[left.Question[0].Qtype] {
		t.Fatalf("a question for %v would leave", left.Question[0])
	}
}
