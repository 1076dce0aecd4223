package policy

import (
	"net/netip"
	"strings"
	"testing"
)

const rules = `{"mode":"allow-all","egress":{
	"protocolRules":[
		{"name":"readers","protocol":"http","domains":["api.test"],"http":{"methods":{"allowed":["GET","HEAD"]},"paths":{"allowedPrefixes":["/v1"],"denied":["/v1/secret"]}}},
		{"name":"tools","protocol":"mcp","domains":["mcp.test"],"httpMatch":{"paths":["/mcp"]},"mcp":{"tools":{"allowed":["read*","list"],"denied":["read_secret"]}}}],
	"credentialRules":[
		{"name":"off","credentialRef":"k","rollout":"disabled","domains":["api.test"]},
		{"name":"posts","credentialRef":"k","protocol":"https","domains":["*.hub.test"],"httpMatch":{"methods":["POST"],"pathPrefixes":["/repos"],"headers":[{"name":"x-use","present":true}],"query":[{"name":"v","values":["1"]}]}},
		{"name":"grpc","credentialRef":"k","protocol":"grpc","domains":["grpc.test"]},
		{"name":"mtls","credentialRef":"c","protocol":"tls","tlsMode":"terminate-reoriginate","domains":["db.test"]}]},
	"credentialBindings":[` + binding + `,{"ref":"c","sourceRef":"s2","projection":{"type":"tls_client_certificate","tlsClientCertificate":{}},"cachePolicy":{"ttl":"30s"}}]}`

func TestHTTPRules(t *testing.T) {
	t.Parallel()
	c := compile(t, Fixed{}, rules)
	for _, r := range []struct {
		method, path string
		want         bool
	}{
		{"GET", "/v1", true}, {"GET", "/v1/a", true}, {"HEAD", "/v1/%61", true}, {"POST", "/v1/a", false}, {"get", "/v1/a", false},
		{"GET", "/v10", false}, {"GET", "/v1/secret", false}, {"GET", "/v1/%73ecret", false}, {"GET", "/v1//secret", false}, {"GET", "/v1/./secret", false},
		{"GET", "/v1/..%2f..%2fadmin", false}, {"GET", "/v1/a%2fb", false}, {"GET", "/v1\\a", false}, {"GET", "/v1/a;b", false}, {"GET", "/v1/%zz", false},
		{"GET", "/v1/%2573ecret", false}, {"GET", "*", false}, {"GET", "", false}, {"GET", "/v1/%00", false},
	} {
		if v := c.HTTP(Request{Name: "api.test", Port: 443, Method: r.method, Path: r.path}); v.Allow != r.want || !v.Allow && v.Rule != "readers" {
			t.Errorf("%s %s: %+v", r.method, r.path, v)
		}
	}
	if v := c.HTTP(Request{Name: "other.test", Port: 443, Method: "POST", Path: "/%2f"}); !v.Allow {
		t.Errorf("a host without rules: %+v", v)
	}
}

func TestMCPRules(t *testing.T) {
	t.Parallel()
	c := compile(t, Fixed{}, rules)
	tools := c.Tools(Request{Name: "mcp.test", Port: 443, Method: "POST", Path: "/mcp"})
	if tools == nil {
		t.Fatal("no tool rules for the MCP endpoint")
	}
	for tool, want := range map[string]bool{"read_file": true, "list": true, "lister": false, "read_secret": false, "write": false, "": false} {
		if v := tools.Tool(tool); v.Allow != want {
			t.Errorf("tool %q: %+v", tool, v)
		}
	}
	if v := tools.Unreadable(); v.Allow {
		t.Error("what is no MCP passes")
	}
	if c.Tools(Request{Name: "mcp.test", Port: 443, Path: "/health"}) != nil {
		t.Error("tool rules for another path")
	}
	if c.Tools(Request{Name: "mcp.test", Port: 443, Path: "/%6dcp"}) == nil || c.Tools(Request{Name: "mcp.test", Port: 443, Path: "/x/../mcp"}) == nil {
		t.Error("a path that is read as the endpoint's has no tool rules")
	}
}

