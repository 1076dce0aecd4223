package nodes

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
)

// manyTimeout bounds a call for several claims, each of which has its own time.
const manyTimeout = 5 * time.Second

// claims sends one node's claims, together when they come together: who comes
// first lets those pass that are about to come, and takes them along. A claim
// that is alone waits for nobody; and none waits for another's answer.
type claims struct {
	rpc   nodeapiconnect.NodeClient
	calls sync.WaitGroup // goroutines that read answers
	older atomic.Bool    // the node knows no call for several

	mu      sync.Mutex
	leading bool // somebody will take the queue
	queue   []*claimCall
}

type claimCall struct {
	req  *nodeapi.ClaimRequest
	done chan struct{}
	resp *nodeapi.ClaimResponse // after done, like err
	err  error
}

// Claim claims at a node. Its errors are Connect's.
func (s *Set) Claim(ctx context.Context, node string, req *nodeapi.ClaimRequest) (*nodeapi.ClaimResponse, error) {
	c, err := s.conn(node)
	if err != nil {
		return nil, err
	}
	return c.claims.do(ctx, req)
}

func (c *claims) do(ctx context.Context, req *nodeapi.ClaimRequest) (*nodeapi.ClaimResponse, error) {
	if c.older.Load() || len(req.GetEnv()) > 0 { // an environment may be large
		return c.rpc.Claim(ctx, req)
	}
	call := &claimCall{req: req, done: make(chan struct{})}
	c.mu.Lock()
	c.queue = append(c.queue, call)
	first := !c.leading
	c.leading = true
	c.mu.Unlock()
	if first {
		runtime.Gosched()
		batch := c.take()
		if len(batch) == 1 {
			return c.rpc.Claim(ctx, req)
		}
		for part := range slices.Chunk(batch, nodeapi.MaxClaims) {
			c.calls.Go(func() { c.send(context.WithoutCancel(ctx), part) })
		}
	}
	select {
	case <-call.done:
		return call.resp, call.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *claims) take() []*claimCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch := c.queue
	c.queue, c.leading = nil, false
	return batch
}

// send makes one call and hands out its answers as they come.
func (c *claims) send(ctx context.Context, batch []*claimCall) {
	ctx, cancel := context.WithTimeout(ctx, manyTimeout)
	defer cancel()
	err := c.stream(ctx, batch)
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		c.older.Store(true)
	}
	for _, call := range batch {
		select {
		case <-call.done:
		default:
			if call.err = err; c.older.Load() {
				call.resp, call.err = c.rpc.Claim(ctx, call.req)
			}
			close(call.done)
		}
	}
}

func (c *claims) stream(ctx context.Context, batch []*claimCall) error {
	req := &nodeapi.ClaimManyRequest{}
	for _, call := range batch {
		req.Claims = append(req.Claims, call.req)
	}
	stream, err := c.rpc.ClaimMany(ctx, req)
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		for _, o := range stream.Msg().GetOutcomes() {
			if int(o.GetIndex()) >= len(batch) {
				return fmt.Errorf("the node answered claim %d of %d", o.GetIndex(), len(batch))
			}
			call := batch[o.GetIndex()]
			if call.req == nil {
				return fmt.Errorf("the node answered claim %d twice", o.GetIndex())
			}
			call.resp, call.err = o.Result()
			call.req = nil
			close(call.done)
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return errors.New("the node left claims unanswered")
}
