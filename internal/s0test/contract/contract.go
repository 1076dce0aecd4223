// Package contract holds every answer of an API server against
// api/openapi.yaml while tests use it: its status, its headers, its body.
//
// [Checker.Transport] stands between a test and the network and changes nothing
// of what passes; [Checker.Proxy] is the same for programs that tests run.
// Whatever the contract doesn't describe is a violation, which fails the test
// binary ([Main]) or the test that asks ([Checker.Report]).
//
// What passes unread: the bodies of files and archives, JSON above 8 MiB,
// messages of WebSockets and of event streams (their handshakes are held against
// the contract), and everything that a tenant's own service answers, which has no
// contract. Lines of NDJSON are read one by one.
package contract

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
)

// maxBody is what is held in memory of an answer.
const maxBody = 8 << 20

// maxViolations bounds what one mistake can say.
const maxViolations = 50

// Checker is safe for concurrent use.
type Checker struct {
	doc    *openapi3.T
	router routers.Router

	mu         sync.Mutex
	violations []string
	answers    int
}

// load finds and reads the contract once.
var load = sync.OnceValues(func() (*openapi3.T, error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "s0.run").Output()
	if err != nil {
		return nil, fmt.Errorf("finding the module: %w", err)
	}
	doc, err := openapi3.NewLoader().LoadFromFile(filepath.Join(strings.TrimSpace(string(root)), "api", "openapi.yaml"))
	if err != nil {
		return nil, err
	}
	doc.Servers = nil // any host is right
	strict(doc)
	return doc, nil
})

// New reads the contract.
func New() (*Checker, error) {
	doc, err := load()
	if err != nil {
		return nil, err
	}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		return nil, err
	}
	return &Checker{doc: doc, router: router}, nil
}

// Main runs a package's tests with a checker between its clients and the network,
// and fails for what it found.
func Main(m *testing.M, install func(*Checker)) {
	c, err := New()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	install(c)
	code := m.Run()
	if found := c.Take(); len(found) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: answers that the contract does not describe:\n\t%s\n", strings.Join(found, "\n\t"))
		code = 1
	}
	os.Exit(code)
}

// Report fails a test for what was found so far.
func (c *Checker) Report(t testing.TB) {
	t.Helper()
	for _, v := range c.Take() {
		t.Errorf("not the contract's: %s", v)
	}
}

// Answers is how many were held against the contract.
func (c *Checker) Answers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers
}

// Take gives what was found so far, once.
func (c *Checker) Take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.violations
	c.violations = nil
	return found
}

func (c *Checker) violation(resp *http.Response, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := fmt.Sprintf("%s %s: %d: ", resp.Request.Method, resp.Request.URL.Path, resp.StatusCode) + fmt.Sprintf(format, args...)
	if len(c.violations) < maxViolations && !slices.Contains(c.violations, text) {
		c.violations = append(c.violations, text)
	}
}

type skipKey struct{}

// Skip marks a request whose answer is not the contract's, as of a server that
// lies on purpose.
func Skip(ctx context.Context) context.Context { return context.WithValue(ctx, skipKey{}, true) }

// Transport passes requests on and holds the answers against the contract.
func (c *Checker) Transport(base http.RoundTripper) http.RoundTripper { return transport{c, base} }

type transport struct {
	c    *Checker
	base http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(r)
	if err != nil || r.Context().Value(skipKey{}) != nil {
		return resp, err
	}
	if resp.Request == nil {
		resp.Request = r
	}
	t.c.Check(resp)
	return resp, nil
}

// Check holds an answer against the contract. Its body is as before afterwards.
func (c *Checker) Check(resp *http.Response) {
	r := resp.Request
	if tenants(r) {
		return
	}
	c.mu.Lock()
	c.answers++
	c.mu.Unlock()
	probe := r.Clone(context.Background())
	probe.URL.Scheme, probe.URL.Host, probe.Host, probe.Body = "", "", "", http.NoBody
	route, params, err := c.router.FindRoute(probe)
	if err != nil {
		c.outside(resp)
		return
	}
	described := route.Operation.Responses.Status(resp.StatusCode)
	if described == nil {
		described = route.Operation.Responses.Default()
	}
	if described == nil {
		c.violation(resp, "this status is not described")
		return
	}
	c.headers(resp, described.Value.Headers)
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: probe, Route: route, PathParams: params},
		Status:                 resp.StatusCode, Header: resp.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc},
	}
	if media := c.media(resp, described.Value); media != nil {
		c.body(resp, in, media)
	}
}

// media is what the contract says of the body; nil when there is none to read.
func (c *Checker) media(resp *http.Response, described *openapi3.Response) *openapi3.MediaType {
	sent := resp.Header.Get("Content-Type")
	if len(described.Content) == 0 {
		if sent != "" {
			c.violation(resp, "a body of %s is not described", sent)
		}
		return nil
	}
	media := described.Content.Get(sent)
	if media == nil {
		c.violation(resp, "a body of %q is not described", sent)
	}
	if resp.Request.Method == http.MethodHead {
		return nil
	}
	return media
}

// body reads what can be read.
func (c *Checker) body(resp *http.Response, in *openapi3filter.ResponseValidationInput, media *openapi3.MediaType) {
	switch kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); kind {
	case "application/x-ndjson":
		resp.Body = &lines{ReadCloser: resp.Body, check: func(line []byte) {
			if err := valid(line, media); err != nil {
				c.violation(resp, "a line: %v: %.300s", err, line)
			}
		}}
	case "application/json":
		var b bytes.Buffer
		n, err := io.CopyN(&b, resp.Body, maxBody)
		resp.Body = again{io.MultiReader(&b, resp.Body), resp.Body}
		if errors.Is(err, io.EOF) && n < maxBody {
			in.SetBodyBytes(b.Bytes())
			if err := openapi3filter.ValidateResponse(context.Background(), in); err != nil {
				c.violation(resp, "%v: %.500s", err, b.Bytes())
			}
		}
	}
}

// again is a body of which something was read.
type again struct {
	io.Reader
	io.Closer
}

// outside is an answer to what is no operation: an error, in the one shape.
func (c *Checker) outside(resp *http.Response) {
	c.headers(resp, nil)
	if resp.StatusCode < http.StatusBadRequest || resp.Header.Get("Content-Type") != "application/json" {
		c.violation(resp, "there is no such operation, and the answer is %s", resp.Header.Get("Content-Type"))
		return
	}
	if resp.Request.Method == http.MethodHead {
		return
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	resp.Body = again{io.MultiReader(bytes.NewReader(b), resp.Body), resp.Body}
	if err == nil {
		err = valid(b, openapi3.NewMediaType().WithSchemaRef(c.doc.Components.Schemas["ErrorEnvelope"]))
	}
	if err != nil {
		c.violation(resp, "%v: %.300s", err, b)
	}
}

// tenants reports whether a sandbox's service answers, by its name or by headers.
func tenants(r *http.Request) bool {
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	return strings.Contains(host, "--p") || r.Header.Get("X-Sandbox-Id") != "" || r.Header.Get("X-Exposure-Port") != ""
}
