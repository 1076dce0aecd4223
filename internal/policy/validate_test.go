package policy

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const binding = `{"ref":"k","sourceRef":"s","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Authorization","valueTemplate":"Bearer {{ .token }}"}]}}}`

func TestValidateNamesTheField(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		`{}`:              "mode must be",
		`{"mode":"none"}`: "mode must be",
		`{"mode":"allow-all","enforcement":"later"}`:                                                                                                                                                   "enforcement must be",
		`{"mode":"allow-all","egress":{"allowedCidrs":["8.8.8.8/32"]}}`:                                                                                                                                "mode block-all alone",
		`{"mode":"block-all","egress":{"deniedPorts":[{"port":1}]}}`:                                                                                                                                   "mode allow-all alone",
		`{"mode":"block-all","egress":{"allowedCidrs":["8.8.8.8/33"]}}`:                                                                                                                                "egress.allowedCidrs[0]",
		`{"mode":"block-all","egress":{"allowedCidrs":["::ffff:8.8.8.8/128"]}}`:                                                                                                                        "egress.allowedCidrs[0]",
		`{"mode":"block-all","egress":{"allowedDomains":["a.test","b_ad..test"]}}`:                                                                                                                     "egress.allowedDomains[1]",
		`{"mode":"block-all","egress":{"allowedDomains":["*"]}}`:                                                                                                                                       "egress.allowedDomains[0]",
		`{"mode":"block-all","egress":{"allowedDomains":["1.2.3.4"]}}`:                                                                                                                                 "egress.allowedDomains[0]",
		`{"mode":"block-all","egress":{"allowedDomains":["bücher.test"]}}`:                                                                                                                             "egress.allowedDomains[0]",
		`{"mode":"block-all","egress":{"allowedPorts":[{"port":0}]}}`:                                                                                                                                  "egress.allowedPorts[0]",
		`{"mode":"block-all","egress":{"allowedPorts":[{"port":9,"endPort":8}]}}`:                                                                                                                      "endPort",
		`{"mode":"block-all","egress":{"allowedPorts":[{"port":9,"protocol":"sctp"}]}}`:                                                                                                                "protocol",
		`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow"}]}}`:                                                                                                                          "egress.trafficRules[0]: a rule needs",
		`{"mode":"block-all","egress":{"trafficRules":[{"action":"ask","ports":[{"port":1}]}]}}`:                                                                                                       "egress.trafficRules[0]: action",
		`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","appProtocols":["smtp"]}]}}`:                                                                                                  "appProtocols[0]",
		`{"mode":"block-all","egress":{"allowedPorts":[{"port":1}],"trafficRules":[{"action":"allow","ports":[{"port":1}]}]}}`:                                                                         "do not go together",
		`{"mode":"block-all","egress":{"trafficRules":[{"name":"a","action":"allow","ports":[{"port":1}]},{"name":"a","action":"deny","ports":[{"port":1}]}]}}`:                                        "another of the list",
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http"}]}}`:                                                                                                                        "needs http",
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"smtp"}]}}`:                                                                                                                        "protocol must be",
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{"paths":{"denied":["/a/../b"]}}}]}}`:                                                                                "paths.denied[0]",
		`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{"methods":{"denied":["get"]}}}]}}`:                                                                                  "methods.denied[0]",
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k"}]}}`:                                                                                                                    "credentialRef must name",
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k","failurePolicy":"fail-open"}]},"credentialBindings":[` + binding + `]}`:                                                 "fail-closed",
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k","protocol":"ssh"}]},"credentialBindings":[` + binding + `]}`:                                                            "needs a binding of projection ssh_proxy",
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k","protocol":"https","tlsMode":"passthrough"}]},"credentialBindings":[` + binding + `]}`:                                  "tlsMode must be",
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k","protocol":"tls"}]},"credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"tls_client_certificate"}}]}`: "tlsMode must be",
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k","protocol":"redis"}]},"credentialBindings":[` + binding + `]}`:                                                          "can't be put into a login of protocol redis",
		`{"mode":"allow-all","egress":{"credentialRules":[{"credentialRef":"k","protocol":"socks5"}]},"credentialBindings":[` + binding + `]}`:                                                         "egress.proxy.credentialRef",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"ssh_proxy","sshProxy":{"knownHosts":["|1|a|b ssh-ed25519 AAAA"]}}}]}`:                              "knownHosts[0]",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"ssh_proxy","sshProxy":{"knownHosts":["@revoked git.test ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"]}}}]}`:                         "knownHosts[0]",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"ssh_proxy","sshProxy":{"knownHosts":["git.test ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"]}}}]}`:                                      "knownHosts[0]",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"ssh_proxy","sshProxy":{"knownHosts":["git.test ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"],"sandboxPublicKeys":["git.test"]}}}]}`: "sandboxPublicKeys[0]",
		`{"mode":"allow-all","egress":{"proxy":{"type":"socks5","address":"proxy"}}}`:                                                                                                                                                                "egress.proxy: address",
		`{"mode":"allow-all","egress":{"proxy":{"type":"socks5","address":"p.test:1080","credentialRef":"x"}}}`:                                                                                                                                      "egress.proxy: credentialRef",
		`{"mode":"allow-all","credentialBindings":[` + binding + `,` + binding + `]}`:                                                                                                                                                                "another of the list",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"header"}}]}`:                                                                                                                                     "credentialBindings[0]: projection: type",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"ssh_proxy","sshProxy":{}}}]}`:                                                                                                                    "knownHosts",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"Host","valueTemplate":"x"}]}}}]}`:                                                               "headers[0].name",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"http_headers","httpHeaders":{"headers":[{"name":"A","valueTemplate":"{{ range . }}x{{ end }}"}]}}}]}`:                                            "valueTemplate",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"placeholder_substitution","placeholderSubstitution":{"replacements":[{"placeholder":"abcd1234","valueTemplate":"{{ .a }}","locations":[]}]}}}]}`: "locations",
		`{"mode":"allow-all","credentialBindings":[{"ref":"k","sourceRef":"s","projection":{"type":"tls_client_certificate"},"cachePolicy":{"ttl":"9d"}}]}`:                                                                                          "cachePolicy.ttl",
	} {
		p, err := Parse([]byte(source))
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s:\n  %v, want %q", source, err, want)
		}
	}
}

// Under a client certificate nothing is looked into, so no rule may ask for it.
func TestE10_AClientCertificateIsNoWayPastRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, cert, rule string
		refused          bool
	}{
		{"everywhere", ``, ``, true},
		{"the same name", `,"domains":["a.test"]`, `,"domains":["a.test"]`, true},
		{"one name of many", `,"domains":["b.a.test"]`, `,"domains":["x.test","*.a.test"]`, true},
		{"many, one name", `,"domains":["*.a.test"]`, `,"domains":["b.a.test"]`, true},
		{"both many", `,"domains":["*.b.a.test"]`, `,"domains":["*.a.test"]`, true},
		{"another name", `,"domains":["a.test"]`, `,"domains":["b.a.test","ba.test"]`, false},
		{"overlapping ports", `,"ports":[{"port":443}]`, `,"ports":[{"port":400,"endPort":500}]`, true},
		{"other ports", `,"ports":[{"port":443}]`, `,"ports":[{"port":80}]`, false},
		{"a rule that passes TLS", ``, `,"tlsMode":"passthrough"`, false},
		{"a certificate that is off", `,"rollout":"disabled"`, ``, false},
	} {
		p, err := Parse([]byte(`{"mode":"allow-all","egress":{
			"credentialRules":[{"credentialRef":"c","protocol":"tls","tlsMode":"terminate-reoriginate"` + c.cert + `}],
			"protocolRules":[{"protocol":"http","http":{"methods":{"allowed":["GET"]}}` + c.rule + `}]},
			"credentialBindings":[{"ref":"c","sourceRef":"s","projection":{"type":"tls_client_certificate","tlsClientCertificate":{}}}]}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Validate(); (err != nil) != c.refused || err != nil && !strings.Contains(err.Error(), "client certificate") {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestParseRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for _, source := range []string{`{"mode":"allow-all","more":1}`, `{"mode":"allow-all"} {}`, `[]`, `{"mode":1}`, ``, `{"mode":"` + strings.Repeat("x", maxBytes) + `"}`} {
		if p, err := Parse([]byte(source)); err == nil {
			t.Errorf("%.40s is read as %+v", source, p)
		}
	}
}

