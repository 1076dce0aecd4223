package proxy

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"s0.run/internal/policy"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/audit"
)

const canary = "canary-7f3a9c-secret"

// withToken binds a header to what a rule matches.
func withToken(match string) string {
	return `{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","domains":["*.example"]}],
	"credentialRules":[{"name":"token","credentialRef":"tok","protocol":"https","tlsMode":"terminate-reoriginate","domains":["good.example"]` + match + `}]},
	"credentialBindings":[{"ref":"tok","sourceRef":"src","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"Bearer {{ .token }}"}]}}}]}`
}

func tokenBox(t testing.TB, match string) *box {
	t.Helper()
	b := newBox(t, withToken(match))
	b.secret("src", sealed.Secret{Values: map[string]string{"token": canary}})
	return b
}

func TestF05_ExactlyOneHeaderIsSet(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	for i, h2 := range []bool{false, true} {
		path := fmt.Sprintf("/f05-%d", i)
		status, body, _ := get(t, b.client(true, h2), "https://good.example"+path, func(r *http.Request) {
			r.Header["authorization"] = []string{"mine", "mine too"}
			r.Header["AUTHORIZATION"] = []string{"MINE"}
			r.Header.Set("Connection", "Authorization")
			r.Header.Set("X-Kept", "yes")
			if h2 {
				r.Header.Del("Connection")
			}
		})
		got := b.w.origin.find(path)
		if status != 200 || got == nil {
			t.Fatalf("HTTP/2 %v: %d %s", h2, status, body)
		}
		if v := got.Header["Authorization"]; len(v) != 1 || v[0] != "Bearer "+canary || got.Header.Get("X-Kept") != "yes" || got.Host != "good.example" {
			t.Errorf("HTTP/2 %v: upstream got %v", h2, got.Header)
		}
	}
	r := b.recorded(func(r audit.Record) bool { return r.AuthRef == "tok" })
	if r.AuthRuleName != "token" || !r.AuthResolved || r.AuthFailurePolicy != "fail-closed" || r.Adapter != "terminate" || len(r.ProtocolOperations) != 1 || r.ProtocolOperations[0] != "GET 200" {
		t.Errorf("%+v", r)
	}
}

func TestF01_OnlyWhatTheRuleMatchesCarriesIt(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, `,"httpMatch":{"methods":["GET"],"pathPrefixes":["/v1"]}`)
	c := b.client(true, false)
	for path, want := range map[string]string{"/v1/f01": "Bearer " + canary, "/v2/f01": "", "/v1x/f01": ""} {
		if status, body, _ := get(t, c, "https://good.example"+path); status != 200 {
			t.Fatalf("%s: %d %s", path, status, body)
		}
		if got := b.w.origin.find(path).Header.Get("Authorization"); got != want {
			t.Errorf("%s carried %q", path, got)
		}
	}
	// A path that may be read in two ways is neither with nor without.
	if status, body, _ := get(t, c, "https://good.example/v1/..%2fv2/f01"); status != 403 {
		t.Errorf("two ways: %d %s", status, body)
	}
	if status, _, _ := get(t, b.client(false, false), "https://api.good.example/f01-other"); status != 200 || b.w.origin.find("/f01-other").Header.Get("Authorization") != "" {
		t.Errorf("another host: %d", status)
	}
}

func TestF02_ReflectedSecretsAreMasked(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	status, body, header := get(t, b.client(true, false), "https://good.example/reflect")
	if status != 200 || strings.Contains(body, canary) || strings.Contains(fmt.Sprint(header), canary) || !strings.Contains(body, "***") {
		t.Errorf("%d %s %v", status, body, header)
	}
	if status, body, _ := get(t, b.client(true, false), "https://good.example/x", func(r *http.Request) { r.Method = "TRACE" }); status != 400 && status != 405 {
		t.Errorf("TRACE: %d %s", status, body)
	}
}

func TestF03_RedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	b.w.other.forget("/stolen")
	status, _, header := get(t, b.client(true, false), "https://good.example/redirect")
	if status != http.StatusFound || header.Get("Location") != "https://other.example/stolen" || b.w.other.find("/stolen") != nil {
		t.Errorf("%d %v", status, header)
	}
	if status, _, _ = get(t, b.client(false, false), header.Get("Location")); status != 200 || b.w.other.find("/stolen").Header.Get("Authorization") != "" {
		t.Errorf("the sandbox itself: %d", status)
	}
}

