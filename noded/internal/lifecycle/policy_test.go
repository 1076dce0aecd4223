package lifecycle

import (
	"encoding/json"
	"strings"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
	"s0.run/noded/internal/journal"
)

func bound(sources ...string) json.RawMessage {
	p := policy.Policy{Mode: policy.BlockAll}
	for _, s := range sources {
		p.CredentialBindings = append(p.CredentialBindings, policy.Binding{Ref: s, SourceRef: s, Projection: policy.Projection{Type: policy.UsernamePassword}})
	}
	data, err := p.JSON()
	if err != nil {
		panic(err)
	}
	return data
}

func credential(source string, version int64) sealed.Credential {
	return sealed.Credential{Source: source, Version: version, Blob: sealed.Blob{Key: "k", Data: []byte{byte(version)}}}
}

// News of policies and of credentials may overtake each other: the newest version
// stays, and what no binding names goes.
func TestF12_NewsOfCredentialsAndPoliciesMayComeInAnyOrder(t *testing.T) {
	t.Parallel()
	show := func(n *journal.Network) string {
		if n == nil {
			return "none"
		}
		var s strings.Builder
		for _, c := range n.Credentials {
			s.WriteString(c.Source + string(rune('0'+c.Version)) + " ")
		}
		return s.String()
	}
	has := &journal.Network{Policy: bound("a", "b"), Credentials: []sealed.Credential{credential("a", 1), credential("b", 1)}}
	for _, c := range []struct {
		what   string
		old    *journal.Network
		change journal.Network
		want   string
	}{
		{"a newer version", has, journal.Network{Credentials: []sealed.Credential{credential("a", 2)}}, "a2 b1 "},
		{"an older version", has, journal.Network{Credentials: []sealed.Credential{credential("a", 0)}}, "a1 b1 "},
		{"a source that is not bound", has, journal.Network{Credentials: []sealed.Credential{credential("c", 9)}}, "a1 b1 "},
		{"a policy with an older version", has, journal.Network{Policy: bound("a"), Credentials: []sealed.Credential{credential("a", 0)}}, "a1 "},
		{"a policy with another source", has, journal.Network{Policy: bound("c"), Credentials: []sealed.Credential{credential("c", 1)}}, "c1 "},
		{"a policy that clears", has, journal.Network{Policy: bound()}, ""},
		{"a first policy", nil, journal.Network{Policy: bound("a"), Credentials: []sealed.Credential{credential("a", 1)}}, "a1 "},
		{"news without a policy", nil, journal.Network{Credentials: []sealed.Credential{credential("a", 1)}}, "none"},
	} {
		got := withNetwork(c.old, c.change)
		if show(got) != c.want {
			t.Errorf("%s: %s, want %s", c.what, show(got), c.want)
		}
		if got != nil && c.change.Policy == nil && string(got.Policy) != string(has.Policy) {
			t.Errorf("%s: the policy is %s", c.what, got.Policy)
		}
	}
}

func TestNetworkThatCannotBeEnforcedIsRefused(t *testing.T) {
	t.Parallel()
	for what, n := range map[string]*journal.Network{
		"no policy":         {},
		"no JSON":           {Policy: []byte(`{`)},
		"an unknown field":  {Policy: []byte(`{"mode":"allow-all","x":1}`)},
		"an invalid policy": {Policy: []byte(`{"mode":"sometimes"}`)},
		"a huge credential": {Policy: bound("a"), Credentials: []sealed.Credential{{Source: "a", Blob: sealed.Blob{Data: make([]byte, sealed.MaxBlob+1)}}}},
		"a bad source":      {Policy: bound("a"), Credentials: []sealed.Credential{{Source: "../a"}}},
		"many credentials":  {Policy: bound("a"), Credentials: make([]sealed.Credential, policy.MaxBindings+1)},
	} {
		if err := validateNetwork(n); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := validateNetwork(nil); err != nil {
		t.Error(err)
	}
	if err := validateNetworkChange(&journal.Network{Credentials: []sealed.Credential{credential("a", 1)}}); err != nil {
		t.Errorf("news of credentials: %v", err)
	}
}
