package dnsproxy

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/netd/internal/guest"
)

// errBusy is what queries beyond a sandbox's share end in.
var errBusy = errdefs.New(errdefs.Exhausted, "the sandbox asks for more names than it may at once")

// forwarded are the types that are asked upstream. Others have no use in a sandbox
// or would carry more than a name's data (ANY, transfers, HTTPS, SVCB); the answer
// to those is that there is nothing.
var forwarded = map[uint16]bool{
	dns.TypeA: true, dns.TypeAAAA: true, dns.TypeCNAME: true, dns.TypeMX: true, dns.TypeTXT: true,
	dns.TypeSRV: true, dns.TypeNS: true, dns.TypeSOA: true, dns.TypePTR: true, dns.TypeCAA: true,
}

// Addrs looks the addresses of a canonical name up for a connection that the proxy
// makes, IPv4 first. The caller has judged the name; the addresses are those that
// its policy lets it reach.
func (r *Resolver) Addrs(ctx context.Context, g guest.Guest, name string) ([]netip.Addr, error) {
	type result struct {
		addrs []netip.Addr
		err   error
	}
	lookup := func(kind uint16) chan result {
		out := make(chan result, 1)
		go func() {
			a, err := r.resolve(ctx, g, question{name, kind})
			out <- result{addresses(a.records), err}
		}()
		return out
	}
	four, six := lookup(dns.TypeA), lookup(dns.TypeAAAA)
	v4, v6 := <-four, <-six
	if all := append(v4.addrs, v6.addrs...); len(all) > 0 {
		return all, nil
	}
	if err := errors.Join(v4.err, v6.err); err != nil {
		return nil, err
	}
	return nil, errdefs.New(errdefs.NotFound, "%s has no address that may be reached", name)
}

// resolve answers one question from what is kept or from upstream. Its rate is not
// limited here, but how many are under way is.
func (r *Resolver) resolve(ctx context.Context, g guest.Guest, q question) (answer, error) {
	s := r.state(g)
	if a, ok := s.kept(q); ok {
		return a, nil
	}
	select {
	case s.flights <- struct{}{}:
		defer func() { <-s.flights }()
	default:
		return answer{}, errBusy
	}
	reply, err := r.exchange(ctx, q)
	if err != nil {
		return answer{}, err
	}
	a := r.accept(g, s, q, reply)
	s.keep(q, a)
	return a, nil
}

// accept makes of an upstream's reply what a sandbox is told, and remembers for
// which name its addresses are.
func (r *Resolver) accept(g guest.Guest, s *state, q question, reply *dns.Msg) answer {
	now := time.Now()
	a := answer{rcode: reply.Rcode, until: now.Add(negativeTTL)}
	if reply.Rcode != dns.RcodeSuccess {
		return a
	}
	records := chain(q, reply.Answer)
	if len(records) == 0 {
		return a
	}
	ttl := maxTTL
	for _, rr := range records {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	ttl = max(ttl, minTTL)
	a.until = now.Add(ttl)
	for _, rr := range records {
		addr, is := address(rr)
		if is && !g.Policy.Reachable(addr) {
			continue // E11
		}
		a.records = append(a.records, rr)
		if is {
			s.stand(addr, q.name, now.Add(ttl+grace))
			r.learnNow(g, s, q.name, addr, ttl+grace)
		}
	}
	return a
}

// chain keeps of an answer what the question leads to: its aliases in order, and
// the records of the asked type under the last of them. An upstream that answers
// what was not asked is not listened to.
func chain(q question, section []dns.RR) (kept []dns.RR) {
	name := dns.Fqdn(q.name)
	const maxAliases = 12
	for range maxAliases {
		var alias *dns.CNAME
		for _, rr := range section {
			h := rr.Header()
			if h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != name || len(kept) >= maxRecords {
				continue
			}
			if c, ok := rr.(*dns.CNAME); ok && alias == nil {
				alias = c
			}
			if h.Rrtype == q.kind && plain(rr) {
				kept = append(kept, rr)
			}
		}
		if alias == nil || q.kind == dns.TypeCNAME {
			return kept
		}
		if _, err := policy.Name(alias.Target); err != nil {
			return nil
		}
		kept = append(kept, alias)
		name = dns.CanonicalName(alias.Target)
	}
	return nil
}

// plain refuses an IPv4 address in IPv6's clothes: it would be judged as neither.
func plain(rr dns.RR) bool {
	six, ok := rr.(*dns.AAAA)
	return !ok || six.AAAA.To4() == nil
}

func address(rr dns.RR) (netip.Addr, bool) {
	var raw []byte
	switch rr := rr.(type) {
	case *dns.A:
		raw = rr.A.To4()
	case *dns.AAAA:
		raw = rr.AAAA.To16()
	default:
		return netip.Addr{}, false
	}
	addr, ok := netip.AddrFromSlice(raw)
	return addr, ok
}

func addresses(records []dns.RR) (all []netip.Addr) {
	for _, rr := range records {
		if addr, ok := address(rr); ok {
			all = append(all, addr)
		}
	}
	return all
}

// exchange asks the upstreams in order until one answers. A new query is made of
// the question: nothing else that a sandbox wrote leaves.
func (r *Resolver) exchange(ctx context.Context, q question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	failed := errNoUpstream
	for range rounds { // datagrams are lost
		for _, to := range r.config.Upstreams {
			reply, err := r.ask(ctx, to, q)
			if err == nil {
				return reply, nil
			}
			if failed = err; ctx.Err() != nil {
				break
			}
		}
	}
	return nil, errdefs.New(errdefs.Unavailable, "no resolver answers for %s", q.name).WithCause(failed)
}

func (r *Resolver) ask(ctx context.Context, to netip.AddrPort, q question) (*dns.Msg, error) {
	reply, err := r.askOver(ctx, "udp", to, q)
	if err == nil && reply.Truncated {
		return r.askOver(ctx, "tcp", to, q)
	}
	return reply, err
}

var errNoUpstream = errors.New("no upstream is configured")

var errLying = errors.New("the upstream's answer is to another question")

const udpSize = 1232 // passes every path unfragmented

func (r *Resolver) askOver(ctx context.Context, network string, to netip.AddrPort, q question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	conn, err := r.config.Dial(ctx, network, to)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	query := new(dns.Msg)
	query.SetQuestion(dns.Fqdn(q.name), q.kind)
	query.SetEdns0(udpSize, false)
	client := dns.Client{Net: network, UDPSize: udpSize, Timeout: attemptTimeout}
	reply, _, err := client.ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: conn, UDPSize: udpSize})
	if err != nil {
		return nil, err
	}
	if !reply.Response || len(reply.Question) != 1 || dns.CanonicalName(reply.Question[0].Name) != dns.Fqdn(q.name) || reply.Question[0].Qtype != q.kind {
		return nil, errLying
	}
	switch reply.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
		return reply, nil
	}
	return nil, errors.New("the upstream answers " + dns.RcodeToString[reply.Rcode])
}
