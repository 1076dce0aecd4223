// Package vault opens sealed credentials, for the proxy alone.
//
// What a sandbox' bindings name comes sealed with its policy and is opened when a
// request needs it, kept open in memory as long as its binding says, and dropped at
// once when another version, another policy, or the sandbox' end is told. A sandbox
// has its own: nothing is found by another's id, and nothing by an older generation's.
// Nothing opened is ever written, logged or answered but to who injects it.
package vault

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/guest"
)

// ErrNone is what asking ends in for a credential that a sandbox does not have. The
// request fails: there is no going without.
var ErrNone = errors.New("the sandbox has no such credential")

// Config is what a Vault needs.
type Config struct {
	Keys *sealed.Keyring
	Now  func() time.Time // nil: time.Now
}

// Vault holds what each sandbox has. It is safe for concurrent use.
type Vault struct {
	keys *sealed.Keyring
	now  func() time.Time

	mu        sync.Mutex
	sandboxes map[sandbox.ID]*holder
}

type holder struct {
	gen     sandbox.Generation
	team    string
	policy  *policy.Compiled // whose bindings name the sources
	sources map[string]*entry
}

type entry struct {
	sealed sealed.Credential

	mu     sync.Mutex     // held while it is opened: by one, and for the others who ask
	opened *sealed.Secret // nil: not open
	until  time.Time
}

// minTTL keeps a binding that wants nothing kept from having every request open its
// credential anew. A newer version counts at once, whatever is kept.
const minTTL = time.Second

// New makes a Vault.
func New(cfg Config) *Vault {
	v := &Vault{keys: cfg.Keys, now: cfg.Now, sandboxes: map[sandbox.ID]*holder{}}
	if v.now == nil {
		v.now = time.Now
	}
	return v
}

// Set replaces what a sandbox has, by its policy. What is the same stays open; an older
// generation's is ignored.
func (v *Vault) Set(g guest.Guest, list []sealed.Credential) {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.sandboxes[g.ID]
	if old != nil && old.gen > g.Gen {
		return
	}
	h := &holder{gen: g.Gen, team: g.Team, policy: g.Policy, sources: map[string]*entry{}}
	for _, c := range list {
		h.sources[c.Source] = &entry{sealed: c}
		if old == nil || old.gen != g.Gen || old.team != g.Team {
			continue
		}
		if e := old.sources[c.Source]; e != nil && e.sealed.Version == c.Version && e.sealed.Kind == c.Kind && e.sealed.Blob.Key == c.Blob.Key && bytes.Equal(e.sealed.Blob.Data, c.Blob.Data) {
			h.sources[c.Source] = e
		}
	}
	v.sandboxes[g.ID] = h
}

// Drop forgets a sandbox up to a generation (0: any).
func (v *Vault) Drop(id sandbox.ID, gen sandbox.Generation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if h := v.sandboxes[id]; h != nil && (gen == 0 || h.gen <= gen) {
		delete(v.sandboxes, id)
	}
}

// Version is which version of a source a sandbox has, 0 for none: a flow that
// carries an older one has to end.
func (v *Vault) Version(id sandbox.ID, gen sandbox.Generation, source string) int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.find(id, gen, source); e != nil {
		return e.sealed.Version
	}
	return 0
}

// Secret opens what a binding of a sandbox's policy names; hit says that it was open
// already. What it answers is not to be changed. What came with another policy is not for
// this one's servers.
func (v *Vault) Secret(g guest.Guest, b *policy.Binding) (_ *sealed.Secret, hit bool, _ error) {
	v.mu.Lock()
	e := v.find(g.ID, g.Gen, b.SourceRef)
	if e != nil && v.sandboxes[g.ID].policy != g.Policy {
		e = nil
	}
	team := ""
	if e != nil {
		team = v.sandboxes[g.ID].team
	}
	v.mu.Unlock()
	if e == nil {
		return nil, false, ErrNone
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.opened != nil && v.now().Before(e.until) {
		return e.opened, true, nil
	}
	s, err := v.keys.OpenSecret(sealed.Of{Team: team, Source: e.sealed.Source, Kind: e.sealed.Kind, Version: e.sealed.Version}, e.sealed.Blob)
	if err != nil {
		return nil, false, fmt.Errorf("source %s, version %d: %w", e.sealed.Source, e.sealed.Version, err)
	}
	e.opened, e.until = &s, v.now().Add(max(b.TTL(), minTTL))
	return e.opened, false, nil
}

// find finds what a sandbox of this generation has. The caller holds mu.
func (v *Vault) find(id sandbox.ID, gen sandbox.Generation, source string) *entry {
	h := v.sandboxes[id]
	if h == nil || h.gen != gen {
		return nil
	}
	return h.sources[source]
}
