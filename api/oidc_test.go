package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/s0test/oidctest"
)

// accounts are the people at the provider.
var accounts = map[string]oidctest.Account{
	"alice":    {Email: "alice@example.com", Verified: true, Name: "Alice"},
	"bob":      {Email: "bob@example.com", Verified: true, Name: "Bob"},
	"carol":    {Email: "carol@example.com", Verified: true, Name: "Carol"},
	"dora":     {Email: "Dora@example.com", Verified: true, Name: "Dora"},
	"owner":    {Email: "admin@example.com", Verified: true, Name: "The admin"},
	"squatted": {Email: "squatted@example.com", Verified: true},
	"claimant": {Email: "admin@example.com", Name: "Not the admin"}, // unverified
	"foreign":  {Email: "eve@elsewhere.test", Verified: true},
	"sub":      {Email: "eve@sub.example.com", Verified: true},
	"nobody":   {},
}

// page is where sign-ins of the tests return to.
const page = "https://console.test/signed-in"

// publicURL is where browsers believe the servers of a test to be: the tests take
// them from there to one or another.
const publicURL = "http://s0.test"

// oidcFile makes a server sign people in through a provider.
func oidcFile(t testing.TB, p *oidctest.Provider) option {
	t.Helper()
	file := filepath.Join(t.TempDir(), "oidc.yaml")
	text := fmt.Sprintf(`
public-url: %s
return-urls: [%s]
providers:
  - id: corp
    name: Example Corp
    issuer: %s
    client-id: %s
    client-secret-file: %s
    email-domains: [example.com]
    device: true
    provision: {team: default, role: developer}
`, publicURL, page, p.Issuer, oidctest.ClientID, p.SecretFile())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(c *api.Config, _ *fakenode.Node) { c.OIDCFile = file }
}

// login is what a sign-in answers.
type login struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	User         struct{ ID, Email, Name string }
}

// oidcTest is a provider, and two servers over one database that use it.
type oidcTest struct {
	*instance
	other    *instance
	provider *oidctest.Provider
}

func startOIDC(t *testing.T) *oidcTest {
	t.Helper()
	p := oidctest.Start(t, publicURL+"/auth/oidc/corp/callback", accounts)
	i := start(t, oidcFile(t, p))
	other := start(t, oidcFile(t, p), func(c *api.Config, _ *fakenode.Node) { c.DatabaseURL, c.KeyFile = i.dsn, i.keyFile })
	return &oidcTest{i, other, p}
}

// in makes a test's own view of what it shares with others.
func (o *oidcTest) in(t *testing.T) *oidcTest {
	here, other := *o.instance, *o.other
	here.t, other.t = t, t
	return &oidcTest{&here, &other, o.provider}
}

// browse has a browser ask a server, and holds the answer against the contract.
func (i *instance) browse(b *oidctest.Browser, path string) answer {
	i.t.Helper()
	resp, body := b.Get(i.url + path)
	a := answer{t: i.t, status: resp.StatusCode, header: resp.Header, raw: []byte(body)}
	a.open(request{method: "GET", path: path})
	i.validate(resp.Request, a)
	return a
}

// depart begins a sign-in and gives the provider's URL.
func (o *oidcTest) depart(b *oidctest.Browser, query string) string {
	o.t.Helper()
	a := o.browse(b, "/auth/oidc/corp/login"+query).want(http.StatusFound, nil)
	return a.header.Get("Location")
}

// come signs in at the provider as far as the way back to us: a path.
func (o *oidcTest) come(b *oidctest.Browser, as, query string) string {
	o.t.Helper()
	at, last := b.Go(o.depart(b, query), oidctest.As(as), publicURL)
	if !strings.HasPrefix(at, publicURL) {
		o.t.Fatalf("the provider did not send the browser back: %s\n%s", at, last)
	}
	return strings.TrimPrefix(at, publicURL)
}

// signInAs signs in without a page to return to.
func (o *oidcTest) signInAs(as string) answer {
	o.t.Helper()
	b := oidctest.NewBrowser(o.t)
	return o.browse(b, o.come(b, as, ""))
}

