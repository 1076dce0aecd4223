// Package dnsproxy is the only resolver that sandboxes have.
//
// A query is judged before anything of it leaves: a denied name reaches no
// upstream in any form (DNS is egress). What leaves is a new query with the name
// and the type alone, and what comes back is taken apart: only records that the
// question leads to, with bounded times to live, without addresses that the
// sandbox may not reach, and without HTTPS and SVCB records, whose keys would hide
// from the proxy what a connection is for. Answers are kept per sandbox, so that
// none can plant one for another, and bounded.
//
// The package also remembers for which names each address was answered
// ([Resolver.Names]), for flows that carry no name of their own, and is where the
// proxy looks up what it dials: it dials what the sandbox was told.
package dnsproxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/guest"
	"s0.run/netd/internal/share"
)

const (
	// minTTL and maxTTL bound how long an answer is kept and told: not so short that
	// a name changes between a sandbox's look and its connection, not so long that
	// a policy's names lag behind the world.
	minTTL = 5 * time.Second
	maxTTL = 5 * time.Minute
	// negativeTTL is for names that don't exist; they are cheap to ask for again.
	negativeTTL = 5 * time.Second
	// grace is how much longer than its TTL an address stands for its name:
	// clients connect late.
	grace = 30 * time.Second
	// attemptTimeout and queryTimeout bound one upstream's answer and all of them, of
	// which each is asked as often as rounds (X32). A client waits 5 s and asks again.
	attemptTimeout = 3 * time.Second
	queryTimeout   = 9 * time.Second
	rounds         = 3

	// Per sandbox (D11): answers and addresses kept, queries a second and at once.
	maxAnswers  = 512
	maxLearnt   = 2048
	maxNames    = 8 // of one address
	queryRate   = 50
	queryBurst  = 200
	maxInFlight = 32
	// maxRecords bounds an answer.
	maxRecords = 64
)

// Event is one judged query, for records.
type Event struct {
	Guest    guest.Guest
	Name     string // canonical
	Type     string
	Verdict  policy.Verdict
	Err      error // why there was no answer, of what was allowed
	Duration time.Duration
}

// Config is what a [Resolver] needs.
type Config struct {
	Lookup guest.Lookup
	// Upstreams are asked in order; without any, no name is resolved.
	Upstreams []netip.AddrPort
	// Dial connects to an upstream.
	Dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// Learn is told, before the sandbox is, which address it is answered, for which
	// of its policy's slots and for how long.
	Learn func(g guest.Guest, addr netip.Addr, slots uint64, ttl time.Duration)
	// Observe is told of every query. It must not block.
	Observe func(Event)
	// Memory is asked for what is kept; without it nothing more is.
	Memory *share.Pool[sandbox.ID]
	Log    *slog.Logger
}

// Resolver resolves for sandboxes. It is safe for concurrent use.
type Resolver struct {
	config Config

	mu     sync.Mutex
	guests map[sandbox.ID]*state // by sandbox id
}

// state is what one generation of a sandbox asked.
type state struct {
	id      sandbox.ID
	gen     sandbox.Generation
	memory  *share.Pool[sandbox.ID]
	limit   *rate.Limiter
	flights chan struct{}

	mu      sync.Mutex
	answers map[question]answer
	learnt  map[netip.Addr]map[string]time.Time // until when an address stands for a name
	now     guest.Guest                         // as of the last Refresh; zero: there was none
	bytes   int                                 // that it has of the memory
	ended   bool                                // and has none
}

type question struct {
	name string // canonical
	kind uint16
}

// answer is what is known about a question until it ends.
type answer struct {
	rcode   int
	records []dns.RR
	until   time.Time
}

// New makes a resolver.
func New(config Config) (*Resolver, error) {
	if config.Lookup == nil || config.Dial == nil || config.Learn == nil || config.Observe == nil || config.Memory == nil || config.Log == nil {
		return nil, errors.New("the resolver's configuration is incomplete")
	}
	return &Resolver{config: config, guests: map[sandbox.ID]*state{}}, nil
}

// Upstreams are the resolvers that a file like /etc/resolv.conf names.
func Upstreams(path string) ([]netip.AddrPort, error) {
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, err
	}
	var all []netip.AddrPort
	for _, s := range conf.Servers {
		if to, err := netip.ParseAddrPort(net.JoinHostPort(s, conf.Port)); err == nil {
			all = append(all, to)
		}
	}
	return all, nil
}

// state finds what a guest asked so far. A new generation begins with nothing.
func (r *Resolver) state(g guest.Guest) *state {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.guests[g.ID]
	if s == nil || s.gen < g.Gen {
		if s != nil {
			s.release()
		}
		s = &state{
			id: g.ID, gen: g.Gen, memory: r.config.Memory, limit: rate.NewLimiter(queryRate, queryBurst), flights: make(chan struct{}, maxInFlight),
			answers: map[question]answer{}, learnt: map[netip.Addr]map[string]time.Time{},
		}
		r.guests[g.ID] = s
	}
	return s
}

// Forget drops what a sandbox's generation asked, when it is gone.
func (r *Resolver) Forget(id sandbox.ID, gen sandbox.Generation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.guests[id]; s != nil && s.gen <= gen {
		r.drop(id)
	}
}

