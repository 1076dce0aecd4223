package lifecycle

import (
	"slices"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
	"s0.run/noded/internal/journal"
)

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
	return validateCredentials(n.Credentials)
}

// validateNetworkChange is validateNetwork for a change, which may be of credentials
// alone.
func validateNetworkChange(n *journal.Network) error {
	if n != nil && len(n.Policy) == 0 {
		return validateCredentials(n.Credentials)
	}
	return validateNetwork(n)
}

func validateCredentials(list []sealed.Credential) error {
	if len(list) > policy.MaxBindings {
		return errdefs.New(errdefs.InvalidArgument, "network policy: %d credentials, at most %d", len(list), policy.MaxBindings)
	}
	for _, c := range list {
		if !policy.ValidRef(c.Source) || len(c.Blob.Data) > sealed.MaxBlob {
			return errdefs.New(errdefs.InvalidArgument, "network policy: a credential that is none")
		}
	}
	return nil
}

// withNetwork is what a sandbox has after a change: of each source that its bindings
// name the newest version that was told, for news of sources and of policies may
// overtake each other.
func withNetwork(old *journal.Network, change journal.Network) *journal.Network {
	next := journal.Network{Policy: change.Policy}
	var told []sealed.Credential
	if old != nil {
		told = old.Credentials
		if len(next.Policy) == 0 {
			next.Policy = old.Policy
		}
	}
	if len(next.Policy) == 0 {
		return old // it has no bindings that news could be about
	}
	p, err := policy.Parse(next.Policy)
	if err != nil {
		return old // it was validated before it became durable
	}
	for _, c := range slices.Concat(told, change.Credentials) {
		if !slices.ContainsFunc(p.CredentialBindings, func(b policy.Binding) bool { return b.SourceRef == c.Source }) {
			continue
		}
		i := slices.IndexFunc(next.Credentials, func(has sealed.Credential) bool { return has.Source == c.Source })
		switch {
		case i < 0:
			next.Credentials = append(next.Credentials, c)
		case next.Credentials[i].Version <= c.Version:
			next.Credentials[i] = c
		}
	}
	return &next
}
