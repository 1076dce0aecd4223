package virtualnode

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
)

// teller is a noded that is told of cordons.
type teller struct {
	nodeapiconnect.NodeClient
	told chan bool
	fail chan struct{} // holds a value for each call that fails
}

func (c *teller) Cordon(_ context.Context, req *nodeapi.CordonRequest) (*nodeapi.CordonResponse, error) {
	c.told <- req.GetCordoned()
	select {
	case <-c.fail:
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("not now"))
	default:
		return &nodeapi.CordonResponse{}, nil
	}
}

// noded is told what Kubernetes has said, once unless that failed or noded began anew, and
// nothing before Kubernetes has said something.
func TestACordonIsTold(t *testing.T) {
	t.Parallel()
	rpc := &teller{told: make(chan bool), fail: make(chan struct{}, 1)}
	c := NewCordon(rpc, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	told := func(what string, want bool) {
		t.Helper()
		select {
		case got := <-rpc.told:
			if got != want {
				t.Fatalf("%s: told %v", what, got)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: told nothing", what)
		}
	}
	c.Again() // noded is there before Kubernetes is
	rpc.fail <- struct{}{}
	c.Set(true)
	told("at first", true)
	told("after a failure", true)
	c.Set(true) // which is no news
	c.Set(false)
	told("uncordoned", false)
	c.Again()
	told("noded began anew", false)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