// Prune drops what sandboxes asked who are not known.
func (r *Resolver) Prune(known func(sandbox.ID) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.guests {
		if !known(id) {
			r.drop(id)
		}
	}
}

// drop is called with mu held.
func (r *Resolver) drop(id sandbox.ID) {
	r.guests[id].release()
	delete(r.guests, id)
}

// Refresh tells the data plane again what a sandbox was answered, after its policy
// changed: slots are the policy's.
func (r *Resolver) Refresh(g guest.Guest) {
	now := time.Now()
	for addr, names := range r.state(g).standing(g, now) {
		for name, until := range names {
			r.learn(g, name, addr, until.Sub(now))
		}
	}
}

// learnNow learns an address that has begun to stand for a name, for the policy that was
// asked, and for the one that has taken its place meanwhile: its Refresh may have been
// before.
func (r *Resolver) learnNow(g guest.Guest, s *state, name string, addr netip.Addr, ttl time.Duration) {
	r.learn(g, name, addr, ttl)
	s.mu.Lock()
	now := s.now
	s.mu.Unlock()
	if now.Policy != nil && now.Policy != g.Policy {
		r.learn(now, name, addr, ttl)
	}
}

// learn tells the data plane of an address, if the policy gives it a slot.
func (r *Resolver) learn(g guest.Guest, name string, addr netip.Addr, ttl time.Duration) {
	if slots := g.Policy.Learn(name); slots != 0 {
		r.config.Learn(g, addr, slots, ttl)
	}
}

// Names are those for which a sandbox was answered an address and may still use it.
func (r *Resolver) Names(g guest.Guest, addr netip.Addr) (names []string) {
	s := r.state(g)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, until := range s.learnt[addr.Unmap()] {
		if now.Before(until) {
			names = append(names, name)
		}
	}
	return names
}

// standing are the names that addresses stand for, for a guest who is to have them learnt:
// what begins to stand after that is learnt for him, too.
func (s *state) standing(g guest.Guest, now time.Time) map[netip.Addr]map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = g
	out := make(map[netip.Addr]map[string]time.Time, len(s.learnt))
	for addr, names := range s.learnt {
		for name, until := range names {
			if now.Before(until) {
				if out[addr] == nil {
					out[addr] = map[string]time.Time{}
				}
				out[addr][name] = until
			}
		}
	}
	return out
}

// stand remembers that an address stands for a name; bounded, the dead go first.
func (s *state) stand(addr netip.Addr, name string, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.learnt[addr] == nil {
		evict(s.learnt, maxLearnt, latest, func(_ netip.Addr, names map[string]time.Time) {
			for name := range names {
				s.give(learntBytes + len(name))
			}
		})
	}
	names := s.learnt[addr]
	if _, known := names[name]; !known {
		evict(names, maxNames, func(t time.Time) time.Time { return t }, func(name string, _ time.Time) { s.give(learntBytes + len(name)) })
		if !s.take(learntBytes + len(name)) {
			return
		}
	}
	if names == nil {
		names = map[string]time.Time{}
		s.learnt[addr] = names
	}
	if until.After(names[name]) {
		names[name] = until
	}
}

// take and give are called with mu held.
func (s *state) take(n int) bool {
	if s.ended || !s.memory.Take(s.id, n) {
		return false
	}
	s.bytes += n
	return true
}

func (s *state) give(n int) {
	s.memory.Give(s.id, n)
	s.bytes -= n
}

// release gives everything back: nobody finds the state any more.
func (s *state) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.answers, s.learnt = map[question]answer{}, map[netip.Addr]map[string]time.Time{}
	s.give(s.bytes)
}

func latest(names map[string]time.Time) (last time.Time) {
	for _, t := range names {
		if t.After(last) {
			last = t
		}
	}
	return last
}

// evict makes room for one: what has ended goes, and if nothing has, what ends first.
func evict[K comparable, V any](m map[K]V, bound int, ends func(V) time.Time, gone func(K, V)) {
	if len(m) < bound {
		return
	}
	now := time.Now()
	var first K
	var at time.Time
	for k, v := range m {
		end := ends(v)
		if !now.Before(end) {
			gone(k, v)
			delete(m, k)
		} else if at.IsZero() || end.Before(at) {
			first, at = k, end
		}
	}
	if len(m) >= bound {
		gone(first, m[first])
		delete(m, first)
	}
}

func (s *state) kept(q question) (answer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.answers[q]
	return a, ok && time.Now().Before(a.until)
}

func (s *state) keep(q question, a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, known := s.answers[q]; known {
		s.give(size(q, old))
		delete(s.answers, q)
	}
	evict(s.answers, maxAnswers, func(a answer) time.Time { return a.until }, func(q question, a answer) { s.give(size(q, a)) })
	if s.take(size(q, a)) {
		s.answers[q] = a
	}
}

// What is kept takes these bytes beside its names and records, roughly.
const answerBytes, recordBytes, learntBytes = 200, 150, 150

func size(q question, a answer) int {
	n := answerBytes + len(q.name)
	for _, rr := range a.records {
		n += recordBytes + dns.Len(rr)
	}
	return n
}
