package services

import (
	"encoding/json"
	"strings"
	"testing"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/strictjson"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// parse reads services as a client sends them.
func parse(t *testing.T, list string) []openapi.SandboxAppService {
	t.Helper()
	var body struct {
		Services []openapi.SandboxAppService `json:"services"`
	}
	if err := strictjson.Unmarshal([]byte(`{"services":`+list+`}`), &body, "services"); err != nil {
		t.Fatalf("%s: %v", list, err)
	}
	return body.Services
}

func TestNormalize(t *testing.T) {
	t.Parallel()
	got, err := Normalize(parse(t, `[
		{"id":"WEB","port":8080,"ingress":{"public":true}},
		{"id":"fn","port":1,"runtime":{"type":"function","function":{"runtime":"python","source":{"type":"inline","code":"x"}}},"ingress":{"public":true,
			"routes":[{"id":"A","path_prefix":"/a/","methods":["get"],"auth":{"mode":"bearer","bearer_token_sha256":"`+strings.Repeat("AB", 32)+`"},
			"cors":{"allowed_origins":["HTTPS://Example.com"]},"resume":true}]}},
		{"id":"job","port":80,"runtime":{"type":"cmd"},"ingress":{"public":false}}]`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"id":"web","ingress":{"public":true,"routes":[{"id":"web","path_prefix":"/","resume":false}]},"port":8080},` +
		`{"id":"fn","ingress":{"public":true,"routes":[{"auth":{"bearer_token_sha256":"` + strings.Repeat("ab", 32) + `","mode":"bearer"},` +
		`"cors":{"allowed_origins":["https://example.com"]},"id":"a","methods":["GET"],"path_prefix":"/a/","resume":true}]},"port":49983,` +
		`"runtime":{"function":{"handler":"handler","runtime":"python","source":{"code":"x","type":"inline"}},"type":"function"}},` +
		`{"id":"job","ingress":{"public":false},"port":80,"runtime":{"type":"cmd"}}]`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	again, err := Normalize(got)
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := json.Marshal(again); string(c) != string(b) {
		t.Errorf("not stable: %s", c)
	}
	if none, err := Normalize(nil); none != nil || err != nil {
		t.Errorf("absent became %v, %v", none, err)
	}
	if empty, err := Normalize([]openapi.SandboxAppService{}); empty == nil || err != nil {
		t.Errorf("empty became %v, %v", empty, err)
	}
}

// route and service make one that is good but for what is given.
func route(fields string) string {
	return `[{"id":"a","port":80,"ingress":{"public":true,"routes":[{"id":"r","resume":false,` + fields + `}]}}]`
}

func function(fields string) string {
	return `[{"id":"f","runtime":{"type":"function","function":{` + fields + `}},"ingress":{"public":true}}]`
}

func many(n int, f func(i int) string) string {
	var list []string
	for i := range n {
		list = append(list, f(i))
	}
	return "[" + strings.Join(list, ",") + "]"
}

func quoted(n int) string { return many(n, func(int) string { return `"a"` }) }

func TestA18_A21_BadServices(t *testing.T) {
	t.Parallel()
	numbered := func(i int) string { return strings.Repeat("a", i%60+1) + string(rune('a'+i/60)) }
	for name, list := range map[string]string{
		"no id":                  `[{"id":"","port":80,"ingress":{"public":true}}]`,
		"id no label":            `[{"id":"a.b","port":80,"ingress":{"public":true}}]`,
		"id too long":            `[{"id":"` + strings.Repeat("a", 64) + `","port":80,"ingress":{"public":true}}]`,
		"id with CR":             `[{"id":"a\r\nb","port":80,"ingress":{"public":true}}]`,
		"two of an id":           `[{"id":"a","port":80,"ingress":{"public":true}},{"id":"A","port":81,"ingress":{"public":true}}]`,
		"two of a port":          `[{"id":"a","port":80,"ingress":{"public":true}},{"id":"b","port":80,"ingress":{"public":false}}]`,
		"no port":                `[{"id":"a","ingress":{"public":true}}]`,
		"port 0":                 `[{"id":"a","port":0,"ingress":{"public":true}}]`,
		"port -1":                `[{"id":"a","port":-1,"ingress":{"public":true}}]`,
		"port 65536":             `[{"id":"a","port":65536,"ingress":{"public":true}}]`,
		"port of procd":          `[{"id":"a","port":49983,"ingress":{"public":true}}]`,
		"name with control":      `[{"id":"a","port":80,"display_name":"a\u0000","ingress":{"public":true}}]`,
		"runtime type":           `[{"id":"a","port":80,"runtime":{"type":"vm"},"ingress":{"public":true}}]`,
		"command of manual":      `[{"id":"a","port":80,"runtime":{"type":"manual","command":["x"]},"ingress":{"public":true}}]`,
		"empty program":          `[{"id":"a","port":80,"runtime":{"type":"cmd","command":[""]},"ingress":{"public":true}}]`,
		"NUL in command":         `[{"id":"a","port":80,"runtime":{"type":"cmd","command":["a\u0000"]},"ingress":{"public":true}}]`,
		"env":                    `[{"id":"a","port":80,"runtime":{"type":"cmd","env_vars":{"A=B":"c"}},"ingress":{"public":true}}]`,
		"function of cmd":        `[{"id":"a","port":80,"runtime":{"type":"cmd","function":{}},"ingress":{"public":true}}]`,
		"health path":            `[{"id":"a","port":80,"health_check":{"path":"ok"},"ingress":{"public":true}}]`,
		"health path with CRLF":  `[{"id":"a","port":80,"health_check":{"path":"/a\r\nHost: b"},"ingress":{"public":true}}]`,
		"33 routes":              `[{"id":"a","port":80,"ingress":{"public":true,"routes":` + many(33, func(i int) string { return `{"id":"` + numbered(i) + `","resume":false}` }) + `}}]`,
		"route id":               `[{"id":"a","port":80,"ingress":{"public":true,"routes":[{"id":"-","resume":false}]}}]`,
		"two of a route":         `[{"id":"a","port":80,"ingress":{"public":true,"routes":[{"id":"r","resume":false},{"id":"R","resume":false}]}}]`,
		"relative prefix":        route(`"path_prefix":"a"`),
		"prefix with dots":       route(`"path_prefix":"/a/../b"`),
		"prefix with escapes":    route(`"path_prefix":"/a%2fb"`),
		"prefix with query":      route(`"path_prefix":"/a?b"`),
		"rewrite with CR":        route(`"rewrite_prefix":"/a\rb"`),
		"17 methods":             route(`"methods":` + quoted(17)),
		"method no token":        route(`"methods":["G T"]`),
		"CONNECT":                route(`"methods":["connect"]`),
		"auth without mode":      route(`"auth":{"bearer_token_sha256":"` + strings.Repeat("0", 64) + `"}`),
		"auth mode":              route(`"auth":{"mode":"basic"}`),
		"bearer without hash":    route(`"auth":{"mode":"bearer"}`),
		"bearer with plain text": route(`"auth":{"mode":"bearer","bearer_token_sha256":"secret"}`),
		"header without hash":    route(`"auth":{"mode":"header","header_name":"X-Key"}`),
		"header without name":    route(`"auth":{"mode":"header","header_value_sha256":"` + strings.Repeat("0", 64) + `"}`),
		"header of HTTP":         route(`"auth":{"mode":"header","header_name":"connection","header_value_sha256":"` + strings.Repeat("0", 64) + `"}`),
		"header of ours":         route(`"auth":{"mode":"header","header_name":"x-sandbox-id","header_value_sha256":"` + strings.Repeat("0", 64) + `"}`),
		"header with CRLF":       route(`"auth":{"mode":"header","header_name":"X\r\nY","header_value_sha256":"` + strings.Repeat("0", 64) + `"}`),
		"hash with mode none":    route(`"auth":{"mode":"none","bearer_token_sha256":"` + strings.Repeat("0", 64) + `"}`),
		"33 origins":             route(`"cors":{"allowed_origins":` + many(33, func(int) string { return `"*"` }) + `}`),
		"origin with path":       route(`"cors":{"allowed_origins":["https://a.b/c"]}`),
		"origin null":            route(`"cors":{"allowed_origins":["null"]}`),
		"credentials to all":     route(`"cors":{"allowed_origins":["*"],"allow_credentials":true}`),
		"CORS header":            route(`"cors":{"allowed_headers":["a b"]}`),
		"CORS age":               route(`"cors":{"max_age_seconds":-1}`),
		"rate 0":                 route(`"rate_limit":{"rps":0,"burst":1}`),
		"burst missing":          route(`"rate_limit":{"rps":1}`),
		"timeout":                route(`"timeout_seconds":-1`),
		"resume of manual":       `[{"id":"a","port":80,"ingress":{"public":true,"routes":[{"id":"r","resume":true}]}}]`,
		"function timeout":       `[{"id":"f","runtime":{"type":"function"},"ingress":{"public":true,"routes":[{"id":"r","timeout_seconds":121,"resume":false}]}}]`,
		"handler":                function(`"handler":"a b"`),
		"handler with dots":      function(`"handler":"a..b"`),
		"language":               function(`"runtime":"node"`),
		"concurrency":            function(`"max_concurrency":1025`),
		"source type":            function(`"source":{"type":"git","code":"x"}`),
		"code too large":         function(`"source":{"code":"` + strings.Repeat("x", 256<<10+1) + `"}`),
		"two functions at /":     `[{"id":"f","runtime":{"type":"function"},"ingress":{"public":true}},{"id":"g","runtime":{"type":"function"},"ingress":{"public":true}}]`,
		"65 services":            many(65, func(i int) string { return `{"id":"` + numbered(i) + `","port":80,"ingress":{"public":false}}` }),
	} {
		if got, err := Normalize(parse(t, list)); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestChecksAcrossAConfig(t *testing.T) {
	t.Parallel()
	list, err := Normalize(parse(t, `[{"id":"a","port":80,"runtime":{"type":"cmd"},"ingress":{"public":true,"routes":[{"id":"r","resume":true}]}}]`))
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Services: list}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if err := c.With(openapi.SandboxUpdateConfig{AutoResume: new(false)}).Check(); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("auto_resume off under a route that resumes: %v", err)
	}
	if err := c.With(openapi.SandboxUpdateConfig{ExposedPorts: []openapi.ExposedPort{{Port: 80}}}).Check(); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a port that a service has: %v", err)
	}
	if err := c.With(openapi.SandboxUpdateConfig{Services: []openapi.SandboxAppService{}, AutoResume: new(false)}).Check(); err != nil {
		t.Error(err)
	}
	for _, ports := range [][]openapi.ExposedPort{{{Port: 0}}, {{Port: 49983}}, {{Port: 65536}}, {{Port: 1}, {Port: 1}}, make([]openapi.ExposedPort, 65)} {
		if _, err := NormalizePorts(ports); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%v: %v", ports, err)
		}
	}
}

const id = sandbox.ID("local-abcdefghijklmnopqrstuvwxyz")

func TestViews(t *testing.T) {
	t.Parallel()
	d, err := NewDomain("eu-1", "apps.example.com")
	if err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]string{
		`[{"id":"a","port":80,"ingress":{"public":true}}]`:                                                                                                     "missing_runtime",
		`[{"id":"a","port":80,"runtime":{"type":"manual"},"ingress":{"public":true}}]`:                                                                         "manual_runtime",
		`[{"id":"a","port":80,"runtime":{"type":"cmd"},"ingress":{"public":true}}]`:                                                                            "missing_command",
		`[{"id":"a","port":80,"runtime":{"type":"function"},"ingress":{"public":false}}]`:                                                                      "not_public missing_function",
		`[{"id":"a","port":80,"runtime":{"type":"cmd","command":["x"]},"ingress":{"public":true}}]`:                                                            "",
		`[{"id":"a","port":80,"runtime":{"type":"function","function":{"source":{"type":"inline","code":"x"},"runtime":"python"}},"ingress":{"public":true}}]`: "",
	} {
		services, err := Normalize(parse(t, list))
		if err != nil {
			t.Fatal(err)
		}
		v := View(id, services[0], d)
		var got []string
		for _, b := range v.PublishBlockers {
			got = append(got, string(b))
		}
		if strings.Join(got, " ") != want || v.Publishable != (want == "") || (v.PublicURL != nil) != v.Ingress.Public {
			t.Errorf("%s: %v, publishable %v, url %v", list, got, v.Publishable, v.PublicURL)
		}
		if v.PublicURL != nil && *v.Port == 80 && *v.PublicURL != "https://"+string(id)+"--p80.eu-1.apps.example.com" {
			t.Error(*v.PublicURL)
		}
	}
}