func TestF04_NoSecretWithoutAValidCertificate(t *testing.T) {
	t.Parallel()
	b := newBox(t, strings.ReplaceAll(withToken(""), `"domains":["good.example"]`, `"domains":["badcert.example"]`))
	b.secret("src", sealed.Secret{Values: map[string]string{"token": canary}})
	status, body, _ := get(t, b.client(true, false), "https://badcert.example/f04")
	if status != 502 || !strings.Contains(body, "certificate") || b.w.origin.find("/f04") != nil {
		t.Errorf("%d %s", status, body)
	}
	plain := newBox(t, strings.ReplaceAll(strings.ReplaceAll(withToken(""), `"protocol":"https","tlsMode":"terminate-reoriginate"`, `"protocol":"http"`), "tok", "tok"))
	plain.secret("src", sealed.Secret{Values: map[string]string{"token": canary}})
	if status, body, _ := get(t, plain.client(false, false), "http://good.example/f04-plain"); status != 403 || b.w.origin.find("/f04-plain") != nil {
		t.Errorf("without TLS: %d %s", status, body)
	}
}

func TestF07_ASandboxHasItsOwnCredentials(t *testing.T) {
	t.Parallel()
	tokenBox(t, "")
	thief := newBox(t, withToken("")) // the same binding, and no source
	if status, body, _ := get(t, thief.client(true, false), "https://good.example/f07"); status != 503 || thief.w.origin.find("/f07") != nil {
		t.Errorf("%d %s", status, body)
	}
}

