package exposure

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"s0.run/api/internal/openapi"
)

// cors is what pages of other origins may do with a route.
type cors struct {
	origins     []string // lower case; "*": all
	methods     string
	headers     string
	expose      string
	credentials bool
	maxAge      string // "": the browser's own
}

// corsMethods are allowed when a route names none.
const corsMethods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

func newCORS(r openapi.ServiceRoute) *cors {
	c := r.CORS
	if c == nil {
		return nil
	}
	out := &cors{
		origins: c.AllowedOrigins, headers: strings.Join(c.AllowedHeaders, ", "), expose: strings.Join(c.ExposeHeaders, ", "),
		methods: corsMethods, credentials: c.AllowCredentials != nil && *c.AllowCredentials,
	}
	switch {
	case len(c.AllowedMethods) > 0:
		out.methods = strings.Join(c.AllowedMethods, ", ")
	case len(r.Methods) > 0:
		out.methods = strings.Join(r.Methods, ", ")
	}
	if c.MaxAgeSeconds != nil {
		out.maxAge = strconv.Itoa(int(*c.MaxAgeSeconds))
	}
	return out
}

// apply sets the headers of an answer and reports whether the request was a
// preflight, which is answered by them alone.
func (c *cors) apply(h http.Header, r *http.Request) (preflight bool) {
	if c == nil {
		return false
	}
	h.Add("Vary", "Origin") // also without one: what is cached may be asked for with it
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	preflight = r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
	switch {
	case slices.Contains(c.origins, "*"):
		h.Set("Access-Control-Allow-Origin", "*")
	case slices.Contains(c.origins, strings.ToLower(origin)):
		h.Set("Access-Control-Allow-Origin", origin)
		if c.credentials {
			h.Set("Access-Control-Allow-Credentials", "true")
		}
	default:
		return preflight
	}
	if !preflight {
		setUnlessEmpty(h, "Access-Control-Expose-Headers", c.expose)
		return false
	}
	h.Set("Access-Control-Allow-Methods", c.methods)
	setUnlessEmpty(h, "Access-Control-Allow-Headers", c.headers)
	setUnlessEmpty(h, "Access-Control-Max-Age", c.maxAge)
	return true
}

func setUnlessEmpty(h http.Header, name, value string) {
	if value != "" {
		h.Set(name, value)
	}
}

// corsHeaders are the route's where it has a say: the service's own are dropped.
var corsHeaders = []string{
	"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Allow-Methods",
	"Access-Control-Allow-Headers", "Access-Control-Expose-Headers", "Access-Control-Max-Age",
}