func (o *oidcTest) sql(format string, args ...any) { exec(o.t, o.dsn, fmt.Sprintf(format, args...)) }

func (o *oidcTest) count(sql string) (n int) {
	o.t.Helper()
	conn := connect(o.t, o.dsn)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(context.Background(), sql).Scan(&n); err != nil {
		o.t.Fatal(err)
	}
	return n
}

func TestOIDC(t *testing.T) {
	t.Parallel()
	o := startOIDC(t)
	for name, f := range map[string]func(*oidcTest){
		"Methods": testOIDCMethods, "NewUser": testOIDCNewUser, "ExistingUser": testOIDCExistingUser, "Refused": testOIDCRefused,
		"Disabled": testOIDCDisabled, "Once": testOIDCOnce, "OtherBrowser": testOIDCOtherBrowser, "Expired": testOIDCExpired,
		"Cookie": testOIDCCookie, "OpenRedirect": testOIDCOpenRedirect, "WebLogin": testOIDCWebLogin, "WebLoginFails": testOIDCWebLoginFails,
		"Forged": testOIDCForged, "Device": testOIDCDevice, "DeviceDenied": testOIDCDeviceDenied, "DeviceEnds": testOIDCDeviceEnds,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(o.in(t))
		})
	}
}

func testOIDCMethods(o *oidcTest) {
	var list struct{ Providers []map[string]any }
	o.send(request{method: "GET", path: "/auth/providers"}).want(200, &list)
	got, _ := json.Marshal(list.Providers[1:])
	want := `[{"browser_login_enabled":true,"device_login_enabled":true,"id":"corp","name":"Example Corp","type":"oidc"}]`
	if string(got) != want || list.Providers[0]["id"] != "builtin" {
		o.t.Errorf("providers: %s, want %s after builtin", got, want)
	}
	o.send(request{method: "GET", path: "/auth/oidc/nope/login"}).refused(404, "not_found")
	o.send(request{method: "POST", path: "/auth/oidc/builtin/device/start"}).refused(404, "not_found")
}

// Somebody new becomes a user with the configured team, once; what the session
// is good for is what any other is good for.
func testOIDCNewUser(o *oidcTest) {
	var first, second login
	o.signInAs("alice").want(200, &first)
	if first.User.Email != "alice@example.com" || first.User.Name != "Alice" {
		o.t.Errorf("user %+v", first.User)
	}
	var teams struct{ Teams []struct{ Slug string } }
	o.send(request{method: "GET", path: "/teams", token: first.AccessToken}).want(200, &teams)
	if len(teams.Teams) != 1 || teams.Teams[0].Slug != "default" {
		o.t.Errorf("teams %+v", teams)
	}
	o.send(request{method: "GET", path: "/api/v1/sandboxes", token: first.AccessToken}).want(200, nil)
	o.send(request{method: "POST", path: "/api-keys", token: first.AccessToken, body: `{"name":"k"}`}).refused(403, "forbidden") // a developer
	o.send(request{method: "POST", path: "/auth/refresh", body: map[string]any{"refresh_token": first.RefreshToken}}).want(200, nil)
	o.send(request{method: "POST", path: "/auth/login", body: `{"email":"alice@example.com","password":""}`}).refused(401, "unauthorized")
	o.signInAs("alice").want(200, &second)
	if second.User.ID != first.User.ID {
		o.t.Errorf("the second time it is user %s, was %s", second.User.ID, first.User.ID)
	}
	if n := o.count("SELECT count(*) FROM audit_records WHERE operation = 'finishOIDCLogin' AND user_id = '" + first.User.ID + "'"); n < 2 {
		o.t.Errorf("%d of 2 sign-ins are recorded", n)
	}
	// It is known by its subject from now on, whatever its address becomes here.
	o.sql("UPDATE users SET email = 'alice@renamed.test' WHERE id = '%s'", first.User.ID)
	o.signInAs("alice").want(200, &second)
	if second.User.ID != first.User.ID || second.User.Email != "alice@renamed.test" {
		o.t.Errorf("a renamed user is %+v", second.User)
	}
}

