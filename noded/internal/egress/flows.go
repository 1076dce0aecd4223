package egress

import (
	"context"
	"errors"

	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
)

// TakeFlows has netd forget the records before a mark and answers those behind it. They
// stay netd's until then: a restart of this process loses none.
func (a *Agent) TakeFlows(ctx context.Context, stored netdapi.Mark) (netdapi.Events, error) {
	if !a.up.Load() {
		return netdapi.Events{}, ErrUnavailable
	}
	e, err := a.client.TakeEvents(ctx, stored)
	if errors.Is(err, netdapi.ErrDown) {
		err = ErrUnavailable.WithCause(err)
	}
	return e, err
}

// Counters are what netd counted of every sandbox; none while it is away.
func (a *Agent) Counters(ctx context.Context) (map[sandbox.ID]netdapi.Counters, error) {
	if !a.up.Load() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.client.Counters(ctx)
}
