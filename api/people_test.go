package api_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
)

// as sends a request in a caller's name and checks the status.
func (w *walk) as(c caller, method, path, body string) answer {
	w.t.Helper()
	r := request{method: method, path: path}
	if body != "" {
		r.body = body
	}
	return w.send(c.sends(r))
}

func TestRegistration(t *testing.T) {
	t.Parallel()
	i := start(t)
	body := map[string]any{"email": "ada@example.com", "password": "12345678", "name": "Ada"}
	register := func(i *instance, change func(map[string]any)) answer {
		b := map[string]any{}
		for k, v := range body {
			b[k] = v
		}
		change(b)
		return i.send(request{method: "POST", path: "/auth/register", body: b})
	}
	same := func(map[string]any) {}
	if a := register(i, same).refused(403, "forbidden"); !strings.Contains(a.msg, "operator") {
		t.Errorf("what to do? %s", a.msg)
	}

	i = start(t, open)
	for name, change := range map[string]func(map[string]any){
		"short password": func(b map[string]any) { b["password"] = "1234567" },
		"no email":       func(b map[string]any) { delete(b, "email") },
		"a name for an email, too": func(b map[string]any) {
			b["email"] = "Ada <ada@example.com>"
		},
		"no address":     func(b map[string]any) { b["email"] = "ada" },
		"empty name":     func(b map[string]any) { b["name"] = " " },
		"A18: turned":    func(b map[string]any) { b["name"] = "A\u202eda" },
		"A18: escape":    func(b map[string]any) { b["name"] = "A\x1b[2J" },
		"another region": func(b map[string]any) { b["home_region_id"] = "mars" },
	} {
		if a := register(i, change); a.status != 400 {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	var s struct {
		AccessToken string `json:"access_token"`
		User        struct {
			ID            string
			EmailVerified bool    `json:"email_verified"`
			IsAdmin       bool    `json:"is_admin"`
			DefaultTeamID *string `json:"default_team_id"`
		}
	}
	register(i, func(b map[string]any) { b["home_region_id"] = nil }).want(201, &s)
	if s.User.EmailVerified || s.User.IsAdmin || s.User.DefaultTeamID == nil {
		t.Errorf("%+v", s.User)
	}
	register(i, func(b map[string]any) { b["email"] = "ADA@example.com" }).refused(409, "conflict")
	i.send(request{method: "POST", path: "/auth/login", body: map[string]string{"email": "ada@example.com", "password": "12345678"}}).want(200, nil)
	var me struct{ Name string }
	i.send(request{method: "GET", path: "/users/me", token: s.AccessToken}).want(200, &me)
	if me.Name != "Ada" {
		t.Errorf("%+v", me)
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: s.AccessToken, body: `{"template":"default"}`}).want(201, nil)
}

func TestUsersAndIdentities(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	me := w.ours.people["owner"]
	var u struct {
		Name      string
		AvatarURL *string `json:"avatar_url"`
	}
	w.as(me, "PUT", "/users/me", `{"name":"Ada","avatar_url":"https://example.com/a.png"}`).want(200, &u)
	if u.Name != "Ada" || u.AvatarURL == nil || *u.AvatarURL != "https://example.com/a.png" {
		t.Errorf("%+v", u)
	}
	for _, bad := range []string{`{"avatar_url":"javascript:alert(1)"}`, `{"avatar_url":"http://example.com/"}`, `{"avatar_url":"https://u:p@example.com/"}`, `{"name":""}`, `{"name":"a\u0000b"}`} {
		w.as(me, "PUT", "/users/me", bad).refused(400, "bad_request")
	}
	var none struct {
		AvatarURL *string `json:"avatar_url"`
	}
	w.as(me, "PUT", "/users/me", `{"avatar_url":""}`).want(200, &none)
	if none.AvatarURL != nil {
		t.Errorf("%+v", none)
	}

	// A password is a way to sign in like another, and the last one stays.
	password := w.ours.user(me)
	list := func() (ids []string) {
		var l struct {
			Identities []struct {
				ID, Provider string
				CreatedAt    int64 `json:"created_at"`
			}
		}
		w.as(me, "GET", "/users/me/identities", "").want(200, &l)
		for _, i := range l.Identities {
			if i.CreatedAt == 0 || (i.ID == password) != (i.Provider == "builtin") {
				t.Errorf("%+v", i)
			}
			ids = append(ids, i.ID)
		}
		return ids
	}
	if ids := list(); len(ids) != 1 || ids[0] != password {
		t.Fatalf("%v", ids)
	}
	w.as(me, "DELETE", "/users/me/identities/"+password, "").refused(400, "bad_request")
	other := w.ours.identity(password)
	var ended atomic.Int32
	var wg sync.WaitGroup
	for _, id := range []string{password, other} { // at once: one of them stays
		wg.Go(func() {
			if a := w.as(me, "DELETE", "/users/me/identities/"+id, ""); a.status == 200 {
				ended.Add(1)
			} else if a.status != 400 {
				t.Errorf("%d %s", a.status, a.raw)
			}
		})
	}
	wg.Wait()
	if ended.Load() != 1 || len(list()) != 1 {
		t.Errorf("%d of two were deleted, %d are left", ended.Load(), len(list()))
	}
}

func TestSSHKeys(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	me, colleague := w.ours.people["viewer"], w.ours.people["developer"]
	key := newSSHKey(t)
	add := func(c caller, name, key string) answer {
		return w.as(c, "POST", "/users/me/ssh-keys", fmt.Sprintf(`{"name":%q,"public_key":%q}`, name, key))
	}
	var k struct {
		ID          string
		PublicKey   string `json:"public_key"`
		KeyType     string `json:"key_type"`
		Fingerprint string `json:"fingerprint_sha256"`
		Comment     *string
	}
	add(me, "laptop", key+" me@laptop").want(201, &k)
	if k.PublicKey != key || k.KeyType != "ssh-ed25519" || !strings.HasPrefix(k.Fingerprint, "SHA256:") || k.Comment == nil || *k.Comment != "me@laptop" {
		t.Errorf("%+v", k)
	}
	add(me, "again", key).refused(409, "conflict")
	add(colleague, "mine too", key).refused(409, "conflict")
	add(w.theirs.people["admin"], "elsewhere", key).want(201, nil)
	add(me, "", newSSHKey(t)).refused(400, "bad_request")
	if a := add(me, "private", "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----").refused(400, "bad_request"); strings.Contains(a.msg, "c2VjcmV0") {
		t.Error("A07: the answer repeats a private key")
	}
	var list struct {
		SSHKeys []struct{ ID string } `json:"ssh_keys"`
	}
	w.as(colleague, "GET", "/users/me/ssh-keys", "").want(200, &list)
	if len(list.SSHKeys) != 0 {
		t.Errorf("a colleague's list shows %v", list)
	}
	w.as(colleague, "DELETE", "/users/me/ssh-keys/"+k.ID, "").refused(404, "not_found")
	w.as(me, "DELETE", "/users/me/ssh-keys/"+k.ID, "").want(200, nil)
	add(colleague, "now mine", key).want(201, nil)

	// A15: no more than a list shows, however many are added at once.
	var added atomic.Int32
	var g errgroup.Group
	g.SetLimit(8) // more would only wait for a lock, and on a slow machine too long
	for range 60 {
		k := newSSHKey(t)
		g.Go(func() error {
			if a := add(me, "k", k); a.status == 201 {
				added.Add(1)
			} else if a.status != 409 {
				t.Errorf("%d %s", a.status, a.raw)
			}
			return nil
		})
	}
	g.Wait()
	w.as(me, "GET", "/users/me/ssh-keys", "").want(200, &list)
	if added.Load() != 50 || len(list.SSHKeys) != 50 {
		t.Errorf("%d keys were added, %d are listed", added.Load(), len(list.SSHKeys))
	}
}

func TestTeams(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	owner, viewer, stranger := w.ours.people["owner"], w.ours.people["viewer"], w.theirs.people["owner"]
	team := "/teams/" + w.ours.id
	var got struct {
		Name, Slug string
		OwnerID    string `json:"owner_id"`
	}
	w.as(viewer, "GET", team, "").want(200, &got)
	if got.Name != "ours" || !strings.HasPrefix(got.Slug, "ours-") || got.OwnerID != w.ours.user(owner) {
		t.Errorf("%+v", got)
	}
	w.as(owner, "PUT", team, `{"slug":"our-slug"}`).want(200, &got)
	if got.Slug != "our-slug" || got.Name != "ours" {
		t.Errorf("%+v", got)
	}
	w.as(stranger, "POST", "/teams", `{"name":"T","slug":"our-slug"}`).refused(409, "conflict")
	w.as(stranger, "PUT", "/teams/"+w.theirs.id, `{"slug":"our-slug"}`).refused(409, "conflict")
	for _, bad := range []string{`{"name":"T","slug":""}`, `{"name":"T","slug":"Our"}`, `{"name":"T","slug":"-a"}`, `{"name":"T","slug":"a/b"}`, `{"name":""}`, `{}`, `{"name":"T","home_region_id":"mars"}`} {
		w.as(owner, "POST", "/teams", bad).refused(400, "bad_request")
	}

	// What is in the way of a delete is counted.
	sb := w.ours.name("sandbox")
	w.as(w.ours.people["admin"], "DELETE", team, "").refused(403, "forbidden")
	a := w.as(owner, "DELETE", team, "").refused(409, "conflict")
	for _, want := range []string{`"team_id":"` + w.ours.id, `"blocking_resources":[{"category":"sandboxes","count":1}]`, `"retained_resources":[`, `"retention_policy":"`} {
		if !strings.Contains(string(a.raw), want) {
			t.Errorf("no %s in %s", want, a.raw)
		}
	}
	w.as(owner, "DELETE", "/api/v1/sandboxes/"+sb, "").want(200, nil)
	fakenode.Eventually(t, "the sandbox is gone", func() bool {
		a := w.as(owner, "DELETE", team, "")
		return a.status == 200
	})
	for _, c := range []caller{owner, viewer} {
		w.as(c, "GET", team, "").refused(404, "not_found")
		w.as(c, "GET", "/api/v1/sandboxes", "").refused(403, "forbidden")
	}
	w.as(w.ours.keys["admin"], "GET", "/api/v1/sandboxes", "").refused(401, "unauthorized")
}

func TestMembers(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	owner, admin, viewer := w.ours.people["owner"], w.ours.people["admin"], w.ours.people["viewer"]
	members := "/teams/" + w.ours.id + "/members"
	ownerID, viewerID := w.ours.user(owner), w.ours.user(viewer)
	var list struct {
		Members []struct {
			UserID string `json:"user_id"`
			Role   string
			Email  string
		}
	}
	w.as(viewer, "GET", members, "").want(200, &list)
	if len(list.Members) != 5 || list.Members[0].UserID != ownerID || list.Members[0].Role != "admin" || list.Members[0].Email == "" {
		t.Errorf("%+v", list)
	}
	w.as(viewer, "GET", members+"?query="+list.Members[2].Email[:20], "").want(200, &list)
	if len(list.Members) != 1 {
		t.Errorf("found %+v", list)
	}
	w.as(admin, "POST", members, `{"email":"nobody@example.com","role":"viewer"}`).refused(404, "not_found")
	w.as(admin, "POST", members, fmt.Sprintf(`{"email":%q,"role":"viewer"}`, strings.ToUpper(list.Members[0].Email))).refused(409, "conflict")
	w.as(admin, "POST", members, fmt.Sprintf(`{"email":%q,"role":"owner"}`, w.person().name)).refused(400, "bad_request")

	// The owner can neither be removed nor demoted, not even by himself, so that
	// every team has an admin.
	for _, by := range []caller{owner, admin} {
		w.as(by, "DELETE", members+"/"+ownerID, "").refused(409, "conflict")
		w.as(by, "PUT", members+"/"+ownerID, `{"role":"viewer"}`).refused(409, "conflict")
		w.as(by, "PUT", members+"/"+ownerID, `{"role":"admin"}`).want(200, nil)
	}
	w.as(owner, "PUT", "/teams/"+w.ours.id+"/owner", fmt.Sprintf(`{"user_id":%q}`, w.theirs.name("user"))).refused(404, "not_found")
	var team struct {
		OwnerID string `json:"owner_id"`
	}
	w.as(owner, "PUT", "/teams/"+w.ours.id+"/owner", fmt.Sprintf(`{"user_id":%q}`, viewerID)).want(200, &team)
	if team.OwnerID != viewerID {
		t.Errorf("%+v", team)
	}
	w.as(viewer, "POST", "/api/v1/sandboxes", `{"template":"default"}`).want(201, nil) // an admin now
	w.as(owner, "DELETE", "/teams/"+w.ours.id, "").refused(403, "forbidden")
	w.as(viewer, "DELETE", members+"/"+ownerID, "").want(200, nil)

	// Everybody else may leave.
	developer := w.ours.people["developer"]
	w.as(developer, "DELETE", members+"/"+w.ours.user(developer), "").want(200, nil)
	w.as(developer, "GET", "/teams/"+w.ours.id, "").refused(404, "not_found")
}

// A06: what a token or a key may do ends with the rights behind it, on every
// replica and for tokens that are out already.
func TestA06_RightsEndEverywhere(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	there := start(t, func(c *api.Config, _ *fakenode.Node) { c.DatabaseURL, c.KeyFile = w.dsn, w.keyFile })
	// soon waits for the other replica, and holds this one to its word at once.
	soon := func(what string, c caller, path string, status int) {
		t.Helper()
		if a := w.as(c, "GET", path, ""); a.status != status {
			t.Errorf("%s, here: %d %s", what, a.status, a.raw)
		}
		fakenode.Eventually(t, what+", there", func() bool {
			return there.send(c.sends(request{method: "GET", path: path})).status == status
		})
	}
	const boxes, me = "/api/v1/sandboxes", "/users/me"
	owner, system := w.ours.people["owner"], w.system
	members := "/teams/" + w.ours.id + "/members/"
	developer, admin := w.ours.people["developer"], w.ours.people["admin"]
	adminsKey := admin
	adminsKey.key, adminsKey.token = true, w.create("/api-keys", admin, `{"name":"k","roles":["admin"]}`, "key")
	for _, c := range []caller{developer, admin, adminsKey} {
		soon("a member works", c, boxes, 200)
	}

	w.as(owner, "PUT", members+w.ours.user(developer), `{"role":"builder"}`).want(200, nil)
	soon("a role was taken away", developer, boxes, 403)
	w.as(owner, "PUT", members+w.ours.user(developer), `{"role":"developer"}`).want(200, nil)
	soon("and given back", developer, boxes, 200)

	w.as(owner, "DELETE", members+w.ours.user(admin), "").want(200, nil)
	soon("a member was removed", admin, boxes, 403)
	soon("who still is a user", admin, me, 200)
	soon("and has no key of the team", adminsKey, boxes, 401)

	key := w.ours.keys["viewer"]
	soon("a key works", key, boxes, 200)
	var keys struct {
		APIKeys []struct {
			ID    string
			Roles []string
		} `json:"api_keys"`
	}
	w.as(owner, "GET", "/api-keys", "").want(200, &keys)
	for _, k := range keys.APIKeys {
		if k.Roles[0] == "viewer" {
			w.as(owner, "POST", "/api-keys/"+k.ID+"/deactivate", "").want(200, nil)
		}
	}
	soon("a key was deactivated", key, boxes, 401)

	// A user who is disabled, and the keys that he made; both come back.
	rights := "/internal/v1/users/" + w.ours.user(owner)
	made := w.ours.keys["developer"]
	soon("a key works", made, boxes, 200)
	w.as(system, "PUT", rights, `{"disabled":true}`).want(200, nil)
	soon("a user was disabled", owner, me, 401)
	soon("and his keys", made, boxes, 401)
	w.as(system, "PUT", rights, `{"disabled":false}`).want(200, nil)
	soon("he is back", owner, me, 200)
	soon("and so are his keys", made, boxes, 200)

	// A platform key ends with the rights of who made it.
	platform := caller{token: w.platform, key: true, team: w.ours.id}
	soon("a platform key works in every team", platform, boxes, 200)
	w.as(system, "PUT", rights, `{"is_admin":true}`).want(200, nil)
	soon("there are two admins", owner, "/internal/v1/users", 200)
	w.as(owner, "PUT", "/internal/v1/users/"+w.ours.user(system), `{"is_admin":false}`).want(200, nil)
	soon("one gave up", system, "/internal/v1/users", 403)
	soon("with the key", platform, boxes, 401)
	w.as(owner, "PUT", rights, `{"is_admin":false}`).refused(409, "conflict")
	w.as(owner, "PUT", rights, `{"disabled":true}`).refused(409, "conflict")
}

// A06: the refresh token of a user who is disabled is void.
func TestA06_NoNewTokensForADisabledUser(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	var s struct {
		RefreshToken string `json:"refresh_token"`
		User         struct{ ID string }
	}
	login := map[string]string{"email": "gone@example.com", "password": "12345678", "name": "G"}
	w.send(request{method: "POST", path: "/auth/register", body: login}).want(201, &s)
	w.as(w.system, "PUT", "/internal/v1/users/"+s.User.ID, `{"disabled":true}`).want(200, nil)
	w.send(request{method: "POST", path: "/auth/refresh", body: map[string]string{"refresh_token": s.RefreshToken}}).refused(401, "unauthorized")
	delete(login, "name")
	w.send(request{method: "POST", path: "/auth/login", body: login}).refused(403, "forbidden")
	w.as(w.ours.people["owner"], "POST", "/teams/"+w.ours.id+"/members", `{"email":"gone@example.com","role":"viewer"}`).refused(404, "not_found")
}

func TestPlatformKeys(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	w.as(w.ours.people["owner"], "POST", "/api-keys", `{"name":"p","scope":"platform"}`).refused(403, "forbidden")
	w.as(w.ours.people["owner"], "POST", "/api-keys", `{"name":"p","expires_in":"1d"}`).refused(400, "bad_request")
	var k struct {
		APIKey struct {
			Scope       string
			Permissions []string
		} `json:"api_key"`
	}
	platform := caller{token: w.platform, key: true, team: w.theirs.id}
	w.as(platform, "GET", "/api-keys/current", "").want(200, &k)
	if k.APIKey.Scope != "platform" || len(k.APIKey.Permissions) != 1 || k.APIKey.Permissions[0] != "*" {
		t.Errorf("%+v", k)
	}
	id := w.theirs.name("sandbox")
	w.as(platform, "GET", "/api/v1/sandboxes/"+id, "").want(200, nil)
	platform.team = w.ours.id
	w.as(platform, "GET", "/api/v1/sandboxes/"+id, "").refused(404, "not_found")
	platform.team = "00000000-0000-4000-8000-000000000000"
	w.as(platform, "GET", "/api/v1/sandboxes/"+id, "").refused(404, "not_found")
	var users struct{ Users []struct{ Email string } }
	w.as(platform, "GET", "/internal/v1/users?limit=2", "").want(200, &users)
	if len(users.Users) != 2 {
		t.Errorf("%+v", users)
	}
	w.as(platform, "GET", "/internal/v1/users?query="+w.admin, "").want(200, &users)
	if len(users.Users) != 1 || users.Users[0].Email != w.admin {
		t.Errorf("%+v", users)
	}
	w.as(platform, "GET", "/internal/v1/users?limit=201", "").refused(400, "bad_request")
}

// Older clients ask where their team is served, and for a token to go there with.
func TestTheActiveTeam(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	owner := w.ours.people["owner"]
	owner.team = ""
	w.create("/teams", owner, `{"name":"another"}`, "id")
	w.as(owner, "GET", "/tenant/active", "").refused(400, "bad_request") // two teams: which?
	var active struct {
		TeamID   string `json:"team_id"`
		TeamRole string `json:"team_role"`
		Region   string `json:"home_region_id"`
	}
	w.as(owner, "GET", "/tenant/active?team_id="+w.ours.id, "").want(200, &active)
	if active.TeamID != w.ours.id || active.TeamRole != "admin" || active.Region != "local" {
		t.Errorf("%+v", active)
	}
	w.as(owner, "GET", "/tenant/active?team_id="+w.theirs.id, "").refused(403, "forbidden")
	var token struct {
		RegionID  string `json:"region_id"`
		Token     string
		ExpiresAt int64 `json:"expires_at"`
	}
	w.as(owner, "POST", "/auth/region-token", fmt.Sprintf(`{"team_id":%q}`, w.ours.id)).want(200, &token)
	if token.RegionID != "local" || token.Token != owner.token || token.ExpiresAt == 0 {
		t.Errorf("%+v", token.RegionID)
	}
	w.as(owner, "POST", "/auth/region-token", fmt.Sprintf(`{"team_id":%q}`, w.theirs.id)).refused(403, "forbidden")
}

// A claim that was under way when its team went leaves nothing behind.
func TestADeletedTeamLeavesNoSandbox(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	id := w.ours.name("sandbox")
	// The claim's row comes after the team has been found empty.
	conn := connect(t, w.dsn)
	defer conn.Close(context.Background())
	for _, sql := range []string{
		"INSERT INTO deleted_teams (team_id, slug, owner_id) SELECT id, slug, owner_id FROM teams WHERE id = $1",
		"DELETE FROM teams WHERE id = $1",
	} {
		if _, err := conn.Exec(t.Context(), sql, w.ours.id); err != nil {
			t.Fatal(err)
		}
	}
	platform := caller{token: w.platform, key: true}
	w.as(platform, "GET", "/api/v1/sandboxes/"+id, "").refused(http.StatusNotFound, "not_found")
	fakenode.Eventually(t, "the sandbox is ended", func() bool {
		var ended bool
		err := conn.QueryRow(t.Context(), "SELECT status = 'terminating' AND deleted_at IS NOT NULL FROM sandboxes WHERE id = $1", id).Scan(&ended)
		if err != nil {
			t.Fatal(err)
		}
		return ended
	})
}
