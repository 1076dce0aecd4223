// Package nodes talks to the nodes: it follows each node's stream into the
// placement table and hands out clients for calls and for the data plane.
//
// A node of this machine is a unix socket, for good, and has its name before every member;
// members of the cluster come and go, as [Set.Members] is told. The package owns the connections and one
// goroutine for each node while [Set.Run] runs.
// A lost stream is tried again for ever, with growing pauses; meanwhile calls to
// that node fail at once and none of its slots is claimed. What a stream says
// changes the table alone: deciding anything from it is others' work.
package nodes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/placement"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/sandbox"
)

const (
	dialTimeout = 2 * time.Second
	infoTimeout = 3 * time.Second // a node that just started may be recovering
	firstPause  = 50 * time.Millisecond
	longestStop = 5 * time.Second

	// A connection that says nothing for this long is asked, and given up when it
	// stays silent: a stopped node must not look alive.
	silence     = 15 * time.Second
	pingTimeout = 5 * time.Second

	// streamBuffer bounds what a slow client of the data plane can make us hold.
	streamBuffer = 256 << 10
	frameBytes   = 256 << 10 // of an answer, in one piece

	maxMessage = 4 << 20 // one call's answer or one event
)

// Config says which nodes there are and who wants to know what they say.
type Config struct {
	Sockets []string          // unix sockets of node APIs
	Local   http.RoundTripper // asks the one of Sockets in their place; nil: they are dialled
	Cluster string            // every node must belong to it

	// DialMember connects to a member, and to nobody else who may answer in its place.
	DialMember func(ctx context.Context, m Member) (net.Conn, error)

	Table *placement.Table
	Log   *slog.Logger

	// OnSync is called after a node's stream has told everything, again after
	// each reconnection. OnEnd is called for a sandbox that failed or is gone.
	// OnStored, unless nil, is called when a node says something new of whether a paused
	// sandbox is in the object store. All are called from the node's stream and must not
	// block.
	OnSync   func(node string)
	OnEnd    func(node string, id sandbox.ID)
	OnStored func(node string, id sandbox.ID)

	// OnGone, unless nil, is called when a node is no member any more and forgotten.
	OnGone func(node string)

	// OnCordon, unless nil, is called when a node's own Kubernetes node lets nothing new
	// there, or does again.
	OnCordon func()
}

// Member is a node that is reached over a network. One that is anything else than before
// is another one.
type Member struct {
	Name       string
	Membership uuid.UUID
	Endpoint   string // host:port
}

// Set is the nodes of one cluster.
type Set struct {
	cfg     Config
	changed chan struct{} // there may be others to follow

	mu     sync.RWMutex
	conns  []*conn
	fresh  []*conn          // that Run has not started yet, whether or not they have ended
	latest map[string]*conn // of each name that a member has or had
	byName map[string]*conn // that have said who they are
}

// New makes a Set; nothing is connected until Run.
func New(cfg Config) *Set {
	s := &Set{cfg: cfg, changed: make(chan struct{}, 1), latest: map[string]*conn{}, byName: map[string]*conn{}}
	for _, socket := range cfg.Sockets {
		s.conns = append(s.conns, newConn(socket, nil, cfg.Local, func(ctx context.Context) (net.Conn, error) { return dialUnix(ctx, socket) }))
	}
	s.fresh = slices.Clone(s.conns)
	return s
}

func dialUnix(ctx context.Context, socket string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", socket)
}

// Members says who the members are; those with the name of a node of this machine don't
// count. One that is none any more is hung up on before this returns, whatever goes on.
func (s *Set) Members(list []Member) {
	var ended, kept []*conn
	s.mu.Lock()
	list = slices.DeleteFunc(slices.Clone(list), func(m Member) bool { return s.byName[m.Name].local() })
	for _, c := range s.conns {
		if c.member == nil || slices.Contains(list, *c.member) {
			kept = append(kept, c)
			continue
		}
		ended = append(ended, c)
		c.cancel() // it must not be made known by its name again
		if s.byName[c.member.Name] == c {
			delete(s.byName, c.member.Name)
		}
	}
	for _, m := range list {
		if !slices.ContainsFunc(kept, func(c *conn) bool { return c.member != nil && *c.member == m }) {
			kept = append(kept, s.newMemberLocked(m))
		}
	}
	s.conns = kept
	s.mu.Unlock()
	for _, c := range ended {
		c.end()
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *Set) newMemberLocked(m Member) *conn {
	c := newConn(m.Endpoint, &m, nil, func(ctx context.Context) (net.Conn, error) { return s.cfg.DialMember(ctx, m) })
	c.before = s.latest[m.Name]
	s.latest[m.Name] = c
	s.fresh = append(s.fresh, c)
	return c
}

// noRedirect keeps answers of a sandbox from sending us anywhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Run follows every node until ctx ends.
func (s *Set) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for {
		s.mu.Lock()
		fresh := s.fresh
		s.fresh = nil
		s.mu.Unlock()
		for _, c := range fresh {
			wg.Go(func() { s.serve(ctx, c) })
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			wg.Wait()
			return nil
		}
	}
}