func TestF12_ANewVersionIsCarriedAndOldRequestsEnd(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	c := b.client(true, false)
	r, err := http.NewRequestWithContext(t.Context(), "GET", "https://good.example/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b.secret("src", sealed.Secret{Values: map[string]string{"token": "another-" + canary}})
	g, _ := b.w.lookup(b.addr)
	if n := b.w.Changed(g); n != 1 {
		t.Errorf("%d flows were cut", n)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the stream under the old one ended well")
	}
	if status, body, _ := get(t, b.client(true, false), "https://good.example/f12"); status != 200 || b.w.origin.find("/f12").Header.Get("Authorization") != "Bearer another-"+canary {
		t.Errorf("%d %s", status, body)
	}
}

// F12: a request ends that carries what the policy has another server get.
func TestF12_ARequestEndsWithItsBinding(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	r := must(http.NewRequestWithContext(t.Context(), "GET", "https://good.example/stream", nil))
	resp := must(b.client(true, false).Do(r))
	defer resp.Body.Close()
	if n := b.w.Changed(b.policy(withToken(`,"httpMatch":{"methods":["GET"]}`))); n != 0 {
		t.Errorf("%d flows were cut that carry what they have to", n)
	}
	if n := b.w.Changed(b.policy(strings.Replace(withToken(""), `"domains":["good.example"]`, `"domains":["other.example"]`, 1))); n != 1 {
		t.Errorf("%d flows were cut", n)
	}
}

// The policy changes after the request was admitted and before it is counted as
// under way: whoever cuts what is under way does not see it.
func TestE21_ARequestThatWasJustAdmitted(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	b.w.opening.Store(b.id, func() { b.w.Changed(b.policy(withToken(`,"httpMatch":{"methods":["PUT"]}`))) })
	status, body, _ := get(t, b.client(true, false), "https://good.example/just-admitted")
	if status != 503 || !strings.Contains(body, "changed meanwhile") || b.w.origin.find("/just-admitted") != nil {
		t.Errorf("%d %s", status, body)
	}
}

func TestF13_APinnedClientGetsNoSecret(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	status, body, _ := get(t, b.client(false, false), "https://good.example/f13") // trusts the internet's alone
	if status != 0 || !strings.Contains(body, "certificate") || b.w.origin.find("/f13") != nil {
		t.Errorf("%d %s", status, body)
	}
}

func TestF14_NothingLeavesWithoutItsCredential(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	b.w.mu.Lock()
	b.w.fails[b.id] = true
	b.w.mu.Unlock()
	if status, body, _ := get(t, b.client(true, false), "https://good.example/f14"); status != 503 || strings.Contains(body, "does not open") || b.w.origin.find("/f14") != nil {
		t.Errorf("%d %s", status, body)
	}
	r := b.recorded(func(r audit.Record) bool { return r.AuthRef == "tok" })
	if r.AuthResolved || r.AuthResolveError == "" || r.Outcome != audit.Failed {
		t.Errorf("%+v", r)
	}
}

func TestPlaceholders(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"block-all","egress":{"allowedDomains":["good.example"],
	"credentialRules":[{"credentialRef":"p","protocol":"https","tlsMode":"terminate-reoriginate","domains":["good.example"]}]},
	"credentialBindings":[{"ref":"p","sourceRef":"src","projection":{"type":"placeholder_substitution","placeholderSubstitution":{"replacements":[
	{"placeholder":"S0_TOKEN","valueTemplate":"{{ .token }}","locations":["header","query","body"]}]}}}]}`)
	b.secret("src", sealed.Secret{Values: map[string]string{"token": canary}})
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("git:S0_TOKEN"))
	status, _, _ := get(t, b.client(true, false), "https://good.example/placeholder?key=S0_TOKEN&x=1", func(r *http.Request) {
		r.Method = "POST"
		r.Header.Set("X-Key", "a S0_TOKEN b")
		r.Header.Set("Authorization", basic)
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(`{"k":"S0_TOKEN"}`)), 16
	})
	got := b.w.origin.find("/placeholder")
	if status != 200 || got == nil {
		t.Fatal(status)
	}
	_, pass, _ := got.BasicAuth()
	if got.Header.Get("X-Key") != "a "+canary+" b" || got.URL.Query().Get("key") != canary || pass != canary {
		t.Errorf("upstream got %v %v", got.URL, got.Header)
	}
	b.w.origin.mu.Lock()
	defer b.w.origin.mu.Unlock()
	for i, r := range b.w.origin.seen {
		if r == got && b.w.origin.body[i] != `{"k":"`+canary+`"}` {
			t.Errorf("its body: %s", b.w.origin.body[i])
		}
	}
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	leaf := theWorld().signer.leaf("client-of-team")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})
	key, err := x509.MarshalECPrivateKey(leaf.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})
	for _, h2 := range []bool{false, true} {
		b := newBox(t, `{"mode":"block-all","egress":{"allowedDomains":["good.example"],
		"credentialRules":[{"credentialRef":"c","protocol":"tls","tlsMode":"terminate-reoriginate","domains":["good.example"]}]},
		"credentialBindings":[{"ref":"c","sourceRef":"src","projection":{"type":"tls_client_certificate","tlsClientCertificate":{}}}]}`)
		b.secret("src", sealed.Secret{CertificatePEM: string(certPEM), PrivateKeyPEM: string(keyPEM)})
		status, body, _ := get(t, b.client(true, h2), "https://good.example/cert")
		if status != 200 || !strings.Contains(body, "client=client-of-team") {
			t.Errorf("HTTP/2 %v: %d %s", h2, status, body)
		}
	}
}

// What is open with a client certificate ends with that certificate.
func TestF12_ATunnelEndsWithItsCertificate(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"block-all","egress":{"allowedDomains":["good.example"],
	"credentialRules":[{"credentialRef":"c","protocol":"tls","tlsMode":"terminate-reoriginate","domains":["good.example"]}]},
	"credentialBindings":[{"ref":"c","sourceRef":"src","projection":{"type":"tls_client_certificate","tlsClientCertificate":{}}}]}`)
	certificate := func() sealed.Secret {
		leaf := b.w.signer.leaf("client-of-team")
		key, err := x509.MarshalECPrivateKey(leaf.PrivateKey.(*ecdsa.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		return sealed.Secret{
			CertificatePEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})),
			PrivateKeyPEM:  string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})),
		}
	}
	b.secret("src", certificate())
	r, err := http.NewRequestWithContext(t.Context(), "GET", "https://good.example/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.client(true, false).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	g, _ := b.w.lookup(b.addr)
	if n := b.w.Changed(g); n != 0 {
		t.Errorf("%d flows were cut, and nothing has changed", n)
	}
	b.secret("src", certificate())
	if n := b.w.Changed(g); n != 1 {
		t.Errorf("%d flows were cut", n)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the stream under the old one ended well")
	}
}

