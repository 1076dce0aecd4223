package dnsproxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"s0.run/internal/policy"
	"s0.run/netd/internal/guest"
)

const (
	// A sandbox's connection to the resolver: how long it may be idle, how many
	// queries it may ask.
	tcpIdle       = 10 * time.Second
	maxTCPQueries = 128
	stopTimeout   = 2 * time.Second
)

// Serve answers queries on a packet socket and a listener until ctx ends. Either
// may be nil. The caller bounds how many connections a sandbox has.
func (r *Resolver) Serve(ctx context.Context, packets net.PacketConn, connections net.Listener) error {
	var servers []*dns.Server
	if packets != nil {
		servers = append(servers, r.server(ctx, &dns.Server{PacketConn: packets, UDPSize: udpSize}))
	}
	if connections != nil {
		servers = append(servers, r.server(ctx, &dns.Server{Listener: connections}))
	}
	ended := make(chan error, len(servers))
	for _, s := range servers {
		go func() { ended <- s.ActivateAndServe() }()
	}
	// The first that ends takes the other along.
	var failed error
	left := len(servers)
	select {
	case failed = <-ended:
		left--
	case <-ctx.Done():
	}
	r.stop(ctx, packets, connections, servers)
	for range left {
		<-ended
	}
	if ctx.Err() != nil {
		return nil
	}
	return failed
}

func (r *Resolver) stop(ctx context.Context, packets net.PacketConn, connections net.Listener, servers []*dns.Server) {
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	for _, s := range servers {
		if err := s.ShutdownContext(stop); err != nil {
			r.config.Log.Debug("a resolver's socket did not stop in order", "error", err)
		}
	}
	// A server that had not begun is not stopped by that.
	if packets != nil {
		packets.Close()
	}
	if connections != nil {
		connections.Close()
	}
}

func (r *Resolver) server(ctx context.Context, s *dns.Server) *dns.Server {
	s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) { r.handle(ctx, w, query) })
	s.IdleTimeout = func() time.Duration { return tcpIdle }
	s.MaxTCPQueries = maxTCPQueries
	s.MsgAcceptFunc = acceptQuery
	return s
}

// acceptQuery drops what is no plain query before it is parsed.
func acceptQuery(h dns.Header) dns.MsgAcceptAction {
	const response, opcode = 1 << 15, 0xf << 11
	switch {
	case h.Bits&response != 0:
		return dns.MsgIgnore
	case h.Bits&opcode != 0:
		return dns.MsgRejectNotImplemented
	case h.Qdcount != 1 || h.Ancount != 0 || h.Nscount != 0 || h.Arcount > 2:
		return dns.MsgReject
	}
	return dns.MsgAccept
}

func (r *Resolver) handle(ctx context.Context, w dns.ResponseWriter, query *dns.Msg) {
	g, ok := r.config.Lookup(source(w.RemoteAddr()))
	switch {
	case g.ID == "": // not told of it yet, perhaps: it asks again
		w.Close()
		return
	case !ok: // a free slot, whose programs need not wait to hear that there is nothing
		r.write(w, query, answer{rcode: dns.RcodeRefused})
		return
	}
	if !r.state(g).limit.Allow() {
		r.write(w, query, answer{rcode: dns.RcodeRefused})
		return
	}
	r.write(w, query, r.answer(ctx, g, query.Question[0]))
}

func source(a net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// answer judges a question and, if it passes, has it resolved.
func (r *Resolver) answer(ctx context.Context, g guest.Guest, asked dns.Question) answer {
	start := time.Now()
	name, err := policy.Name(asked.Name)
	if err != nil || asked.Qclass != dns.ClassINET {
		return answer{rcode: dns.RcodeRefused}
	}
	event := Event{Guest: g, Name: name, Type: dns.TypeToString[asked.Qtype], Verdict: judge(g.Policy, name)}
	defer func() {
		event.Duration = time.Since(start)
		r.config.Observe(event)
	}()
	switch {
	case !event.Verdict.Allow:
		return answer{rcode: dns.RcodeNameError}
	case !forwarded[asked.Qtype]:
		return answer{rcode: dns.RcodeSuccess}
	}
	a, err := r.resolve(ctx, g, question{name, asked.Qtype})
	switch event.Err = err; {
	case errors.Is(err, errBusy):
		return answer{rcode: dns.RcodeRefused}
	case err != nil:
		r.config.Log.Debug("a name was not resolved", "sandbox", g.ID, "gen", g.Gen, "name", name, "error", err)
		return answer{rcode: dns.RcodeServerFailure}
	}
	return a
}

// metadata are the names of clouds' metadata services: what they answer with is
// refused anyhow, and whether they exist is nobody's business (E01).
var metadata = map[string]bool{
	"metadata": true, "metadata.google.internal": true, "metadata.goog": true, "metadata.azure.internal": true,
	"metadata.tencentyun.com": true, "instance-data": true, "instance-data.ec2.internal": true,
}

// judge is the policy's verdict on looking a canonical name up, but for names that
// stand for this machine or its cloud.
func judge(p *policy.Compiled, name string) policy.Verdict {
	if metadata[name] || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return policy.Verdict{Rule: "always denied", Reason: "no policy opens this name"}
	}
	return p.Resolve(name)
}

func (r *Resolver) write(w dns.ResponseWriter, query *dns.Msg, a answer) {
	reply := new(dns.Msg)
	reply.SetRcode(query, a.rcode)
	reply.RecursionAvailable = true
	left := uint32(max(time.Until(a.until), time.Second) / time.Second)
	for _, rr := range a.records {
		rr = dns.Copy(rr)
		rr.Header().Ttl = left
		reply.Answer = append(reply.Answer, rr)
	}
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), udpSize)
		}
	}
	if query.IsEdns0() != nil {
		reply.SetEdns0(udpSize, false)
	}
	reply.Truncate(size)
	if err := w.WriteMsg(reply); err != nil {
		r.config.Log.Debug("an answer was not sent", "error", err)
	}
}
