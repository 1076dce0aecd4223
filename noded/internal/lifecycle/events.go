package lifecycle

import (
	"context"
	"strings"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/noded/internal/journal"
)

// keepEvents makes procd keep events if the sandbox's claim wants them. That
// happens before the claim is answered: what its tenant does first is told, too.
func (m *Manager) keepEvents(ctx context.Context, inst *instance, rec journal.Record) error {
	if rec.Claim == nil || rec.Claim.Events == nil {
		return nil
	}
	ch, err := m.channelOf(inst)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, envTimeout)
	defer cancel()
	return ch.KeepEvents(ctx, procapi.EventsConfig{WatchDir: rec.Claim.Events.WatchDir})
}

func validateEvents(e *journal.Events) error {
	if e != nil && (len(e.WatchDir) > procapi.MaxWatchDir || strings.ContainsRune(e.WatchDir, 0)) {
		return errdefs.New(errdefs.InvalidArgument, "claim: watch_dir of more than %d bytes, or with a NUL", procapi.MaxWatchDir)
	}
	return nil
}
