package egress

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"s0.run/api/internal/store"
	"s0.run/internal/sandbox"
)

func sandboxesOn(node string, n int) (all []store.BoundSandbox) {
	for i := range n {
		all = append(all, store.BoundSandbox{ID: sandbox.ID(fmt.Sprint(node, i)), Node: node})
	}
	return all
}

// F12: a node that hangs keeps no other's sandboxes from what is new.
func TestF12_AHungNodeKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	told := make(chan sandbox.ID, 1000)
	hung, stop := context.WithCancel(ctx)
	calls := sync.Map{}
	run := &tellers{ctx: ctx, log: slog.New(slog.DiscardHandler), busy: map[string]bool{}, tell: func(_ context.Context, sb store.BoundSandbox) error {
		if sb.Node == "hung" {
			calls.Store(sb.ID, true)
			<-hung.Done()
			return context.DeadlineExceeded
		}
		told <- sb.ID
		return nil
	}}
	for range 3 { // as passes come
		run.begin(append(sandboxesOn("hung", 500), sandboxesOn("well", 10)...))
		for range 10 {
			select {
			case <-told:
			case <-ctx.Done():
				t.Fatal("those of the other node are not told")
			}
		}
		for free := false; !free; { // until the node's round is over
			run.mu.Lock()
			free = !run.busy["well"]
			run.mu.Unlock()
			if ctx.Err() != nil {
				t.Fatal("the other node's round does not end")
			}
		}
	}
	stop()
	run.wg.Wait()
	n := 0
	calls.Range(func(any, any) bool { n++; return true })
	if n > 2*perNode {
		t.Errorf("the hung node was called %d times", n)
	}
}
