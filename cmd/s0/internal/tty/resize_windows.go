package tty

import (
	"context"
	"os"
	"time"
)

// resizePoll is how often the size is looked at: Windows does not tell.
const resizePoll = 250 * time.Millisecond

// OnResize calls changed with f's new size whenever it changes, until ctx ends.
func OnResize(ctx context.Context, f *os.File, changed func(Size)) {
	tick := time.NewTicker(resizePoll)
	defer tick.Stop()
	for last := GetSize(f); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if now := GetSize(f); now != last {
				last = now
				changed(now)
			}
		}
	}
}
