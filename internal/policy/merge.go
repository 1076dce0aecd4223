package policy

import "slices"

// Merge lays a claim's policy over its template's: the mode with the lists that are
// exceptions to it, rules by name (what is new comes before the template's, what has
// one's name takes its place), bindings by ref. Either may be nil, and the answer
// is when both are. The outcome has to be validated: what does not fit together is
// refused there, never left out here.
func Merge(template, claim *Policy) *Policy {
	if template == nil || claim == nil {
		if claim != nil {
			return claim
		}
		return template
	}
	merged := Policy{
		Mode:               claim.Mode,
		Enforcement:        either(claim.Enforcement, template.Enforcement),
		CredentialBindings: byName(template.CredentialBindings, claim.CredentialBindings, func(b Binding) string { return b.Ref }),
	}
	if template.Egress == nil && claim.Egress == nil {
		return &merged
	}
	t, c := template.egress(), claim.egress()
	if template.Mode != claim.Mode {
		t = &Egress{TrafficRules: t.TrafficRules, ProtocolRules: t.ProtocolRules, CredentialRules: t.CredentialRules, Proxy: t.Proxy}
	}
	merged.Egress = &Egress{
		AllowedCIDRs:    list(c.AllowedCIDRs, t.AllowedCIDRs),
		AllowedDomains:  list(c.AllowedDomains, t.AllowedDomains),
		AllowedPorts:    list(c.AllowedPorts, t.AllowedPorts),
		DeniedCIDRs:     list(c.DeniedCIDRs, t.DeniedCIDRs),
		DeniedDomains:   list(c.DeniedDomains, t.DeniedDomains),
		DeniedPorts:     list(c.DeniedPorts, t.DeniedPorts),
		TrafficRules:    byName(t.TrafficRules, c.TrafficRules, func(r TrafficRule) string { return r.Name }),
		ProtocolRules:   byName(t.ProtocolRules, c.ProtocolRules, func(r ProtocolRule) string { return r.Name }),
		CredentialRules: byName(t.CredentialRules, c.CredentialRules, func(r CredentialRule) string { return r.Name }),
		Proxy:           c.Proxy,
	}
	if merged.Egress.Proxy == nil {
		merged.Egress.Proxy = t.Proxy
	}
	return &merged
}

func either(first, second string) string {
	if first != "" {
		return first
	}
	return second
}

// list is the claim's list when it has one.
func list[T any](claim, template []T) []T {
	if claim != nil {
		return claim
	}
	return template
}

func byName[T any](template, claim []T, name func(T) string) []T {
	if claim == nil {
		return template
	}
	merged := slices.Clone(template)
	var fresh []T
	for _, r := range claim {
		at := -1
		if name(r) != "" {
			at = slices.IndexFunc(merged, func(t T) bool { return name(t) == name(r) })
		}
		if at < 0 {
			fresh = append(fresh, r)
			continue
		}
		merged[at] = r
	}
	return append(fresh, merged...)
}
