package noop

import (
	"context"

	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/netns"
)

// Egress takes every policy: simulated sandboxes reach nothing anyway.
type Egress struct{}

func (Egress) Available() bool                                                       { return true }
func (Egress) Attach(context.Context, netns.Slot, sandbox.Generation)                {}
func (Egress) Detach(context.Context, sandbox.ID)                                    {}
func (Egress) SetPolicy(context.Context, sandbox.ID, string, *journal.Network) error { return nil }