// Somebody whose address both sides have verified is the user who is there.
func testOIDCExistingUser(o *oidcTest) {
	var s login
	o.signInAs("owner").want(200, &s)
	if s.User.Email != o.admin || s.User.Name != "Admin" {
		o.t.Errorf("signed in as %+v, want the first user", s.User)
	}
	o.sql("INSERT INTO users (email, name, password_hash, email_verified) VALUES ('squatted@example.com', 'x', '', false)")
	o.signInAs("squatted").refused(409, "conflict")
}

func testOIDCRefused(o *oidcTest) {
	before := o.count("SELECT count(*) FROM users WHERE email LIKE '%eve%' OR email = ''")
	for _, who := range []string{"claimant", "nobody", "foreign", "sub"} {
		a := o.signInAs(who).refused(403, "forbidden")
		if strings.Contains(string(a.raw), "token") {
			o.t.Errorf("%s: %s", who, a.raw)
		}
	}
	if n := o.count("SELECT count(*) FROM users WHERE email LIKE '%eve%' OR email = ''"); n != before {
		o.t.Errorf("%d users were made", n-before)
	}
	if n := o.count("SELECT count(*) FROM user_identities WHERE subject IN ('claimant', 'nobody', 'foreign', 'sub')"); n != 0 {
		o.t.Errorf("%d identities were made", n)
	}
}

func testOIDCDisabled(o *oidcTest) {
	var s login
	o.signInAs("bob").want(200, &s)
	o.sql("UPDATE users SET disabled_at = now() WHERE id = '%s'", s.User.ID)
	o.signInAs("bob").refused(403, "forbidden")
}

// A callback works once, on whichever replica, and its code is the provider's.
func testOIDCOnce(o *oidcTest) {
	b := oidctest.NewBrowser(o.t)
	back := o.come(b, "carol", "")
	wrong := strings.Replace(back, "code=", "code=x", 1)
	o.other.browse(b, "/auth/oidc/corp/callback").refused(400, "bad_request")
	o.other.browse(b, back).want(200, nil)
	o.other.browse(b, back).refused(400, "bad_request")
	o.browse(b, back).refused(400, "bad_request")
	o.browse(b, wrong).refused(400, "bad_request")
	b = oidctest.NewBrowser(o.t)
	wrong = strings.Replace(o.come(b, "carol", ""), "code=", "code=x", 1)
	o.browse(b, wrong).refused(400, "bad_request")
}

// What one browser began another can't finish, nor spoil.
func testOIDCOtherBrowser(o *oidcTest) {
	victim, attacker := oidctest.NewBrowser(o.t), oidctest.NewBrowser(o.t)
	back := o.come(attacker, "carol", "")
	o.browse(victim, back).refused(400, "bad_request")
	own := o.come(victim, "dora", "") // with a sign-in of its own under way neither
	o.browse(victim, back).refused(400, "bad_request")
	// Nor with the attacker's code in its own sign-in: the code has another verifier.
	theirs, _ := url.Parse(back)
	mixed, _ := url.Parse(own)
	q := mixed.Query()
	q.Set("code", theirs.Query().Get("code"))
	mixed.RawQuery = q.Encode()
	o.browse(victim, mixed.String()).refused(400, "bad_request")
	o.browse(attacker, back).want(200, nil)
}

func testOIDCExpired(o *oidcTest) {
	b := oidctest.NewBrowser(o.t)
	back := o.come(b, "carol", "")
	u, _ := url.Parse(back)
	state := u.Query().Get("state")
	o.sql("UPDATE browser_logins SET expires_at = now() - interval '1 second' WHERE state_hash = sha256('%s')", state)
	o.browse(b, back).refused(400, "bad_request")
}

