// Package nodes talks to the nodes: it follows each node's stream into the
// placement table and hands out clients for calls and for the data plane.
//
// It owns the connections and one goroutine for each node while [Set.Run] runs.
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
	"sync"
	"time"

	"connectrpc.com/connect"

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
	Sockets []string                                                   // unix sockets of node APIs
	Dial    func(ctx context.Context, socket string) (net.Conn, error) // to one of them; nil: the kernel's way
	Cluster string                                                     // every node must belong to it
	Table   *placement.Table
	Log     *slog.Logger

	// OnSync is called after a node's stream has told everything, again after
	// each reconnection. OnEnd is called for a sandbox that failed or is gone.
	// OnStored, unless nil, is called when a node says something new of whether a paused
	// sandbox is in the object store. All are called from the node's stream and must not
	// block.
	OnSync   func(node string)
	OnEnd    func(node string, id sandbox.ID)
	OnStored func(node string, id sandbox.ID)
}

// Set is the nodes of one cluster.
type Set struct {
	cfg   Config
	conns []*conn

	mu     sync.RWMutex
	byName map[string]*conn
}

// conn is one node's connections: one for calls, so that claims never wait
// behind data, and one for the data plane.
type conn struct {
	socket string
	calls  *http.Client
	rpc    nodeapiconnect.NodeClient
	claims *claims
	data   *http.Client

	first sync.Once
	tried chan struct{} // closed when the first stream was whole, or failed
}

// settle says that what can be known of the node at first is known.
func (c *conn) settle() { c.first.Do(func() { close(c.tried) }) }

// New makes a Set; nothing is connected until Run.
func New(cfg Config) *Set {
	if cfg.Dial == nil {
		cfg.Dial = dialUnix
	}
	s := &Set{cfg: cfg, byName: map[string]*conn{}}
	for _, socket := range cfg.Sockets {
		calls := &http.Client{Transport: s.transport(socket)}
		rpc := nodeapiconnect.NewNodeClient(calls, "http://node", connect.WithReadMaxBytes(maxMessage),
			// Compressing a message of a hundred bytes costs more than the rest of a claim.
			connect.WithAcceptCompression("gzip", nil, nil))
		s.conns = append(s.conns, &conn{
			socket: socket, calls: calls, rpc: rpc, claims: &claims{rpc: rpc},
			data:  &http.Client{Transport: s.transport(socket), CheckRedirect: noRedirect},
			tried: make(chan struct{}),
		})
	}
	return s
}

func dialUnix(ctx context.Context, socket string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", socket)
}

// noRedirect keeps answers of a sandbox from sending us anywhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (s *Set) transport(socket string) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return s.cfg.Dial(ctx, socket)
		},
		DisableCompression: true,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: silence, PingTimeout: pingTimeout,
			MaxReceiveBufferPerStream: streamBuffer, MaxReadFrameSize: frameBytes,
		},
	}
}

// Run follows every node until ctx ends.
func (s *Set) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, c := range s.conns {
		wg.Go(func() { s.follow(ctx, c) })
	}
	wg.Wait()
	for _, c := range s.conns {
		c.claims.calls.Wait()
		c.calls.CloseIdleConnections()
		c.data.CloseIdleConnections()
	}
	return nil
}

// Settled waits until every node's stream has been whole or has failed once, or ctx ends:
// a server that answers before knows no sandbox's node, and calls it out of reach.
func (s *Set) Settled(ctx context.Context) {
	for _, c := range s.conns {
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
		s.cfg.Log.Warn("lost a node's stream", "socket", c.socket, "err", err, "retry_in", pause)
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
		return placement.Node{}, fmt.Errorf("asking the node at %s who it is: %w", c.socket, err)
	}
	if info.GetNode() == "" || info.GetCluster() != s.cfg.Cluster {
		return placement.Node{}, fmt.Errorf("node %q at %s belongs to cluster %q, not %q", info.GetNode(), c.socket, info.GetCluster(), s.cfg.Cluster)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.byName[info.GetNode()]; other != nil && other != c {
		return placement.Node{}, fmt.Errorf("two nodes are called %q: %s and %s", info.GetNode(), other.socket, c.socket)
	}
	s.byName[info.GetNode()] = c
	n := placement.Node{Name: info.GetNode(), NetworkPolicy: info.GetNetworkPolicy(), ObjectStore: info.GetObjectStore() != nil,
		Volumes: info.GetVolumes().GetStore(), Buckets: info.GetVolumes().GetS3()}
	for _, class := range info.GetRuntimeClasses() {
		n.Classes = append(n.Classes, sandbox.RuntimeClass(class))
	}
	return n, nil
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
