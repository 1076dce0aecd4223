package virtualnode

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
)

const (
	cordonTimeout                     = 5 * time.Second // of one call
	firstCordonRetry, lastCordonRetry = 100 * time.Millisecond, 10 * time.Second
)

// Cordon tells noded whether Kubernetes lets anything new on the node: claims and resumes
// don't ask Kubernetes, and shall not come to a node that is being emptied. It is safe for
// concurrent use.
type Cordon struct {
	rpc  nodeapiconnect.NodeClient
	log  *slog.Logger
	wake chan struct{} // holds a value when something is to be told

	mu    sync.Mutex
	known bool // Kubernetes has said
	want  bool
}

// NewCordon makes one that knows nothing yet.
func NewCordon(rpc nodeapiconnect.NodeClient, log *slog.Logger) *Cordon {
	return &Cordon{rpc: rpc, log: log, wake: make(chan struct{}, 1)}
}

// Set says what Kubernetes says of the node. It never blocks.
func (c *Cordon) Set(cordoned bool) {
	c.mu.Lock()
	news := !c.known || c.want != cordoned
	c.known, c.want = true, cordoned
	c.mu.Unlock()
	if news {
		c.Again()
	}
}

// Again has noded told once more: one that was started again has forgotten. It never blocks.
func (c *Cordon) Again() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run tells noded until ctx ends.
func (c *Cordon) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		for pause := firstCordonRetry; !c.tell(ctx) && ctx.Err() == nil; pause = min(2*pause, lastCordonRetry) {
			select {
			case <-ctx.Done():
			case <-c.wake:
			case <-time.After(pause):
			}
		}
	}
}

// tell makes one attempt.
func (c *Cordon) tell(ctx context.Context) bool {
	c.mu.Lock()
	known, want := c.known, c.want
	c.mu.Unlock()
	if !known {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, cordonTimeout)
	defer cancel()
	_, err := c.rpc.Cordon(ctx, &nodeapi.CordonRequest{Cordoned: want})
	if err != nil {
		c.log.Warn("could not tell noded of the node's cordon", "cordoned", want, "error", err)
	}
	return err == nil
}
