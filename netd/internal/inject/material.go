// Package inject makes a sandbox's requests carry credentials that the sandbox
// never sees.
//
// [Prepare] renders a binding with its source's opened value, and the [Prepared]
// changes one request, or says what a connection has to log in with. What cannot
// be opened, rendered or placed is an error, and a request with an error does not
// leave (F14). The package decides nothing (which request carries which credential
// is the policy's) and keeps nothing: opened values are the vault's.
package inject

import (
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/guest"
)

// Source opens what a binding names, for a sandbox that has it and for no other.
// Its secrets are not to be changed.
type Source interface {
	Secret(g guest.Guest, b *policy.Binding) (s *sealed.Secret, hit bool, err error)
	// Version is which version of a source a sandbox has; 0: none.
	Version(id sandbox.ID, gen sandbox.Generation, source string) int64
}
