package lifecycle

import (
	"context"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/noded/internal/journal"
)

// Loss is a slot that was free and ended by itself. A pool whose slots do so is
// not refilled as fast as it can be.
type Loss struct {
	PoolKey  string
	SpecHash string
	Err      error
}

// Losses delivers losses, for package slots; when nobody takes them they are
// dropped, for all that they say is "not so fast".
func (m *Manager) Losses() <-chan Loss { return m.losses }

func (m *Manager) tellLoss(inst *instance, reason string) {
	m.mu.Lock()
	loss := Loss{inst.rec.PoolKey, inst.specHash, unhealthy(reason)}
	found := inst.unseen // by this noded, and perhaps not alive before
	m.mu.Unlock()
	if found {
		return
	}
	select {
	case m.losses <- loss:
	default:
	}
}

// unhealthy is an error that a template's owner may read.
func unhealthy(reason string) error { return errdefs.New(errdefs.Unavailable, "%s", reason) }

// awaitWarm waits until the sandbox's warm processes are healthy.
func (m *Manager) awaitWarm(ctx context.Context, inst *instance) error {
	if len(m.record(inst).Spec.Warm) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.warmUpTimeout)
	defer cancel()
	status := procapi.WarmStatus{Reason: "its warm processes did not answer"}
	m.followWarm(ctx, inst, func(s procapi.WarmStatus) bool {
		status = s
		m.warmChanged(inst, s)
		return !s.Ready && !s.Failed
	})
	if status.Ready {
		return nil
	}
	return unhealthy(status.Reason)
}

// followWarm follows the warm processes over every connection of procd's, until
// tell returns false, the sandbox has ended, or ctx does.
func (m *Manager) followWarm(ctx context.Context, inst *instance, tell func(procapi.WarmStatus) bool) {
	for {
		ch, err := m.channelOf(inst)
		if err != nil {
			return // the sandbox has ended
		}
		if ch.FollowWarm(ctx, tell) == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(firstRetry):
		}
	}
}

// keepWarm follows the warm processes of a sandbox that was started or adopted for
// as long as it lives: a slot is free while they are healthy, and their failure is
// the sandbox's. Nobody asks: procd tells.
func (m *Manager) keepWarm(inst *instance) {
	m.mu.Lock()
	kept := inst.warmKept || len(inst.rec.Spec.Warm) == 0
	inst.warmKept = true
	life := inst.life
	m.mu.Unlock()
	if kept {
		return
	}
	m.background(func(ctx context.Context) {
		var giveUp *time.Timer // running while a slot is not ready
		defer func() {
			if giveUp != nil {
				giveUp.Stop()
			}
		}()
		m.followWarm(ctx, inst, func(s procapi.WarmStatus) bool {
			if s.Failed {
				m.end(ctx, inst, life, s.Reason)
				return false
			}
			m.warmChanged(inst, s)
			if giveUp != nil {
				giveUp.Stop()
				giveUp = nil
			}
			if !s.Ready {
				giveUp = time.AfterFunc(m.warmUpTimeout, func() {
					m.background(func(ctx context.Context) {
						m.endSlot(ctx, inst, s.Reason, func() bool { return !inst.ready })
					})
				})
			}
			return true
		})
	})
}

// warmChanged lets a slot be claimed, or not. One that is being created is left to
// its creation, and a claimed sandbox stays claimed.
func (m *Manager) warmChanged(inst *instance, s procapi.WarmStatus) {
	m.change(inst, func() {
		inst.unhealthy = s.Reason
		if inst.rec.State == journal.Slot && !inst.binding && inst.cancel == nil {
			inst.ready = s.Ready
		}
	})
}