func testOIDCCookie(o *oidcTest) {
	a := o.browse(oidctest.NewBrowser(o.t), "/auth/oidc/corp/login")
	cookie := a.header.Get("Set-Cookie")
	for _, want := range []string{"HttpOnly", "SameSite=Lax", "Max-Age=600", "Path=/auth/oidc/"} {
		if !strings.Contains(cookie, want) {
			o.t.Errorf("cookie %q has no %s", cookie, want)
		}
	}
	to, err := url.Parse(a.header.Get("Location"))
	if err != nil {
		o.t.Fatal(err)
	}
	q := to.Query()
	for name, want := range map[string]string{
		"response_type": "code", "code_challenge_method": "S256", "redirect_uri": publicURL + "/auth/oidc/corp/callback", "scope": "openid email profile",
	} {
		if q.Get(name) != want {
			o.t.Errorf("%s is %q, want %q", name, q.Get(name), want)
		}
	}
	secret, _, _ := strings.Cut(strings.SplitN(cookie, "=", 2)[1], ";")
	for _, name := range []string{"state", "nonce", "code_challenge"} {
		if v := q.Get(name); len(v) < 43 || strings.Contains(a.header.Get("Location"), secret) {
			o.t.Errorf("%s is %q", name, v)
		}
	}
}

func testOIDCOpenRedirect(o *oidcTest) {
	for _, to := range []string{
		"https://evil.test/", "//evil.test/", "/\\evil.test", "https:evil.test", "javascript:alert(1)", "https://console.test.evil.test/signed-in",
		"https://console.test@evil.test/signed-in", "https://evil.test\\@console.test/signed-in", page + "/more", "https://console.test/", "http://console.test/signed-in",
		"https://console.test:444/signed-in", page + "#f", page + "?login_code=mine", "https://console.test/signed-in%2f..", "/console", page + "\t", publicURL + ".evil.test/",
		"https://" + strings.Repeat("a", 3000), "https://console.test/a/../signed-in",
	} {
		o.send(request{method: "GET", path: "/auth/oidc/corp/login?web_login=true&return_url=" + url.QueryEscape(to)}).refused(400, "bad_request")
	}
	for _, query := range []string{"?web_login=true", "?web_login=false&return_url=" + url.QueryEscape(page), "?web_login=maybe"} {
		o.send(request{method: "GET", path: "/auth/oidc/corp/login" + query}).refused(400, "bad_request")
	}
	for _, to := range []string{page, page + "?mine=1", publicURL + "/any/page", "HTTPS://CONSOLE.test:443/signed-in"} {
		o.send(request{method: "GET", path: "/auth/oidc/corp/login?return_url=" + url.QueryEscape(to)}).want(302, nil)
	}
}

// A page gets a code and no token, and exchanges it once.
func testOIDCWebLogin(o *oidcTest) {
	b := oidctest.NewBrowser(o.t)
	to := page + "?mine=1"
	code := func() string {
		o.t.Helper()
		a := o.browse(b, o.come(b, "dora", "?web_login=true&return_url="+url.QueryEscape(to))).want(302, nil)
		at := a.header.Get("Location")
		code, ok := strings.CutPrefix(at, to+"&login_code=")
		if !ok || a.header.Get("Referrer-Policy") != "no-referrer" || strings.Contains(at, "token") {
			o.t.Fatalf("the browser is sent to %s", at)
		}
		return code
	}
	exchange := func(code, to string) answer {
		return o.other.send(request{method: "POST", path: "/auth/web-login/exchange", body: map[string]string{"login_code": code, "return_url": to}})
	}
	c := code()
	var s login
	exchange(c, to).want(200, &s)
	if s.User.Email != "Dora@example.com" {
		o.t.Errorf("signed in as %+v", s.User)
	}
	exchange(c, to).refused(401, "unauthorized")
	c = code()
	exchange(c, page).refused(401, "unauthorized") // another page
	exchange(c, to).refused(401, "unauthorized")   // and that ended it
	c = code()
	o.sql("UPDATE login_codes SET expires_at = now() - interval '1 second' WHERE code_hash = sha256('%s')", c)
	exchange(c, to).refused(401, "unauthorized")
	c = code()
	o.sql("UPDATE users SET disabled_at = now() WHERE id = '%s'", s.User.ID)
	exchange(c, to).refused(403, "forbidden")
	exchange("guess", to).refused(401, "unauthorized")
	o.send(request{method: "POST", path: "/auth/web-login/exchange", body: `{"login_code":"x"}`}).refused(400, "bad_request")
}