func TestE10_AClientCertificateIsNoWayPastCredentials(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"allow-all","egress":{
	"credentialRules":[{"credentialRef":"c","protocol":"tls","tlsMode":"terminate-reoriginate","domains":["good.example"]},{"credentialRef":"tok","protocol":"https","tlsMode":"terminate-reoriginate","domains":["good.example"]}]},
	"credentialBindings":[{"ref":"c","sourceRef":"src","projection":{"type":"tls_client_certificate","tlsClientCertificate":{}}},
	{"ref":"tok","sourceRef":"src","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"{{ .token }}"}]}}}]}`)
	if status, body, _ := get(t, b.client(true, false), "https://good.example/both"); status != 0 {
		t.Errorf("%d %s", status, body)
	}
	if r := b.recorded(func(r audit.Record) bool { return r.Host == "good.example" }); r.Action != audit.Deny || !strings.Contains(r.Reason, "client certificate") {
		t.Errorf("%+v", r)
	}
}

func TestF14_LoginsThatCannotBePlacedAreRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"block-all"}`)
	p, err := policy.Parse([]byte(`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"r","protocol":"redis"}]},
	"credentialBindings":[{"ref":"r","sourceRef":"src","projection":{"type":"username_password","usernamePassword":{}}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	b.told(p) // the API refuses it
	c := b.dial("6379")
	io.WriteString(c, "*1\r\n$4\r\nPING\r\n")
	gone(t, c)
	if r := b.recorded(func(r audit.Record) bool { return r.Protocol == "redis" }); r.Action != audit.Deny || r.AuthRef != "r" {
		t.Errorf("%+v", r)
	}
}

// fronted asks for one server on a connection that was opened to another.
func (b *box) fronted(own bool, h2 bool, server, host, path string) (int, string) {
	b.t.Helper()
	c := b.client(own, h2)
	status, body, _ := get(b.t, c, "https://"+server+path, func(r *http.Request) { r.Host = host })
	return status, body
}

// E07: what is opened is for its own server alone; what is not may be fronted within one
// server, as everywhere, and never carries a credential: not even that of whom it names.
func TestE07_AFrontedRequestCarriesNoCredential(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "") // opens good.example
	for _, h2 := range []bool{false, true} {
		for _, host := range []string{"api.good.example", "other.example", "GOOD.example.other.example", "good.example:444"} {
			path := fmt.Sprintf("/e07-opened-%v-%s", h2, strings.ReplaceAll(host, ":", "-"))
			if status, body := b.fronted(true, h2, "good.example", host, path); status != http.StatusMisdirectedRequest || b.w.origin.find(path) != nil || b.w.other.find(path) != nil {
				t.Errorf("HTTP/2 %v, opened, for %s: %d %s", h2, host, status, body)
			}
		}
		path := fmt.Sprintf("/e07-passed-%v", h2)
		status, body := b.fronted(false, h2, "api.good.example", "good.example", path)
		got := b.w.origin.find(path)
		if status != 200 || got == nil || got.Host != "good.example" {
			t.Fatalf("HTTP/2 %v, passed on: %d %s", h2, status, body)
		}
		if got.Header.Get("Authorization") != "" {
			t.Errorf("HTTP/2 %v: what is passed on carried %v", h2, got.Header)
		}
	}
	b.recorded(func(r audit.Record) bool {
		return r.Host == "api.good.example" && r.Adapter == "splice" && r.AuthRef == "" && !r.AuthResolved
	})
	// Who wants it refused has the other one's connections opened, too.
	b.policy(strings.Replace(withToken(""), `"credentialRules":`, `"protocolRules":[{"protocol":"http","domains":["api.good.example"],"http":{"methods":{"allowed":["GET"]}}}],"credentialRules":`, 1))
	if status, body := b.fronted(true, false, "api.good.example", "good.example", "/e07-refused"); status != http.StatusMisdirectedRequest || b.w.origin.find("/e07-refused") != nil {
		t.Errorf("opened by a rule: %d %s", status, body)
	}
}

