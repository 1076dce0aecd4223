package nodes

import (
	"context"
	"net"
	"net/http"
	"sync"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi/nodeapiconnect"
)

// conn is one node's connections: one for calls, so that claims never wait
// behind data, and one for the data plane.
type conn struct {
	at     string  // where the node is, for people
	member *Member // nil: of this machine
	calls  *http.Client
	rpc    nodeapiconnect.NodeClient
	claims *claims
	data   *http.Client

	first sync.Once
	tried chan struct{} // closed when the first stream was whole, or failed

	done   chan struct{} // closed when it has said its last
	before *conn         // whose place this one takes; its goroutine's alone, once that runs

	ctx    context.Context // ends when the node is none any more
	cancel context.CancelFunc

	mu   sync.Mutex
	open map[net.Conn]bool
}

// newConn makes the conn of a node that local asks, or without one what dial leads to.
func newConn(at string, member *Member, local http.RoundTripper, dial func(context.Context) (net.Conn, error)) *conn {
	c := &conn{at: at, member: member, tried: make(chan struct{}), done: make(chan struct{}), open: map[net.Conn]bool{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	calls, data := local, local
	if local == nil {
		calls, data = c.transport(dial), c.transport(dial)
	}
	c.calls, c.data = &http.Client{Transport: calls}, &http.Client{Transport: data, CheckRedirect: noRedirect}
	c.rpc = nodeapiconnect.NewNodeClient(c.calls, "http://node", connect.WithReadMaxBytes(maxMessage),
		// Compressing a message of a hundred bytes costs more than the rest of a claim.
		connect.WithAcceptCompression("gzip", nil, nil))
	c.claims = &claims{rpc: c.rpc}
	return c
}

// local reports whether this is a node of this machine. None is none.
func (c *conn) local() bool { return c != nil && c.member == nil }

// succeed waits for whose place this one takes: what that one says last must not come after
// what this one says first.
func (c *conn) succeed() {
	if c.before != nil {
		c.before.end()
		<-c.before.done
		c.before = nil
	}
}

// settle says that what can be known of the node at first is known.
func (c *conn) settle() { c.first.Do(func() { close(c.tried) }) }

func (c *conn) transport(dial func(context.Context) (net.Conn, error)) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // as far as the transport knows: a member is dialled with TLS
	return &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			raw, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return c.track(raw)
		},
		DisableCompression: true,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: silence, PingTimeout: pingTimeout,
			MaxReceiveBufferPerStream: streamBuffer, MaxReadFrameSize: frameBytes,
		},
	}
}

// end hangs up for good.
func (c *conn) end() {
	c.cancel()
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	for open := range c.open {
		open.Close()
	}
}

// track lets a connection be hung up from here.
func (c *conn) track(raw net.Conn) (net.Conn, error) {
	if c.member == nil {
		return raw, nil
	}
	t := &tracked{Conn: raw, of: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ctx.Err(); err != nil {
		raw.Close()
		return nil, err
	}
	c.open[raw] = true
	return t, nil
}

type tracked struct {
	net.Conn
	of *conn
}

// Close implements net.Conn.
func (t *tracked) Close() error {
	t.of.mu.Lock()
	delete(t.of.open, t.Conn)
	t.of.mu.Unlock()
	return t.Conn.Close()
}