// serve follows one node until it is none any more, or ctx ends.
func (s *Set) serve(ctx context.Context, c *conn) {
	defer close(c.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	c.succeed()
	if c.ctx.Err() == nil {
		s.follow(ctx, c)
	}
	c.claims.calls.Wait()
	c.calls.CloseIdleConnections()
	c.data.CloseIdleConnections()
	if c.ctx.Err() != nil && s.isLatest(c) {
		s.cfg.Table.Forget(c.member.Name)
		if s.cfg.OnGone != nil {
			s.cfg.OnGone(c.member.Name)
		}
	}
}

// isLatest reports whether nobody takes the place of what has ended: only then is the node
// forgotten, one that is elsewhere is lost for a moment.
func (s *Set) isLatest(c *conn) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.latest[c.member.Name] == c
}

// Settled waits until every node's stream has been whole or has failed once, or ctx ends:
// a server that answers before knows no sandbox's node, and calls it out of reach.
func (s *Set) Settled(ctx context.Context) {
	s.mu.RLock()
	conns := slices.Clone(s.conns)
	s.mu.RUnlock()
	for _, c := range conns {
		select {
		case <-c.tried:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Set) follow(ctx context.Context, c *conn) {
	pause := firstPause
	for ctx.Err() == nil {
		synced, err := s.watch(ctx, c)
		c.settle()
		if ctx.Err() != nil {
			return
		}
		if synced {
			pause = firstPause
		}
		s.cfg.Log.Warn("lost a node's stream", "at", c.at, "err", err, "retry_in", pause)
		select {
		case <-time.After(pause/2 + rand.N(pause/2)): // replicas must not come back in step
		case <-ctx.Done():
		}
		pause = min(2*pause, longestStop)
	}
}

// watch follows one stream to its end and reports whether it ever was whole.
func (s *Set) watch(ctx context.Context, c *conn) (synced bool, err error) {
	n, err := s.hello(ctx, c)
	if err != nil {
		return false, err
	}
	c.succeed()
	stream, err := c.rpc.Watch(ctx, &nodeapi.WatchRequest{Many: true})
	if err != nil {
		return false, fmt.Errorf("watching node %s: %w", n.Name, err)
	}
	defer stream.Close()
	w := &watcher{set: s, conn: c, node: n, snapshot: placement.NewSnapshot()}
	defer w.end()
	for stream.Receive() {
		for _, e := range stream.Msg().All() {
			w.see(e)
		}
	}
	if err = stream.Err(); err == nil {
		err = errors.New("the node ended the stream")
	}
	return w.synced, fmt.Errorf("watching node %s: %w", n.Name, err)
}

// hello asks the node who it is and makes it known by its name.
func (s *Set) hello(ctx context.Context, c *conn) (placement.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	info, err := c.rpc.Info(ctx, &nodeapi.InfoRequest{})
	if err != nil {
		return placement.Node{}, fmt.Errorf("asking the node at %s who it is: %w", c.at, err)
	}
	if info.GetNode() == "" || info.GetCluster() != s.cfg.Cluster || c.member != nil && info.GetNode() != c.member.Name {
		return placement.Node{}, fmt.Errorf("node %q at %s belongs to cluster %q, not %q", info.GetNode(), c.at, info.GetCluster(), s.cfg.Cluster)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.ctx.Err() != nil {
		return placement.Node{}, fmt.Errorf("node %q is no member any more", info.GetNode())
	}
	if err := s.nameLocked(info.GetNode(), c); err != nil {
		return placement.Node{}, err
	}
	n := placement.Node{Name: info.GetNode(), NetworkPolicy: info.GetNetworkPolicy(), ObjectStore: info.GetObjectStore() != nil,
		Volumes: info.GetVolumes().GetStore(), Buckets: info.GetVolumes().GetS3()}
	for _, class := range info.GetRuntimeClasses() {
		n.Classes = append(n.Classes, sandbox.RuntimeClass(class))
	}
	return n, nil
}

// nameLocked makes c known by a name. A node of this machine takes it from any member: that
// one, or who else has the name on the list, ends.
func (s *Set) nameLocked(name string, c *conn) error {
	other := s.byName[name]
	switch {
	case other == c:
		return nil
	case c.local() && !other.local():
		if last := s.latest[name]; last != nil {
			last.cancel()
			c.before = last
		}
		s.latest[name] = c
	case other != nil:
		return fmt.Errorf("two nodes are called %q: %s and %s", name, other.at, c.at)
	}
	s.byName[name] = c
	return nil
}

// Local is the names of this machine's nodes. It is not all while one has not said its
// name since this server started.
func (s *Set) Local() (names map[string]bool, all bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names = map[string]bool{}
	named := map[*conn]bool{}
	for name, c := range s.byName {
		if c.local() {
			names[name], named[c] = true, true
		}
	}
	return names, len(named) == len(s.cfg.Sockets)
}

// ErrUnreachable is the one answer while a sandbox's node can't be asked.
var ErrUnreachable = errdefs.New(errdefs.Unavailable, "the sandbox's node can't be reached at the moment").WithRetryAfter(time.Second)

func (s *Set) conn(name string) (*conn, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.byName[name]; c != nil {
		return c, nil
	}
	return nil, ErrUnreachable.WithCause(fmt.Errorf("node %q has not been seen since this server started", name))
}

// RPC gives the client for calls to a node. Its errors are Connect's.
func (s *Set) RPC(name string) (nodeapiconnect.NodeClient, error) {
	c, err := s.conn(name)
	if err != nil {
		return nil, err
	}
	return c.rpc, nil
}

// Data gives the HTTP client of a node's data plane. URLs are `http://node` and
// a path; redirects are not followed.
func (s *Set) Data(name string) (*http.Client, error) {
	c, err := s.conn(name)
	if err != nil {
		return nil, err
	}
	return c.data, nil
}
