package lifecycle

import (
	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
	"s0.run/noded/internal/journal"
)

// maxCredentials bounds what one sandbox's rules can carry.
const maxCredentials = policy.MaxBindings

// validateNetwork refuses a policy that could not be put into force: nothing may
// become durable that is not enforced as it is written.
func validateNetwork(n *journal.Network) error {
	if n == nil {
		return nil
	}
	p, err := policy.Parse(n.Policy)
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		return errdefs.New(errdefs.InvalidArgument, "network policy: %v", err)
	}
	if len(n.Credentials) > maxCredentials {
		return errdefs.New(errdefs.InvalidArgument, "network policy: %d credentials, at most %d", len(n.Credentials), maxCredentials)
	}
	for _, c := range n.Credentials {
		if !policy.ValidRef(c.Source) || len(c.Blob.Data) > sealed.MaxBlob {
			return errdefs.New(errdefs.InvalidArgument, "network policy: a credential that is none")
		}
	}
	return nil
}
