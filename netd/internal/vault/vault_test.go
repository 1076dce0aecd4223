package vault

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/guest"
)

const (
	one = sandbox.ID("c-aaaaaaaaaaaaaaaaaaaaaaaaaa")
	two = sandbox.ID("c-bbbbbbbbbbbbbbbbbbbbbbbbbb")
)

type bundle struct {
	t      *testing.T
	public *sealed.PublicKey
	vault  *Vault
	now    time.Time
}

func setup(t *testing.T) *bundle {
	dir := filepath.Join(t.TempDir(), "keys")
	file, err := sealed.Ensure(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{t: t, now: time.Unix(1e9, 0)}
	if b.public, err = sealed.ReadPublic(file); err != nil {
		t.Fatal(err)
	}
	ring, err := sealed.ReadKeyring(dir)
	if err != nil {
		t.Fatal(err)
	}
	b.vault = New(Config{Keys: ring, Now: func() time.Time { return b.now }})
	return b
}

func (b *bundle) seal(team, token string, version int64) sealed.Credential {
	b.t.Helper()
	blob, err := b.public.SealSecret(sealed.Of{Team: team, Source: "s", Kind: policy.StaticHeaders, Version: version}, sealed.Secret{Values: map[string]string{"token": token}})
	if err != nil {
		b.t.Fatal(err)
	}
	return sealed.Credential{Source: "s", Kind: policy.StaticHeaders, Version: version, Blob: blob}
}

func (b *bundle) token(id sandbox.ID, gen sandbox.Generation) (string, bool, error) {
	s, hit, err := b.vault.Secret(guest.Guest{ID: id, Gen: gen}, &policy.Binding{SourceRef: "s", CachePolicy: &policy.CachePolicy{TTL: "1m"}})
	if err != nil {
		return "", hit, err
	}
	return s.Values["token"], hit, nil
}

func (b *bundle) want(id sandbox.ID, gen sandbox.Generation, token string, hit bool) {
	b.t.Helper()
	if got, gotHit, err := b.token(id, gen); err != nil || got != token || gotHit != hit {
		b.t.Errorf("%s of generation %d has %q (hit %v), %v; want %q (hit %v)", id, gen, got, gotHit, err, token, hit)
	}
}

func (b *bundle) wantNone(id sandbox.ID, gen sandbox.Generation, why error) {
	b.t.Helper()
	if got, _, err := b.token(id, gen); !errors.Is(err, why) {
		b.t.Errorf("%s of generation %d has %q, %v; want %v", id, gen, got, err, why)
	}
}

func TestF07_EachSandboxHasItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.vault.Set(guest.Guest{ID: one, Gen: 2, Team: "team"}, []sealed.Credential{b.seal("team", "alpha", 1)})
	b.want(one, 2, "alpha", false)
	b.want(one, 2, "alpha", true)
	b.wantNone(two, 2, ErrNone)
	b.wantNone(one, 1, ErrNone)
	b.wantNone(one, 3, ErrNone)
	b.vault.Set(guest.Guest{ID: two, Gen: 1, Team: "other"}, []sealed.Credential{b.seal("team", "alpha", 1)}) // another team's blob
	b.wantNone(two, 1, sealed.ErrOpen)
	b.vault.Set(guest.Guest{ID: one, Gen: 1, Team: "team"}, nil) // late news of an older life
	b.want(one, 2, "alpha", true)
	b.vault.Set(guest.Guest{ID: one, Gen: 3, Team: "team"}, nil) // a new life inherits nothing
	b.wantNone(one, 2, ErrNone)
	b.wantNone(one, 3, ErrNone)
}

func TestF12_ANewVersionTakesTheOldOnesPlaceAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.seal("team", "old", 1)
	b.vault.Set(guest.Guest{ID: one, Gen: 1, Team: "team"}, []sealed.Credential{first})
	b.want(one, 1, "old", false)
	b.vault.Set(guest.Guest{ID: one, Gen: 1, Team: "team"}, []sealed.Credential{first})
	b.want(one, 1, "old", true) // the same stays open
	b.vault.Set(guest.Guest{ID: one, Gen: 1, Team: "team"}, []sealed.Credential{b.seal("team", "made anew", 1)})
	b.want(one, 1, "made anew", false) // a source that was deleted counts its versions again
	b.vault.Set(guest.Guest{ID: one, Gen: 1, Team: "team"}, []sealed.Credential{b.seal("team", "new", 2)})
	if got := b.vault.Version(one, 1, "s"); got != 2 {
		t.Errorf("version %d", got)
	}
	b.want(one, 1, "new", false)
	b.now = b.now.Add(time.Minute)
	b.want(one, 1, "new", false) // its time is over
	b.vault.Drop(one, 1)
	b.wantNone(one, 1, ErrNone)
	if got := b.vault.Version(one, 1, "s"); got != 0 {
		t.Errorf("version %d of nothing", got)
	}
}

// F12: what came with one policy does not go where another one has it go.
func TestF12_ASecretGoesWithItsPolicy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	before, after := guest.Guest{ID: one, Gen: 1, Team: "team", Policy: new(policy.Compiled)}, guest.Guest{ID: one, Gen: 1, Team: "team", Policy: new(policy.Compiled)}
	b.vault.Set(before, []sealed.Credential{b.seal("team", "old", 1)})
	if _, _, err := b.vault.Secret(after, &policy.Binding{SourceRef: "s"}); !errors.Is(err, ErrNone) {
		t.Errorf("the next policy has what came with the last: %v", err)
	}
	b.vault.Set(after, []sealed.Credential{b.seal("team", "new", 2)})
	if _, _, err := b.vault.Secret(before, &policy.Binding{SourceRef: "s"}); !errors.Is(err, ErrNone) {
		t.Errorf("the last policy has what came with the next: %v", err)
	}
	if s, _, err := b.vault.Secret(after, &policy.Binding{SourceRef: "s"}); err != nil || s.Values["token"] != "new" {
		t.Errorf("%v, %v", s, err)
	}
}

func TestF14_WhatDoesNotOpenIsAnError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.seal("team", "x", 1)
	c.Version = 2
	b.vault.Set(guest.Guest{ID: one, Gen: 1, Team: "team"}, []sealed.Credential{c})
	b.wantNone(one, 1, sealed.ErrOpen)
	c = b.seal("team", "x", 1)
	c.Blob.Key = "another"
	b.vault.Set(guest.Guest{ID: one, Gen: 1, Team: "team"}, []sealed.Credential{c})
	b.wantNone(one, 1, sealed.ErrOpen)
}

// D08: a binding that wants nothing kept has not every request open its credential.
func TestD08_WhatIsOpenStaysSoForAMoment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.vault.Set(guest.Guest{ID: one, Gen: 1, Team: "team"}, []sealed.Credential{b.seal("team", "x", 1)})
	ask := func() (hit bool) {
		t.Helper()
		_, hit, err := b.vault.Secret(guest.Guest{ID: one, Gen: 1}, &policy.Binding{SourceRef: "s", CachePolicy: &policy.CachePolicy{TTL: "1ns"}})
		if err != nil {
			t.Fatal(err)
		}
		return hit
	}
	if ask() || !ask() {
		t.Error("each request opens it")
	}
	if b.now = b.now.Add(minTTL); ask() {
		t.Error("it is kept for longer than it may")
	}
}
