package services

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/templates"
)

// Bounds of what a sandbox's services may be.
const (
	maxServices      = 64
	maxPorts         = 64
	maxRoutes        = 32
	maxMethods       = 16
	maxCORSValues    = 32
	maxTextBytes     = 256
	maxPathBytes     = 1 << 10
	maxArgs          = 256
	maxCommandBytes  = 64 << 10
	maxCodeBytes     = 256 << 10
	maxConcurrency   = 1024
	maxTimeout       = 3600 // seconds
	maxRate          = 100_000
	maxCORSAge       = 86400
	maxServicesBytes = 1 << 20 // of all services as they are stored

	defaultHandler = "handler"
	// MaxFunctionTimeout bounds an invocation, DefaultFunctionTimeout one whose
	// route says nothing; in seconds.
	MaxFunctionTimeout     = 120
	DefaultFunctionTimeout = 30
)

var (
	labelPattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	handlerPattern = regexp.MustCompile(`^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$`)
	tokenPattern   = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$") // of HTTP: methods and header names
	originPattern  = regexp.MustCompile(`^[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?$`)
	prefixPattern  = regexp.MustCompile(`^/[\x21-\x7e]*$`)
)

// Normalize checks services as a client sent them and gives them the form in
// which they are stored. nil stays nil: absent.
func Normalize(list []openapi.SandboxAppService) ([]openapi.SandboxAppService, error) {
	if list == nil {
		return nil, nil
	}
	if len(list) > maxServices {
		return nil, invalid("services: at most %d", maxServices)
	}
	out := make([]openapi.SandboxAppService, 0, len(list))
	for _, s := range list {
		n, err := normalize(s)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	if err := distinct(out); err != nil {
		return nil, err
	}
	if b, err := json.Marshal(out); err != nil || len(b) > maxServicesBytes {
		return nil, invalid("services: more than %d bytes together", maxServicesBytes)
	}
	return out, nil
}

func normalize(s openapi.SandboxAppService) (openapi.SandboxAppService, error) {
	s.ID = strings.ToLower(s.ID)
	if !labelPattern.MatchString(s.ID) {
		return s, invalid("services: id %.64q must be a DNS label", s.ID)
	}
	checks := []func(*openapi.SandboxAppService) error{checkText, checkPort, checkRuntime, checkHealth, checkIngress}
	for _, check := range checks {
		if err := check(&s); err != nil {
			return s, invalid("service %s: %v", s.ID, err)
		}
	}
	return s, nil
}

func checkText(s *openapi.SandboxAppService) error {
	if s.DisplayName != nil && (len(*s.DisplayName) > maxTextBytes || !printable(*s.DisplayName)) {
		return invalid("display_name must be printable and at most %d bytes", maxTextBytes)
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// checkPort also gives functions the port that stands for them.
func checkPort(s *openapi.SandboxAppService) error {
	if Kind(*s) == openapi.ServiceRuntimeTypeFunction {
		s.Port = new(int32(FunctionPort))
		return nil
	}
	if s.Port == nil {
		return errors.New("port is required")
	}
	return validPort(*s.Port)
}

func validPort(port int32) error {
	switch {
	case port < 1 || port > 65535:
		return invalid("port must be 1 to 65535")
	case port == FunctionPort:
		return invalid("port %d is reserved", FunctionPort)
	}
	return nil
}

func checkRuntime(s *openapi.SandboxAppService) error {
	if s.Runtime == nil {
		return nil
	}
	r := *s.Runtime
	s.Runtime = &r
	switch {
	case !r.Type.Valid():
		return errors.New("runtime.type: want manual, cmd or function")
	case len(r.Command) > 0 && r.Type != openapi.ServiceRuntimeTypeCMD:
		return errors.New("runtime.command is for type cmd")
	case r.Function != nil && r.Type != openapi.ServiceRuntimeTypeFunction:
		return errors.New("runtime.function is for type function")
	}
	if err := checkCommand(r.Command); err != nil {
		return err
	}
	if r.Cwd != nil && (len(*r.Cwd) > maxPathBytes || !printable(*r.Cwd)) {
		return invalid("runtime.cwd must be printable and at most %d bytes", maxPathBytes)
	}
	if err := templates.CheckEnv(r.EnvVars); err != nil {
		return invalid("runtime.env_vars: %v", err)
	}
	return checkFunction(s.Runtime)
}

func checkCommand(argv []string) error {
	total := 0
	for _, arg := range argv {
		total += len(arg)
		if strings.ContainsRune(arg, 0) {
			return errors.New("runtime.command contains a NUL")
		}
	}
	if len(argv) > maxArgs || total > maxCommandBytes {
		return invalid("runtime.command: at most %d words of %d bytes together", maxArgs, maxCommandBytes)
	}
	if len(argv) > 0 && argv[0] == "" {
		return errors.New("runtime.command names no program")
	}
	return nil
}

func checkFunction(r *openapi.ServiceRuntime) error {
	if r.Function == nil {
		return nil
	}
	f := *r.Function
	r.Function = &f
	if f.Runtime != nil && !f.Runtime.Valid() {
		return errors.New("runtime.function.runtime: want python")
	}
	if f.Handler == nil || *f.Handler == "" {
		f.Handler = new(defaultHandler)
	}
	if len(*f.Handler) > maxTextBytes || !handlerPattern.MatchString(*f.Handler) {
		return errors.New("runtime.function.handler must be a Python name, dotted or not")
	}
	if n := f.MaxConcurrency; n != nil && (*n < 0 || *n > maxConcurrency) {
		return invalid("runtime.function.max_concurrency must be 0 to %d", maxConcurrency)
	}
	r.Function = &f
	if f.Source == nil {
		return nil
	}
	if f.Source.Type != nil && !f.Source.Type.Valid() {
		return errors.New("runtime.function.source.type: want inline")
	}
	if code := f.Source.Code; code != nil && (len(*code) > maxCodeBytes || strings.ContainsRune(*code, 0)) {
		return invalid("runtime.function.source.code: at most %d bytes, no NUL", maxCodeBytes)
	}
	return nil
}

func checkHealth(s *openapi.SandboxAppService) error {
	if s.HealthCheck == nil || s.HealthCheck.Path == nil {
		return nil
	}
	if p := *s.HealthCheck.Path; len(p) > maxPathBytes || !prefixPattern.MatchString(p) {
		return errors.New("health_check.path must be a path")
	}
	return nil
}

// checkIngress also gives a public service without routes its only one.
func checkIngress(s *openapi.SandboxAppService) error {
	if len(s.Ingress.Routes) > maxRoutes {
		return invalid("at most %d routes", maxRoutes)
	}
	routes := slices.Clone(s.Ingress.Routes)
	if s.Ingress.Public && len(routes) == 0 {
		routes = []openapi.ServiceRoute{{ID: s.ID}}
	}
	ids := map[string]bool{}
	for i := range routes {
		r := &routes[i]
		r.ID = strings.ToLower(r.ID)
		if !labelPattern.MatchString(r.ID) {
			return invalid("route id %.64q must be a DNS label", r.ID)
		}
		if ids[r.ID] {
			return invalid("route %s is there twice", r.ID)
		}
		ids[r.ID] = true
		if err := checkRoute(s, r); err != nil {
			return invalid("route %s: %v", r.ID, err)
		}
	}
	s.Ingress.Routes = routes
	return nil
}

func checkRoute(s *openapi.SandboxAppService, r *openapi.ServiceRoute) error {
	if r.PathPrefix == nil || *r.PathPrefix == "" {
		r.PathPrefix = new("/")
	}
	for name, p := range map[string]*string{"path_prefix": r.PathPrefix, "rewrite_prefix": r.RewritePrefix} {
		if p != nil && *p != "" && !cleanPrefix(*p) {
			return invalid("%s must be a plain path that starts with /", name)
		}
	}
	kind, limit := Kind(*s), int32(maxTimeout)
	if kind == openapi.ServiceRuntimeTypeFunction {
		limit = MaxFunctionTimeout
	}
	switch t, l := r.TimeoutSeconds, r.RateLimit; {
	case t != nil && (*t < 0 || *t > limit):
		return invalid("timeout_seconds must be 0 to %d", limit)
	case l != nil && (l.Rps < 1 || l.Rps > maxRate || l.Burst < 1 || l.Burst > maxRate):
		return invalid("rate_limit: rps and burst must be 1 to %d", maxRate)
	case r.Resume && kind == openapi.ServiceRuntimeTypeManual:
		return errors.New("resume needs a runtime of type cmd or function")
	}
	var err error
	if r.Methods, err = methods("methods", r.Methods, maxMethods); err != nil {
		return err
	}
	if err := checkAuth(r); err != nil {
		return err
	}
	return checkCORS(r)
}

// cleanPrefix allows only what every reader takes for the same path.
func cleanPrefix(p string) bool {
	plain := path.Clean(p)
	return len(p) <= maxPathBytes && prefixPattern.MatchString(p) && !strings.ContainsAny(p, `?#%\;`) &&
		(p == plain || p == plain+"/")
}

// methods upper-cases a list of HTTP methods.
func methods(name string, list []string, limit int) ([]string, error) {
	if len(list) > limit {
		return nil, invalid("%s: at most %d", name, limit)
	}
	out := slices.Clone(list)
	for i, m := range out {
		out[i] = strings.ToUpper(m)
		if !tokenPattern.MatchString(m) || len(m) > 32 || out[i] == http.MethodConnect || out[i] == http.MethodTrace {
			return nil, invalid("%s: %.32q is not allowed", name, m)
		}
	}
	return out, nil
}

func checkAuth(r *openapi.ServiceRoute) error {
	if r.Auth == nil {
		return nil
	}
	a := *r.Auth
	r.Auth = &a
	if a.Mode == nil {
		return errors.New("auth.mode is required")
	}
	var err error
	switch *a.Mode {
	case openapi.ServiceRouteAuthModeNone:
		if a.BearerTokenSha256 != nil || a.HeaderName != nil || a.HeaderValueSha256 != nil {
			return errors.New("auth.mode none takes no credentials")
		}
	case openapi.ServiceRouteAuthModeBearer:
		r.Auth.BearerTokenSha256, err = digest("auth.bearer_token_sha256", a.BearerTokenSha256)
	case openapi.ServiceRouteAuthModeHeader:
		if a.HeaderName == nil || !tokenPattern.MatchString(*a.HeaderName) || !plainHeader(*a.HeaderName) {
			return errors.New("auth.header_name must be the name of a header of your own")
		}
		r.Auth.HeaderValueSha256, err = digest("auth.header_value_sha256", a.HeaderValueSha256)
	default:
		return errors.New("auth.mode: want none, bearer or header")
	}
	return err
}

// digest lower-cases a SHA-256 in hexadecimal.
func digest(name string, s *string) (*string, error) {
	if s == nil {
		return nil, invalid("%s is required", name)
	}
	if b, err := hex.DecodeString(*s); err != nil || len(b) != 32 {
		return nil, invalid("%s must be 64 hexadecimal digits", name)
	}
	return new(strings.ToLower(*s)), nil
}

// plainHeader reports whether a header carries nothing that HTTP or the
// platform itself acts on.
func plainHeader(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Host", "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "Expect":
		return false
	}
	return !PlatformHeader(name)
}

func checkCORS(r *openapi.ServiceRoute) error {
	if r.CORS == nil {
		return nil
	}
	c := *r.CORS
	r.CORS = &c
	for name, list := range map[string][]string{
		"allowed_origins": c.AllowedOrigins, "allowed_headers": c.AllowedHeaders, "expose_headers": c.ExposeHeaders,
	} {
		if len(list) > maxCORSValues {
			return invalid("cors.%s: at most %d", name, maxCORSValues)
		}
	}
	var err error
	if c.AllowedMethods, err = methods("cors.allowed_methods", c.AllowedMethods, maxCORSValues); err != nil {
		return err
	}
	c.AllowedOrigins = slices.Clone(c.AllowedOrigins)
	for i, o := range c.AllowedOrigins {
		c.AllowedOrigins[i] = strings.ToLower(o)
		if o != "*" && !originPattern.MatchString(c.AllowedOrigins[i]) {
			return invalid("cors.allowed_origins: %.64q is no origin", o)
		}
	}
	if c.AllowCredentials != nil && *c.AllowCredentials && slices.Contains(c.AllowedOrigins, "*") {
		return errors.New("cors: credentials can't be allowed to every origin")
	}
	for _, h := range slices.Concat(c.AllowedHeaders, c.ExposeHeaders) {
		if !tokenPattern.MatchString(h) {
			return invalid("cors: %.64q is no header", h)
		}
	}
	if c.MaxAgeSeconds != nil && (*c.MaxAgeSeconds < 0 || *c.MaxAgeSeconds > maxCORSAge) {
		return invalid("cors.max_age_seconds must be 0 to %d", maxCORSAge)
	}
	return nil
}

// distinct refuses services that a request could not tell apart.
func distinct(list []openapi.SandboxAppService) error {
	ids, ports, functions := map[string]bool{}, map[int32]string{}, map[string]string{}
	for _, s := range list {
		if ids[s.ID] {
			return invalid("service %s is there twice", s.ID)
		}
		ids[s.ID] = true
		if *s.Port != FunctionPort {
			if other, taken := ports[*s.Port]; taken {
				return invalid("services %s and %s have the same port", other, s.ID)
			}
			ports[*s.Port] = s.ID
			continue
		}
		if !s.Ingress.Public {
			continue
		}
		for _, r := range s.Ingress.Routes { // functions share a port, and so must share out its paths
			prefix := strings.TrimSuffix(*r.PathPrefix, "/")
			if other, taken := functions[prefix]; taken && other != s.ID {
				return invalid("functions %s and %s have the same path_prefix %q", other, s.ID, *r.PathPrefix)
			}
			functions[prefix] = s.ID
		}
	}
	return nil
}

// NormalizePorts checks the exposed ports of older clients; nil stays nil.
func NormalizePorts(list []openapi.ExposedPort) ([]openapi.ExposedPort, error) {
	if len(list) > maxPorts {
		return nil, invalid("exposed_ports: at most %d", maxPorts)
	}
	seen := map[int32]bool{}
	for _, p := range list {
		if err := validPort(p.Port); err != nil {
			return nil, invalid("exposed_ports: %v", err)
		}
		if seen[p.Port] {
			return nil, invalid("exposed_ports: port %d is there twice", p.Port)
		}
		seen[p.Port] = true
	}
	return list, nil
}

// PlatformHeader reports whether a header is spoken between the platform's own
// parts: it never passes between a client and a sandbox, in either direction.
func PlatformHeader(name string) bool {
	n := strings.ToLower(name)
	return n == "x-sandbox-id" || n == "x-exposure-port" || n == "x-team-id" ||
		strings.HasPrefix(n, "s0-") || strings.HasPrefix(n, "x-sandbox0-")
}
