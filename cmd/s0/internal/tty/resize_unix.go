//go:build unix

package tty

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// OnResize calls changed with f's new size whenever it changes, until ctx ends.
func OnResize(ctx context.Context, f *os.File, changed func(Size)) {
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, syscall.SIGWINCH)
	defer signal.Stop(winch)
	for {
		select {
		case <-ctx.Done():
			return
		case <-winch:
			changed(GetSize(f))
		}
	}
}