// A policy that is read is the policy that is written, and absent bindings are not
// empty ones.
func TestJSONIsPutableUnchanged(t *testing.T) {
	t.Parallel()
	for _, source := range []string{
		`{"mode":"allow-all"}`,
		`{"mode":"allow-all","credentialBindings":[]}`,
		`{"mode":"block-all","enforcement":"audit-only","egress":{"allowedDomains":["A.test"],"proxy":{"type":"socks5","address":"p.test:1"}},"credentialBindings":[` + binding + `]}`,
		`{"mode":"block-all","egress":{"protocolRules":[{"protocol":"mcp","domains":["m.test"],"httpMatch":{"query":[{"name":"q","present":false}]},"mcp":{"tools":{"allowed":["read*"]}}}]}}`,
	} {
		p, err := Parse([]byte(source))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		got, err := p.JSON()
		if err != nil || string(got) != source {
			t.Errorf("%s (%v), want %s", got, err, source)
		}
	}
}

func TestMergeByName(t *testing.T) {
	t.Parallel()
	parse := func(s string) *Policy {
		p, err := Parse([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	template := parse(`{"mode":"block-all","egress":{"trafficRules":[{"name":"pypi","action":"allow","domains":["pypi.test"]},{"name":"git","action":"allow","domains":["git.test"]}]},"credentialBindings":[` + binding + `]}`)
	merged := Merge(template, parse(`{"mode":"block-all","egress":{"trafficRules":[{"name":"git","action":"deny","domains":["git.test"]},{"name":"new","action":"allow","domains":["new.test"]}]}}`))
	var got []string
	for _, r := range merged.Egress.TrafficRules {
		got = append(got, r.Name+" "+r.Action)
	}
	if want := []string{"new allow", "pypi allow", "git deny"}; !reflect.DeepEqual(got, want) {
		t.Errorf("merged rules %v, want %v", got, want)
	}
	if len(merged.CredentialBindings) != 1 {
		t.Error("the template's bindings are not kept")
	}
	if template.Egress.TrafficRules[1].Action != ActionAllow {
		t.Error("merging changed the template")
	}
	lists := parse(`{"mode":"block-all","egress":{"allowedDomains":["a.test"],"allowedPorts":[{"port":443}]}}`)
	if m := Merge(lists, parse(`{"mode":"block-all","egress":{"allowedDomains":["b.test"]}}`)); m.Egress.AllowedDomains[0] != "b.test" || len(m.Egress.AllowedPorts) != 1 {
		t.Errorf("merged lists: %+v", m.Egress)
	}
	if m := Merge(lists, parse(`{"mode":"allow-all"}`)); m.Validate() != nil || m.Egress.AllowedDomains != nil {
		t.Errorf("another mode with its template's exceptions: %+v", m.Egress)
	}
	if m := Merge(lists, parse(`{"mode":"block-all","egress":{"trafficRules":[{"action":"allow","ports":[{"port":1}]}]}}`)); m.Validate() == nil {
		t.Error("rules beside lists are valid")
	}
	if Merge(nil, nil) != nil || Merge(lists, nil) != lists || Merge(nil, lists) != lists {
		t.Error("one policy alone is not itself")
	}
}

func TestE08_NamesHaveOneForm(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"Example.COM": "example.com", "example.com.": "example.com", "xn--bcher-kva.test": "xn--bcher-kva.test", "_sip._tcp.a.test": "_sip._tcp.a.test",
		"": "", ".": "", "a..b": "", ".a": "", "a.test..": "", "a\x00.test": "", "bücher.test": "", "a b.test": "", "-a.test": "", "a-.test": "",
		"\u212aelvin.test": "", "1.2.3.4": "", "0x7f.1": "", "127.1": "", "2130706433": "", "a.0x1F": "", "[::1]": "", "a.test:443": "", "*.a.test": "",
		strings.Repeat("a", 64) + ".test": "", strings.Repeat("a.", 130) + "test": "", "evil.test%00.good.test": "",
	} {
		got, err := Name(raw)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", raw, got, err, want)
		}
	}
}

func FuzzName(f *testing.F) {
	f.Add("Example.COM.")
	f.Add("a\x00b")
	f.Fuzz(func(t *testing.T, raw string) {
		name, err := Name(raw)
		if (err == nil) == (name == "") {
			t.Fatalf("%q: %q and %v", raw, name, err)
		}
		if again, err2 := Name(name); err == nil && (err2 != nil || again != name) {
			t.Fatalf("%q is not its own form: %q, %v", name, again, err2)
		}
		if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r >= 'A' && r <= 'Z' }) {
			t.Fatalf("%q has the form %q", raw, name)
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"mode":"block-all","egress":{"allowedDomains":["*.a.test"]}}`))
	f.Add([]byte(`{"mode":"allow-all","credentialBindings":[` + binding + `]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil || p.Validate() != nil {
			return
		}
		if _, err := Compile(p, Fixed{Denied: prefixes("10.0.0.0/8")}); err != nil {
			t.Fatalf("valid and can't be compiled: %v", err)
		}
		written, err := p.JSON()
		if err != nil || !json.Valid(written) {
			t.Fatalf("%s: %v", written, err)
		}
		again, err := Parse(written)
		if err != nil || again.Validate() != nil {
			t.Fatalf("%s can't be read again: %v", written, err)
		}
	})
}