func TestF01_CredentialsGoWhereTheirRuleSays(t *testing.T) {
	t.Parallel()
	c := compile(t, Fixed{}, rules)
	good := Request{Name: "api.hub.test", Port: 443, TLS: true, Method: "POST", Path: "/repos/a", Headers: map[string][]string{"X-Use": {"y"}}, Query: map[string][]string{"v": {"1"}}}
	if found, ambiguous := c.Credential(good); found == nil || ambiguous || found.Rule != "posts" || found.Binding.SourceRef != "s" {
		t.Errorf("the request that the rule is about: %+v, %v", found, ambiguous)
	}
	for what, change := range map[string]func(r *Request){
		"another host":   func(r *Request) { r.Name = "hub.test.evil.test" },
		"no name":        func(r *Request) { r.Name = "" },
		"another method": func(r *Request) { r.Method = "GET" },
		"another path":   func(r *Request) { r.Path = "/reposx" },
		"no header":      func(r *Request) { r.Headers = nil },
		"another query":  func(r *Request) { r.Query = map[string][]string{"v": {"2"}} },
		"F04 plain http": func(r *Request) { r.TLS = false },
	} {
		r := good
		change(&r)
		if found, _ := c.Credential(r); found != nil {
			t.Errorf("%s: %+v", what, found)
		}
	}
	twisted := good
	twisted.Path = "/other/../repos/a"
	if found, ambiguous := c.Credential(twisted); found == nil || !ambiguous {
		t.Errorf("a path that can be read as the rule's: %+v, %v", found, ambiguous)
	}
	if found, _ := c.Credential(Request{Name: "api.test", Port: 443, TLS: true, Method: "GET", Path: "/"}); found != nil {
		t.Errorf("a rule that is off: %+v", found)
	}
	if found, _ := c.Credential(Request{Name: "grpc.test", Port: 443, TLS: true, GRPC: true, Path: "/a.B/C"}); found == nil {
		t.Error("gRPC carries nothing")
	}
	if found := c.ConnectionCredential("db.test", 5432, TLS); found == nil || found.Binding.TTL().Seconds() != 30 {
		t.Errorf("a connection's credential: %+v", found)
	}
	if c.ConnectionCredential("db.test", 22, SSH) != nil || c.ConnectionCredential("", 5432, TLS) != nil {
		t.Error("a connection that no rule is about carries something")
	}
}

func TestE08_WhatIsNotSeenMayBeAnything(t *testing.T) {
	t.Parallel()
	const login = `"credentialRules":[{"name":"login","credentialRef":"r","protocol":"ssh","domains":["db.test"]}]},
	"credentialBindings":[{"ref":"r","sourceRef":"s","projection":{"type":"ssh_proxy","sshProxy":{"knownHosts":["db.test ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"]}}}]`
	for _, c := range []struct {
		what, policy, name, rule string
	}{
		{"a protocol that is denied", `{"mode":"allow-all","egress":{"trafficRules":[{"name":"no","action":"deny","appProtocols":["ssh"]}]}}`, "", "no"},
		{"for a name", `{"mode":"allow-all","egress":{"trafficRules":[{"name":"no","action":"deny","domains":["db.test"],"appProtocols":["ssh"]}]}}`, "db.test", "no"},
		{"for another name", `{"mode":"allow-all","egress":{"trafficRules":[{"name":"no","action":"deny","domains":["db.test"],"appProtocols":["ssh"]}]}}`, "x.test", ""},
		{"on another port", `{"mode":"allow-all","egress":{"trafficRules":[{"name":"no","action":"deny","ports":[{"port":22}],"appProtocols":["ssh"]}]}}`, "", ""},
		{"after what allows all", `{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","cidrs":["8.8.8.8/32"]},{"name":"no","action":"deny","appProtocols":["ssh"]}]}}`, "", ""},
		{"after what allows a protocol", `{"mode":"allow-all","egress":{"trafficRules":[{"action":"allow","appProtocols":["tls"]},{"name":"no","action":"deny","appProtocols":["ssh"]}]}}`, "", "no"},
		{"UDP alone", `{"mode":"allow-all","egress":{"trafficRules":[{"name":"no","action":"deny","appProtocols":["udp"]}]}}`, "", ""},
		{"a login", `{"mode":"allow-all","egress":{` + login + `}`, "db.test", "login"},
		{"a login elsewhere", `{"mode":"allow-all","egress":{` + login + `}`, "x.test", ""},
	} {
		f := Flow{Name: c.name, Addr: netip.MustParseAddr("8.8.8.8"), Port: 6379}
		if v := compile(t, Fixed{}, c.policy).Unseen(f); v.Allow != (c.rule == "") || v.Rule != c.rule {
			t.Errorf("%s: %+v", c.what, v)
		}
	}
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	values := map[string]string{"token": "s3cret", "user": "u", "pass": "p"}
	for text, want := range map[string]string{
		"Bearer {{ .token }}":                        "Bearer s3cret",
		`Basic {{ print .user ":" .pass | base64 }}`: "Basic dTpw",
		"{{ urlquery .token }}":                      "s3cret",
		"plain":                                      "plain",
	} {
		tmpl, err := ParseTemplate(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := tmpl.Render(values); got != want || err != nil {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"{{ printf \"%999999999d\" 1 }}", "{{ range . }}{{ end }}", "{{ if .token }}{{ end }}", "{{ define \"a\" }}{{ template \"a\" }}{{ end }}",
		"{{ .token", "{{ $x := .token }}", "{{ . }}", "{{ call .token }}", "{{ index . \"token\" }}", strings.Repeat("x", maxTemplate+1)} {
		if _, err := ParseTemplate(text); err == nil {
			t.Errorf("%.40s is a template", text)
		} else if strings.Contains(err.Error(), "token") {
			t.Errorf("%s is quoted: %v", text, err)
		}
	}
	tmpl, err := ParseTemplate("{{ .missing }} {{ .token }}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tmpl.Render(values); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a value that is missing: %v", err)
	}
}
