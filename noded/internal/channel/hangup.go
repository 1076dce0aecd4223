package channel

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"s0.run/internal/procapi"
)

// hangUpTimeout bounds procd's part of the end of a connection.
const hangUpTimeout = 5 * time.Second

// HangUp ends the channel like Close, and has procd close its end first, which is
// then ready to be saved: it dials until somebody listens again. An error says that
// procd did not do as it was told; the channel has ended all the same.
func (c *Channel) HangUp(ctx context.Context) error {
	defer c.Close()
	c.mu.Lock()
	c.closed = true // what is lost from here on is no loss
	if c.loss != nil {
		c.loss.Stop()
	}
	current := c.current
	c.mu.Unlock()
	// Nobody listens before procd hangs up: its next connection shall be the next life's.
	c.stopListening()
	if err := os.Remove(filepath.Join(c.cfg.Dir, filepath.Base(procapi.Socket))); err != nil {
		return fmt.Errorf("hanging up: %w", err)
	}
	if current == nil {
		return nil // it is dialling already
	}
	ctx, cancel := context.WithTimeout(ctx, hangUpTimeout)
	defer cancel()
	if err := current.hangUp(ctx); err != nil {
		return fmt.Errorf("hanging up: %w", err)
	}
	return nil
}

// hangUp waits for the other end to close the connection.
func (l *link) hangUp(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://procd"+procapi.PathHangUp, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := l.client.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
		return fmt.Errorf("procd answered %d and is still there", resp.StatusCode)
	}
	if !l.hungUp.Load() {
		return fmt.Errorf("procd is still there: %w", err)
	}
	return nil
}
