package exposure

import (
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/services"
)

// FuzzMatch: whatever way a path is written, a service that reads it in one of
// the ways in which services read paths finds nothing of the closed route's
// through the open one, or the other way round.
func FuzzMatch(f *testing.F) {
	closed, open := openapi.ServiceRoute{ID: "closed", PathPrefix: new("/closed")}, openapi.ServiceRoute{ID: "open", PathPrefix: new("/")}
	e := &entry{routes: compile(services.Config{Services: []openapi.SandboxAppService{{
		ID: "s", Port: new(int32(80)), Ingress: openapi.ServiceIngress{Public: true, Routes: []openapi.ServiceRoute{closed, open}},
	}}})}
	for _, p := range []string{"/", "/closed", "//closed", "/x/../closed", "/%2e%2e/closed", "/closed%2f..", `/a\..\closed`, "/;/closed", "/closed;x", "/a%5c..%5cclosed", "/./closed", "/closed/../x"} {
		f.Add(p)
	}
	readings := map[string]func(u *url.URL) string{
		"decoded":          func(u *url.URL) string { return u.Path },
		"as it came":       func(u *url.URL) string { return u.EscapedPath() },
		"cleaned":          func(u *url.URL) string { return path.Clean(u.Path) },
		"cleaned, escaped": func(u *url.URL) string { return path.Clean(u.EscapedPath()) },
		"Windows":          func(u *url.URL) string { return path.Clean(strings.ReplaceAll(u.Path, `\`, "/")) },
		"servlet":          func(u *url.URL) string { return path.Clean(withoutParameters(u.Path)) },
	}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" || u.Opaque != "" {
			return
		}
		routes, err := e.match(80, u)
		if err != nil || len(routes) == 0 {
			return
		}
		for name, read := range readings {
			p := read(u)
			inside := p == "/closed" || strings.HasPrefix(p, "/closed/")
			if inside && routes[0].id == "open" {
				t.Errorf("%q is %q %s, and passes through the open route", target, p, name)
			}
		}
	})
}

func withoutParameters(p string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

// TestRewriteStaysBelow: what is put in a prefix' place does not change how the
// rest is written.
func TestRewriteStaysBelow(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ prefix, rewrite, path, want string }{
		{"/api", "/v1", "/api/a%2Fb", "/v1/a%2Fb"},
		{"/api", "", "/api/x", "/x"},
		{"/api", "", "/api", "/"},
		{"", "/base", "/x", "/base/x"},
		{"/api", "/v 1", "/api/x", "/v%201/x"},
		{"/api", "/v1", "/%61pi/x", "/v1/x"},
		{"/api", "/v1", "//api//x", "/v1/x"},
	} {
		req, err := http.NewRequest("GET", "http://h"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		rt := &route{prefix: c.prefix, rewrite: &c.rewrite}
		rt.rewritePath(req.URL)
		if got := req.URL.EscapedPath(); got != c.want {
			t.Errorf("%s: %s becomes %s, want %s", c.prefix, c.path, got, c.want)
		}
	}
}