// F06: nothing tells what was asked for, however it ended, but its method and its server;
// and a placeholder is a placeholder wherever its binding does not say.
func TestF06_NoPathQueryOrBodyIsTold(t *testing.T) {
	t.Parallel()
	const path, query, body = "canary-of-a-path", "canary-of-a-query", "canary-of-a-body"
	substituting := func(where string) *box {
		b := newBox(t, `{"mode":"block-all","egress":{"allowedDomains":["good.example","badcert.example","nobody.example"],
		"protocolRules":[{"name":"read","protocol":"http","domains":["good.example"],"http":{"paths":{"deniedPrefixes":["/denied"]}}}],
		"credentialRules":[{"credentialRef":"p","protocol":"https","tlsMode":"terminate-reoriginate"}]},
		"credentialBindings":[{"ref":"p","sourceRef":"src","projection":{"type":"placeholder_substitution","placeholderSubstitution":{"replacements":[
		{"placeholder":"S0_TOKEN","valueTemplate":"{{ .token }}","locations":["`+where+`"]}]}}}]}`)
		b.secret("src", sealed.Secret{Values: map[string]string{"token": canary}})
		return b
	}
	post := func(b *box, url string) int {
		status, _, _ := get(t, b.client(true, false), url+"?key=S0_TOKEN&q="+query, func(r *http.Request) {
			r.Method = "POST"
			r.Header.Set("X-Key", "S0_TOKEN")
			text := "S0_TOKEN " + body
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
		})
		return status
	}
	var boxes []*box
	for _, where := range []string{"header", "query", "body"} {
		b := substituting(where)
		boxes = append(boxes, b)
		at := "/" + path + "-" + where
		status, got := post(b, "https://good.example"+at), b.w.origin.find(at)
		if status != 200 || got == nil {
			t.Fatalf("%s: %d", where, status)
		}
		sent := map[string]string{"header": got.Header.Get("X-Key"), "query": got.URL.Query().Get("key"), "body": strings.TrimSuffix(b.w.origin.last(at), " "+body)}
		for place, value := range sent {
			if want := map[bool]string{true: canary, false: "S0_TOKEN"}[place == where]; value != want {
				t.Errorf("bound to the %s, in the %s there is %q", where, place, value)
			}
		}
		for url, want := range map[string]int{
			"https://good.example/denied/" + path: 403, "https://badcert.example/" + path: 502, "https://nobody.example/" + path: 502, "https://good.example/" + path + "/..%2f": 403,
		} {
			if status := post(b, url); status != want {
				t.Errorf("%s: %d", url, status)
			}
		}
	}
	var told []audit.Record
	for _, b := range boxes {
		b.recorded(func(r audit.Record) bool { return r.Outcome == audit.Failed })
		b.recorded(func(r audit.Record) bool { return r.AuthResolved && slices.Contains(r.ProtocolOperations, "POST 200") })
		told = append(told, b.all()...)
	}
	records, err := json.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"records": string(records), "logs": theWorld().log.String()} {
		for _, secret := range []string{path, query, body, canary, "S0_TOKEN"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in the %s", secret, what)
			}
		}
	}
}

func TestE05_EveryRequestIsForItsConnectionsServer(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	for _, h2 := range []bool{false, true} {
		c := b.client(true, h2)
		keep := func(r *http.Request) { r.Close = false }
		if status, body, _ := get(t, c, "https://good.example/e05", keep); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
		for _, host := range []string{"other.example", "api.good.example", "good.example:8443", good4} {
			status, body, _ := get(t, c, "https://good.example/e05-fronted", keep, func(r *http.Request) { r.Host = host })
			if status != http.StatusMisdirectedRequest || b.w.origin.find("/e05-fronted") != nil {
				t.Errorf("HTTP/2 %v, %s: %d %s", h2, host, status, body)
			}
		}
		if status, body, _ := get(t, c, "https://good.example/e05", func(r *http.Request) { r.Host = "GOOD.example:443" }); status != 200 || !strings.HasPrefix(body, "GET good.example ") {
			t.Errorf("another spelling: %d %s", status, body)
		}
	}
}

