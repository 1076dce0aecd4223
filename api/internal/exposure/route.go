package exposure

import (
	"cmp"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/services"
)

// route is one way into a service, ready for matching.
type route struct {
	service  openapi.SandboxAppService
	id       string
	prefix   string   // without a final slash; "" matches every path
	rewrite  *string  // takes the prefix' place; nil: the path stays
	methods  []string // empty: all
	auth     auth
	cors     *cors // nil: the service's own affair
	rps      int32 // 0: no limit
	burst    int32
	timeout  time.Duration // until the answer begins; 0: none
	resume   bool
	function bool
}

// compile makes the routes of all that a config exposes, by port.
func compile(c services.Config) map[int32][]*route {
	ports := map[int32][]*route{}
	for _, s := range c.Services {
		if !s.Ingress.Public {
			continue
		}
		for _, r := range s.Ingress.Routes {
			ports[*s.Port] = append(ports[*s.Port], newRoute(s, r))
		}
	}
	for _, p := range c.ExposedPorts {
		s := openapi.SandboxAppService{ID: "exposed-port", Port: &p.Port}
		ports[p.Port] = append(ports[p.Port], &route{service: s, id: s.ID, resume: p.Resume})
	}
	for _, list := range ports {
		slices.SortStableFunc(list, func(a, b *route) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	}
	return ports
}

func newRoute(s openapi.SandboxAppService, r openapi.ServiceRoute) *route {
	rt := &route{
		service: s, id: r.ID, prefix: strings.TrimSuffix(*r.PathPrefix, "/"), methods: r.Methods,
		auth: newAuth(r.Auth), cors: newCORS(r), resume: r.Resume,
		function: services.Kind(s) == openapi.ServiceRuntimeTypeFunction,
	}
	if r.RewritePrefix != nil && *r.RewritePrefix != "" {
		rt.rewrite = new(strings.TrimSuffix(*r.RewritePrefix, "/"))
	}
	if r.RateLimit != nil {
		rt.rps, rt.burst = r.RateLimit.Rps, r.RateLimit.Burst
	}
	if r.TimeoutSeconds != nil {
		rt.timeout = time.Duration(*r.TimeoutSeconds) * time.Second
	}
	if rt.function && rt.timeout == 0 {
		rt.timeout = services.DefaultFunctionTimeout * time.Second
	}
	return rt
}

// at answers the routes of a port that have the longest prefix of a plain path.
func (e *entry) at(port int32, path string) []*route {
	list := e.routes[port]
	first := slices.IndexFunc(list, func(r *route) bool { return below(path, r.prefix) })
	if first < 0 {
		return nil
	}
	same := list[first:]
	if end := slices.IndexFunc(same, func(r *route) bool { return r.prefix != same[0].prefix }); end > 0 {
		same = same[:end]
	}
	return same
}

// below reports whether a path is a prefix' own or lies below it. A parameter of
// a segment (`/admin;x`) belongs to the segment: some servers cut it off.
func below(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || rest[0] == '/' || rest[0] == ';')
}

// routeOf is the route of a request; what has none does not exist.
func (e *entry) routeOf(r *http.Request, req Request) (*route, error) {
	routes, err := e.match(req.Address.Port, r.URL)
	if err != nil {
		return nil, err
	}
	if len(routes) == 0 {
		return nil, errNotExposed
	}
	return choose(routes, askedMethod(r))
}

// choose takes the first route that takes the method.
func choose(routes []*route, method string) (*route, error) {
	for _, r := range routes {
		if method != "CONNECT" && method != "TRACE" && (len(r.methods) == 0 || slices.Contains(r.methods, method)) {
			return r, nil
		}
	}
	return nil, errMethod
}

// ambiguous is what some servers take for a separator and others don't.
var ambiguous = regexp.MustCompile(`(?i)%2f|%5c|\\`)

// match finds the routes of a request. A path that a service might read in a way
// that leads through another route is refused, for routes are what protects it.
func (e *entry) match(port int32, u *url.URL) ([]*route, error) {
	path, err := plainPath(u.Path)
	if err != nil {
		return nil, err
	}
	literal, err := url.PathUnescape(ambiguous.ReplaceAllString(u.EscapedPath(), "_"))
	if err != nil {
		return nil, errPath
	}
	routes := e.at(port, path)
	if literal != path && !slices.Equal(routes, e.at(port, literal)) {
		return nil, errPath
	}
	return routes, nil
}

// plainPath is a decoded path without empty segments, parameters of segments and
// other spellings of a separator. Segments that lead elsewhere are refused.
func plainPath(p string) (string, error) {
	if !strings.HasPrefix(p, "/") || strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", errPath
	}
	var b strings.Builder
	for segment := range strings.SplitSeq(strings.ReplaceAll(p, `\`, "/"), "/") {
		name, _, _ := strings.Cut(segment, ";")
		switch name {
		case ".", "..":
			return "", errPath
		case "":
		default:
			b.WriteString("/" + name)
		}
	}
	if b.Len() == 0 || strings.HasSuffix(p, "/") {
		b.WriteByte('/')
	}
	return b.String(), nil
}
