package kick

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestWorkFollowsKicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, ctx := New(), t.Context()
		ctx, cancel := context.WithCancel(ctx)
		var at []time.Duration
		began, fails := time.Now(), 0
		done := make(chan error)
		go func() {
			done <- l.Run(ctx, func(context.Context) bool {
				at = append(at, time.Since(began))
				fails--
				return fails < 0
			})
		}()
		synctest.Wait()
		if len(at) != 0 {
			t.Error("worked without a kick")
		}
		for range 10 { // many kicks are one
			l.Kick()
		}
		synctest.Wait()
		if len(at) < 1 || len(at) > 2 {
			t.Errorf("worked %d times after kicks at the same moment", len(at))
		}
		at, fails = nil, 2
		l.Kick()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(at) != 3 || at[1]-at[0] != retryPause || at[2]-at[1] != retryPause {
			t.Errorf("two failures, then success: worked at %v", at)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