func TestE05_PlainHTTPIsJudgedByEachRequest(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	c := b.dial("80")
	r := bufio.NewReader(c)
	ask := func(host string) int {
		fmt.Fprintf(c, "GET /e05-plain HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	for _, step := range []struct {
		host string
		want int
	}{{"good.example", 200}, {"other.example", 403}, {"api.good.example", 200}, {"10.99.0.1", 421}, {"169.254.169.254", 421}, {claimed4, 403}, {"good.example", 200}} {
		if got := ask(step.host); got != step.want {
			t.Errorf("%s: %d, want %d", step.host, got, step.want)
		}
	}
	if b.w.other.find("/e05-plain") != nil {
		t.Error("a denied host was asked")
	}
}

func TestE10_WhatCanBeReadInTwoWaysIsRefused(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	for name, text := range map[string]string{
		"two ways to end":        "POST /e10 HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":            "POST /e10 HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		"one length twice":       "POST /e10 HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"a list of lengths":      "POST /e10 HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5, 5\r\n\r\nhello",
		"a signed length":        "POST /e10 HTTP/1.1\r\nHost: good.example\r\nContent-Length: +5\r\n\r\nhello",
		"a space before a colon": "POST /e10 HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"another encoding":       "POST /e10 HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"an encoding in 1.0":     "POST /e10 HTTP/1.0\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bare line feeds":        "GET /e10 HTTP/1.1\nHost: good.example\n\n",
		"one bare line feed":     "GET /e10 HTTP/1.1\r\nHost: good.example\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n",
		"a folded line":          "GET /e10 HTTP/1.1\r\nHost: good.example\r\nX: a\r\n b\r\n\r\n",
		"an underscore":          "GET /e10 HTTP/1.1\r\nHost: good.example\r\nContent_Length: 5\r\n\r\n",
		"no host":                "GET /e10 HTTP/1.1\r\n\r\n",
		"two hosts":              "GET /e10 HTTP/1.1\r\nHost: good.example\r\nHost: other.example\r\n\r\n",
		"another target":         "GET http://other.example/e10 HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"an upgrade to h2c":      "GET /e10 HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"TRACE":                  "TRACE /e10 HTTP/1.1\r\nHost: good.example\r\n\r\n",
		"CONNECT":                "CONNECT good.example:80 HTTP/1.1\r\nHost: good.example:80\r\n\r\n",
		"a NUL":                  "GET /e10 HTTP/1.1\r\nHost: good.example\r\nX: a\x00b\r\n\r\n",
		"a head without end":     "GET /e10 HTTP/1.1\r\nHost: good.example\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newBox(t, onlyGood).dial("80")
			go io.WriteString(c, text+"GET /e10 HTTP/1.1\r\nHost: good.example\r\n\r\n")
			answer, _ := io.ReadAll(c)
			if !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) && len(answer) > 0 || bytes.Count(answer, []byte("HTTP/1.1 ")) > 1 {
				t.Errorf("%.200q", answer)
			}
		})
	}
	t.Cleanup(func() {
		if b.w.origin.find("/e10") != nil {
			t.Error("one of them got through")
		}
	})
}

func TestE10_ChunksAreRefusedInTheMiddle(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	for _, body := range []string{"5\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "0\r\nX: y\r\n\r\n", "ffffffffffffffff1\r\n"} {
		c := b.dial("80")
		io.WriteString(c, "POST /e10-chunks HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
		gone(t, c)
	}
	for _, body := range []string{"5\r\nhello\r\n0\r\n\r\n", "0\r\n\r\n"} {
		c := b.dial("80")
		io.WriteString(c, "POST /e10-good HTTP/1.1\r\nHost: good.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
		if answer, err := io.ReadAll(c); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) {
			t.Errorf("%q: %.100q, %v", body, answer, err)
		}
	}
}

const ruled = `{"mode":"allow-all","egress":{"protocolRules":[{"name":"read only","protocol":"http","domains":["good.example"],"http":{"methods":{"allowed":["GET","HEAD"]},"paths":{"deniedPrefixes":["/admin"]}}}]}}`

func TestProtocolRules(t *testing.T) {
	t.Parallel()
	b := newBox(t, ruled)
	for _, h2 := range []bool{false, true} {
		c := b.client(true, h2)
		for _, step := range []struct {
			method, path string
			want         int
		}{{"GET", "/ok", 200}, {"POST", "/ok", 403}, {"GET", "/admin/x", 403}, {"GET", "/a/../admin/x", 403}, {"GET", "/%61dmin/x", 403}} {
			status, body, _ := get(t, c, "https://good.example"+step.path, func(r *http.Request) { r.Method, r.URL.Opaque = step.method, "" })
			if status != step.want {
				t.Errorf("HTTP/2 %v, %s %s: %d %s", h2, step.method, step.path, status, body)
			}
		}
	}
	if status, _, _ := get(t, b.client(false, false), "https://api.good.example/", func(r *http.Request) { r.Method = "POST" }); status != 200 {
		t.Errorf("another host: %d", status)
	}
	if r := b.recorded(func(r audit.Record) bool { return r.Outcome == audit.Denied }); !strings.Contains(r.Reason, "read only") {
		t.Errorf("%+v", r)
	}
}

func TestMCPTools(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"allow-all","egress":{"protocolRules":[{"name":"tools","protocol":"mcp","domains":["good.example"],"mcp":{"tools":{"allowed":["read"]}}}]}}`)
	c := b.client(true, false)
	for body, want := range map[string]bool{
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read","arguments":{}}}`:                                    true,
		`{"jsonrpc":"2.0","id":7,"method":"tools/list"}`:                                                                            true,
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"write"}}`:                                                  false,
		`{"jsonrpc":"2.0","id":7,"method":"tools/list","method":"tools/call","params":{"name":"write"}}`:                            false,
		`{"jsonrpc":"2.0","id":7,"method":"tools/list","Method":"tools/call","params":{"name":"write"}}`:                            false,
		`{"jsonrpc":"2.0","id":7,"m\u0065thod":"tools/call","params":{"name":"write"}}`:                                             false,
		`[{"jsonrpc":"2.0","id":1,"method":"tools/list"},{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"write"}}]`: false,
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read","name":"write"}}`:                                    false,
		`{"jsonrpc":"2.0","id":7,"method":"tools/call"}`:                                                                            false,
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read","arguments":{"a":1,"A":{"b":1,"b2":2}}}}`:            true,
		`{"jsonrpc":"2.0","id":7,"Method":"tools/call","params":{"name":"write"}}`:                                                  false,
		`{"jsonrpc":"2.0","id":7,"METHOD":"tools/call","PARAMS":{"NAME":"write"}}`:                                                  false,
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","param\u017f":{"name":"write"},"params":{"name":"read"}}`:                    false,
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read","Name":"write"}}`:                                    false,
		`not JSON`: false,
	} {
		status, answer, _ := get(t, c, "https://good.example/mcp", func(r *http.Request) {
			r.Method, r.Body, r.ContentLength = "POST", io.NopCloser(strings.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Type", "application/json")
		})
		var rpc struct {
			Error *struct{ Code int }
		}
		passed := json.Unmarshal([]byte(answer), &rpc) != nil || rpc.Error == nil
		if status != 200 || passed != want {
			t.Errorf("%s: %d %s", body, status, answer)
		}
		if got := b.w.origin.last("/mcp"); passed && want && got != body {
			t.Errorf("%s: upstream got %s", body, got)
		}
	}
}