// A page is told what went wrong; who has no sign-in is answered.
func testOIDCWebLoginFails(o *oidcTest) {
	b := oidctest.NewBrowser(o.t)
	query := "?return_url=" + url.QueryEscape(page)
	at := o.browse(b, o.come(b, "foreign", query)).want(302, nil).header.Get("Location")
	if !strings.HasPrefix(at, page+"?login_error=forbidden&login_error_message=") {
		o.t.Errorf("sent to %s", at)
	}
	u, err := url.Parse(o.depart(b, query))
	if err != nil {
		o.t.Fatal(err)
	}
	state := u.Query().Get("state")
	at = o.browse(b, "/auth/oidc/corp/callback?error=access_denied&error_description=<script>&state="+state).want(302, nil).header.Get("Location")
	if !strings.HasPrefix(at, page+"?login_error=forbidden&") || strings.Contains(at, "script") {
		o.t.Errorf("sent to %s", at)
	}
	o.browse(b, "/auth/oidc/corp/callback?error=access_denied&state="+state).refused(400, "bad_request")
}

// What comes back from another issuer is not from the one that was asked.
func testOIDCForged(o *oidcTest) {
	b := oidctest.NewBrowser(o.t)
	back, err := url.Parse(o.come(b, "carol", ""))
	if err != nil {
		o.t.Fatal(err)
	}
	q := back.Query()
	if q.Get("iss") != o.provider.Issuer {
		o.t.Errorf("the provider calls itself %q", q.Get("iss"))
	}
	q.Set("iss", "https://evil.test")
	back.RawQuery = q.Encode()
	o.browse(b, back.String()).refused(502, "unavailable")
}

// A provider that is down is a 503 of its own routes; the server starts and works
// without it, and keeps what it knows of sign-ins to itself (A07).
func TestA07_OIDCProviderDown(t *testing.T) {
	t.Parallel()
	p := oidctest.Start(t, publicURL+"/auth/oidc/corp/callback", accounts)
	file := oidcFile(t, p)
	up := &oidcTest{instance: start(t, file), provider: p}
	b := oidctest.NewBrowser(t)
	back := up.come(b, "alice", "")
	p.Stop()
	i := start(t, file)
	for _, r := range []request{{method: "GET", path: "/auth/oidc/corp/login"}, {method: "POST", path: "/auth/oidc/corp/device/start"}} {
		if a := i.send(r).refused(503, "unavailable"); a.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", r.path)
		}
	}
	i.send(request{method: "GET", path: "/auth/providers"}).want(200, nil)
	i.send(request{method: "GET", path: "/users/me", token: i.signIn()}).want(200, nil)
	// In the middle of a sign-in too; its secrets are in no log.
	up.browse(b, back).refused(503, "unavailable")
	u, _ := url.Parse(back)
	for _, secret := range []string{oidctest.ClientSecret, url.QueryEscape(oidctest.ClientSecret), u.Query().Get("code"), u.Query().Get("state")} {
		if strings.Contains(up.log.String()+i.log.String(), secret) {
			t.Errorf("a log has the secret %q", secret)
		}
	}
}

// Who begins sign-ins without end is told to wait, whatever they are for.
func TestSignInsThroughProvidersAreLimited(t *testing.T) {
	t.Parallel()
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.RateLimit, c.RateBurst = 0.1, 20 })
	login, device := request{method: "GET", path: "/auth/oidc/nobody/login"}, request{method: "POST", path: "/auth/oidc/nobody/device/start"}
	code := request{method: "POST", path: "/auth/web-login/exchange", body: `{"login_code":"x","return_url":"y"}`}
	i.send(login).refused(404, "not_found")
	i.send(device).refused(404, "not_found") // the burst is used up
	for _, r := range []request{login, device, code} {
		if a := i.send(r).refused(429, "rate_limited"); a.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", r.path)
		}
	}
}
