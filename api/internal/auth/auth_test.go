package auth

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

func testSigner(t *testing.T) *Signer {
	t.Helper()
	s, err := NewSigner(bytes.Repeat([]byte{7}, signingBytes))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// forge makes an HS256 token from any header and payload with the right key.
func forge(key []byte, header, payload map[string]any) string {
	enc := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := enc(header) + "." + enc(payload)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestA05_OnlyOurTokensHold(t *testing.T) {
	t.Parallel()
	s := testSigner(t)
	user, team := uuid.New(), uuid.New()
	a := NewAuthenticator(s, oneUser{user, team})
	good, expires, err := s.Sign(user, []Grant{{TeamID: team, TeamRole: RoleAdmin, HomeRegionID: "local"}}, true)
	if err != nil || time.Until(expires) > accessTokenLife || time.Until(expires) < accessTokenLife-time.Minute {
		t.Fatalf("expires %v: %v", expires, err)
	}
	if _, known, err := a.Known(good); known || err != nil {
		t.Fatalf("a user whom nobody looked up is not known: %v %v", known, err)
	}
	if _, err := a.Lookup(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	id, known, err := a.Known(good)
	if err != nil || !known || id.UserID != user || !id.IsAdmin || len(id.Grants) != 1 || id.Grants[0].TeamID != team || !id.Expires.Equal(expires.Truncate(time.Second)) {
		t.Fatalf("%+v %v: %v", id, known, err)
	}

	now := time.Now().Unix()
	header := map[string]any{"alg": "HS256", "typ": "JWT"}
	payload := func(change func(map[string]any)) map[string]any {
		p := map[string]any{
			"iss": tokenIssuer, "aud": tokenAudience, "sub": user.String(), "iat": now, "nbf": now, "exp": now + 600,
			"token_type": "access", "user_id": user.String(), "team_grants": []any{}, "is_admin": false,
		}
		change(p)
		return p
	}
	set := func(k string, v any) map[string]any { return payload(func(p map[string]any) { p[k] = v }) }
	drop := func(k string) map[string]any { return payload(func(p map[string]any) { delete(p, k) }) }
	if _, _, err := a.Known(forge(s.key, header, payload(func(map[string]any) {}))); err != nil {
		t.Fatalf("the forged token that is right must hold, or this test proves nothing: %v", err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rs256, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims(payload(func(map[string]any) {}))).SignedString(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims(payload(func(map[string]any) {}))).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"empty":              "",
		"garbage":            "a.b.c",
		"alg none":           none,
		"alg RS256":          rs256,
		"alg HS512":          forge(s.key, map[string]any{"alg": "HS512"}, payload(func(map[string]any) {})),
		"other key":          forge(bytes.Repeat([]byte{8}, 32), header, payload(func(map[string]any) {})),
		"kid path":           forge([]byte(""), map[string]any{"alg": "HS256", "kid": "/dev/null"}, payload(func(map[string]any) {})),
		"wrong aud":          forge(s.key, header, set("aud", "other")),
		"wrong iss":          forge(s.key, header, set("iss", "other")),
		"no exp":             forge(s.key, header, drop("exp")),
		"expired":            forge(s.key, header, set("exp", now-60)),
		"future nbf":         forge(s.key, header, set("nbf", now+600)),
		"past the leeway":    forge(s.key, header, set("exp", now-31)),
		"before the leeway":  forge(s.key, header, set("nbf", now+40)),
		"future iat":         forge(s.key, header, set("iat", now+600)),
		"refresh as access":  forge(s.key, header, set("token_type", "refresh")),
		"no user":            forge(s.key, header, drop("user_id")),
		"user of wrong type": forge(s.key, header, set("user_id", 7)),
		"nested":             forge(s.key, map[string]any{"alg": "HS256", "cty": "JWT"}, map[string]any{"token": good}),
		"truncated":          good[:len(good)-2],
		"huge":               good + strings.Repeat("A", maxTokenBytes),
		"trailing part":      good + ".x",
	} {
		if id, known, err := a.Known(token); !known || !errdefs.Is(err, errdefs.Unauthenticated) {
			t.Errorf("%s: %+v %v %v", name, id, known, err)
		}
		if id, err := a.Lookup(t.Context(), token); !errdefs.Is(err, errdefs.Unauthenticated) {
			t.Errorf("%s: %+v %v", name, id, err)
		}
		if a.MayBeOurs(token) {
			t.Errorf("%s is taken for a token of ours", name)
		}
	}
}

// oneUser is a database with one user, an admin with one team.
type oneUser struct{ user, team uuid.UUID }

func (o oneUser) APIKeyByPrefix(context.Context, string) (store.APIKey, error) {
	return store.APIKey{}, errdefs.New(errdefs.NotFound, "api key not found")
}

func (o oneUser) TouchAPIKey(context.Context, uuid.UUID, uuid.UUID) error { return nil }

func (o oneUser) User(_ context.Context, id uuid.UUID) (store.User, error) {
	if id != o.user {
		return store.User{}, errdefs.New(errdefs.NotFound, "user not found")
	}
	return store.User{ID: id, IsAdmin: true}, nil
}

func (o oneUser) Grants(context.Context, uuid.UUID) ([]store.Grant, error) {
	return []store.Grant{{TeamID: o.team, Role: RoleAdmin, Owner: true}}, nil
}

func TestTeamSelection(t *testing.T) {
	t.Parallel()
	t1, t2, other := uuid.New(), uuid.New(), uuid.New()
	one := Identity{UserID: uuid.New(), Grants: []Grant{{TeamID: t1, TeamRole: RoleViewer}}}
	two := Identity{UserID: uuid.New(), Grants: []Grant{{TeamID: t1, TeamRole: RoleViewer}, {TeamID: t2, TeamRole: RoleAdmin}}}
	key := Identity{UserID: uuid.New(), KeyID: uuid.New(), key: keyIdentity{team: t1, roles: []string{RoleDeveloper}}}
	platform := Identity{UserID: uuid.New(), KeyID: uuid.New(), key: keyIdentity{team: t1, roles: []string{RoleAdmin}, platform: true}}
	for _, c := range []struct {
		name   string
		id     Identity
		header string
		team   uuid.UUID
		kind   errdefs.Kind
	}{
		{"only team", one, "", t1, 0},
		{"only team, named", one, t1.String(), t1, 0},
		{"foreign team", one, other.String(), uuid.Nil, errdefs.PermissionDenied},
		{"two teams, none named", two, "", uuid.Nil, errdefs.InvalidArgument},
		{"two teams, one named", two, t2.String(), t2, 0},
		{"not an id", one, "../etc", uuid.Nil, errdefs.InvalidArgument},
		{"key", key, "", t1, 0},
		{"key, its team", key, t1.String(), t1, 0},
		{"key, another team", key, t2.String(), uuid.Nil, errdefs.Unauthenticated},
		{"platform key, another team", platform, t2.String(), t2, 0},
	} {
		p, err := c.id.InTeam(c.header)
		if c.team == uuid.Nil {
			if !errdefs.Is(err, c.kind) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || p.TeamID != c.team || p.UserID != c.id.UserID {
			t.Errorf("%s: %+v %v", c.name, p, err)
		}
	}
	if p, _ := two.InTeam(t1.String()); p.Can(SandboxCreate) || !p.Can(SandboxRead) {
		t.Error("the role in the chosen team must decide")
	}
}

func TestRolesGrantWhatTheContractSays(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		role string
		can  []Permission
		not  []Permission
	}{
		{RoleAdmin, []Permission{SandboxCreate, TemplateDelete, APIKeyManage, "anything:later"}, nil},
		{RoleDeveloper, []Permission{SandboxCreate, SandboxRead, SandboxWrite, SandboxDelete, TemplateRead}, []Permission{TemplateCreate, TemplateWrite, TemplateDelete, APIKeyManage}},
		{RoleBuilder, []Permission{TemplateRead, "registry:write"}, []Permission{SandboxRead, TemplateCreate}},
		{RoleViewer, []Permission{SandboxRead, TemplateRead}, []Permission{SandboxCreate, SandboxWrite, SandboxDelete, APIKeyManage}},
		{"stranger", nil, []Permission{SandboxRead, everything}},
	} {
		p := Principal{roles: []string{c.role}}
		for _, perm := range c.can {
			if !p.Can(perm) {
				t.Errorf("%s must have %s", c.role, perm)
			}
		}
		for _, perm := range c.not {
			if p.Can(perm) {
				t.Errorf("%s must not have %s", c.role, perm)
			}
		}
	}
	// The contract's table, whole.
	for role, want := range map[string]string{
		RoleAdmin: "*",
		RoleDeveloper: "credentialsource:delete credentialsource:read credentialsource:write quota:read registry:write " +
			"sandbox:create sandbox:delete sandbox:read sandbox:write sandboxvolume:create sandboxvolume:delete sandboxvolume:read sandboxvolume:write " +
			"sandboxvolumefile:read sandboxvolumefile:write template:read",
		RoleBuilder: "registry:write template:read",
		RoleViewer:  "credentialsource:read quota:read sandbox:read sandboxvolume:read sandboxvolumefile:read template:read",
	} {
		var words []string
		for _, p := range Permissions([]string{role}) {
			words = append(words, string(p))
		}
		if got := strings.Join(words, " "); got != want {
			t.Errorf("%s has %s, want %s", role, got, want)
		}
	}
	got := Permissions([]string{RoleBuilder, RoleViewer, RoleBuilder})
	if !slices.IsSorted(got) || len(got) != 7 {
		t.Errorf("%v", got)
	}
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	h := NewHasher()
	phc, err := h.Hash(t.Context(), "correct horse")
	if err != nil || !strings.HasPrefix(phc, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Fatalf("%s: %v", phc, err)
	}
	for _, c := range []struct {
		password, phc string
		want          bool
	}{
		{"correct horse", phc, true},
		{"correct horsf", phc, false},
		{"", phc, false},
		{"correct horse", "", false},                    // nobody
		{strings.Repeat("x", 1<<20), phc, false},        // absurd, and cheap to refuse
		{"\x00\x00\x00\x00\x00\x00\x00\x00", "", false}, // no password matches the decoy
	} {
		got, err := h.Verify(t.Context(), c.password, c.phc)
		if err != nil || got != c.want {
			t.Errorf("%.20q: %v %v", c.password, got, err)
		}
	}
	for _, bad := range []string{"x", "$argon2i$v=19$m=1,t=1,p=1$AA$AA", "$argon2id$v=18$m=1,t=1,p=1$AA$AA", "$argon2id$v=19$m=1,t=1,p=1$AA$"} {
		if ok, err := h.Verify(t.Context(), "p", bad); ok || err == nil {
			t.Errorf("%q: %v %v", bad, ok, err)
		}
	}
	if CheckPassword("1234567") == nil || CheckPassword("12345678") != nil {
		t.Error("8 bytes are the floor")
	}
}

func TestHashingIsBounded(t *testing.T) {
	t.Parallel()
	h := NewHasher()
	if err := h.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Hash(ctx, "12345678"); !errdefs.Is(err, errdefs.Exhausted) {
		t.Fatalf("a second hash must wait for its turn or give up: %v", err)
	}
	waited := make(chan error)
	for range hashesWaiting {
		go func() {
			_, err := h.Verify(t.Context(), "12345678", "")
			waited <- err
		}()
	}
	for len(h.queue) < cap(h.queue) { // until all of them are in it
		runtime.Gosched()
	}
	if _, err := h.Verify(t.Context(), "12345678", ""); !errdefs.Is(err, errdefs.Exhausted) || errdefs.From(err).RetryAfter <= 0 {
		t.Errorf("beyond the queue: %v", err)
	}
	h.leave()
	for range hashesWaiting {
		if err := <-waited; err != nil {
			t.Errorf("who waited must have a turn: %v", err)
		}
	}
	if len(h.queue) != 0 || len(h.turn) != 0 {
		t.Errorf("%d in the queue, %d at work, and nobody is there", len(h.queue), len(h.turn))
	}
}

func TestKeyFileIsMadeOnceAndPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	keys := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			k, err := LoadKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = k
		})
	}
	wg.Wait()
	for _, k := range keys {
		if len(k) != signingBytes || !bytes.Equal(k, keys[0]) {
			t.Fatal("every process must end up with the same key")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".key-*")); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(path); err == nil {
		t.Fatal("a key that others can read must be refused")
	}
}