// E10: who writes a method, or what a message is, in another way than rules know it
// gets past none of them.
func TestE10_OtherSpellingsOfAMethod(t *testing.T) {
	t.Parallel()
	b := newBox(t, `{"mode":"allow-all","egress":{"protocolRules":[
		{"name":"tools","protocol":"mcp","domains":["good.example"],"mcp":{"tools":{"allowed":["read"]}}},
		{"name":"reading","protocol":"http","domains":["other.example"],"http":{"methods":{"denied":["POST"]}}}]}}`)
	const call = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"write"}}`
	for _, c := range []*http.Client{b.client(true, false), b.client(true, true)} {
		for i, change := range []func(*http.Request){
			func(r *http.Request) { r.Method = "post" },
			func(r *http.Request) { r.Method = "Post"; r.URL.Host, r.Host = "other.example", "other.example" },
			func(r *http.Request) { r.Method = "trace" },
			func(r *http.Request) { r.Method = "PUT" },
			func(r *http.Request) { r.Method = "GET" },
			func(r *http.Request) {
				r.Method, r.Body, r.ContentLength = "GET", nil, 0
				r.Header.Set("X-HTTP-Method-Override", "POST")
			},
			func(r *http.Request) {
				r.Method = "POST"
				r.Header["Content-Type"] = []string{"application/json", "text/plain"}
			},
			func(r *http.Request) {
				r.Method = "POST"
				r.Header.Set("Content-Type", "application/json; charset=utf-7")
			},
		} {
			path := fmt.Sprintf("/spelt%d-%p", i, c)
			status, answer, _ := get(t, c, "https://good.example"+path, func(r *http.Request) {
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader(call)), int64(len(call))
				r.Header.Set("Content-Type", "application/json")
				change(r)
			})
			if got := b.w.origin.find(path); got != nil {
				t.Errorf("%d: upstream got %s; %d %s", i, got.Method, status, answer)
			}
		}
		if status, _, _ := get(t, c, "https://good.example/opens"); status != 200 {
			t.Errorf("what opens a stream: %d", status)
		}
	}
}

func TestWebSocketsWithACredential(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	conn := tls.Client(b.dial("443"), &tls.Config{ServerName: "good.example", RootCAs: b.trust(true), NextProtos: []string{"http/1.1"}})
	io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	io.WriteString(conn, "anything \x00 at all\n")
	if line, err := r.ReadString('\n'); err != nil || line != "ANYTHING \x00 AT ALL\n" {
		t.Errorf("%q, %v", line, err)
	}
	if got := b.w.origin.find("/ws").Header.Get("Authorization"); got != "Bearer "+canary {
		t.Errorf("it carried %q", got)
	}
	// An upgrade that is not made ends the connection: its head opened the guard.
	refused := tls.Client(b.dial("443"), &tls.Config{ServerName: "good.example", RootCAs: b.trust(true)})
	io.WriteString(refused, "GET /no HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: good.example\r\n\r\n")
	answer, _ := io.ReadAll(refused)
	if n := bytes.Count(answer, []byte("HTTP/1.1 ")); n != 1 || b.w.origin.find("/smuggled") != nil {
		t.Errorf("%d answers: %.300q", n, answer)
	}
}

func TestStreamsAndTrailersPass(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	c := b.client(true, true)
	pr, pw := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", "https://good.example/duplex", pr)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("Te", "trailers")
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 16)
	for _, word := range []string{"one", "two", "three"} { // each answered before the next is sent
		io.WriteString(pw, word)
		if n, err := io.ReadFull(resp.Body, buf[:len(word)]); err != nil || string(buf[:n]) != strings.ToUpper(word) {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	pw.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Trailer.Get("Grpc-Status") != "0" || resp.ProtoMajor != 2 {
		t.Errorf("trailer %v, %v", resp.Trailer, err)
	}
}

func TestHTTP2WithoutTLS(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	plain := b.client(false, false)
	tr := plain.Transport.(*http.Transport)
	tr.Protocols, tr.TLSNextProto = protocols, nil
	status, body, _ := get(t, plain, "http://good.example/h2c")
	if status != 200 || !strings.Contains(body, "proto=2") {
		t.Errorf("%d %s", status, body)
	}
	if status, _, _ := get(t, plain, "http://other.example/h2c"); status != 403 {
		t.Errorf("denied: %d", status)
	}
}

func TestE08_AnEncryptedHelloIsDenied(t *testing.T) {
	t.Parallel()
	b := newBox(t, onlyGood)
	hello := clientHello(t, "good.example")
	// One more extension, at the end, and three lengths that grow.
	ech := []byte{0xfe, 0x0d, 0, 1, 0}
	grow := func(at, size int) {
		n := 0
		for i := range size {
			n = n<<8 | int(hello[at+i])
		}
		n += len(ech)
		for i := size - 1; i >= 0; i-- {
			hello[at+i] = byte(n)
			n >>= 8
		}
	}
	grow(3, 2)
	grow(6, 3)
	at := 5 + 4 + 2 + 32
	at += 1 + int(hello[at])
	at += 2 + int(hello[at])<<8 + int(hello[at+1])
	at += 1 + int(hello[at])
	grow(at, 2)
	c := b.dial("443")
	c.Write(append(hello, ech...))
	gone(t, c)
	if r := b.recorded(func(r audit.Record) bool { return r.Action == audit.Deny }); !strings.Contains(r.Reason, "encrypted") {
		t.Errorf("%+v", r)
	}
}

func TestF10_NoSecretInLogsRecordsOrAnswers(t *testing.T) {
	t.Parallel()
	b := tokenBox(t, "")
	for _, path := range []string{"/a", "/reflect", "/redirect", "/stream-not", "/v?q=" + url.QueryEscape("x")} {
		if status, body, _ := get(t, b.client(true, false), "https://good.example"+path); strings.Contains(body, canary) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	bad := tokenBox(t, "")
	bad.secret("src", sealed.Secret{Values: map[string]string{"token": canary + "\r\nX: y"}}) // no header
	if status, body, _ := get(t, bad.client(true, false), "https://good.example/f10"); status != 503 || strings.Contains(body, canary) {
		t.Errorf("%d %s", status, body)
	}
	b.recorded(func(r audit.Record) bool { return r.AuthResolved })
	records, err := json.Marshal(append(b.all(), bad.all()...))
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"records": string(records), "logs": b.w.log.String(), "a policy": fmt.Sprintf("%+v", policy.Default())} {
		if strings.Contains(text, canary) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(canary))) {
			t.Errorf("the secret is in the %s", what)
		}
	}
}
