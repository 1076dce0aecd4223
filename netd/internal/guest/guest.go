// Package guest names the sandbox that a packet or a connection came from.
//
// It is a word between the data plane, which knows sandboxes by their addresses,
// and the proxy and the resolver, which ask it. It holds no state.
package guest

import (
	"log/slog"
	"net/netip"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
)

// Guest is a sandbox as it is at one moment. A policy that changes is another
// value under the same id and generation.
type Guest struct {
	ID     sandbox.ID
	Gen    sandbox.Generation
	Team   string
	Policy *policy.Compiled
}

// Lookup finds the sandbox that has an address. Addresses are checked against
// forgery before anything gets here (E16, E19); one that nobody has is refused. One
// that has no policy yet is named all the same: that is known to be nobody's.
type Lookup func(netip.Addr) (Guest, bool)

// LogValue is a guest in logs.
func (g Guest) LogValue() slog.Value {
	return slog.GroupValue(slog.String("sandbox", string(g.ID)), slog.Uint64("gen", uint64(g.Gen)), slog.String("team", g.Team))
}
