package api_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/s0test"
)

// exposing starts a server whose sandboxes' ports are all served by h.
func exposing(t *testing.T, h http.Handler, opts ...option) *instance {
	t.Helper()
	service := httptest.NewServer(h)
	t.Cleanup(service.Close)
	return start(t, append(opts, func(_ *api.Config, n *fakenode.Node) {
		n.Proc.(*fakenode.Procd).Service = service.Listener.Addr().String()
	})...)
}

type servicesAnswer struct {
	SandboxID string `json:"sandbox_id"`
	Services  []struct {
		ID              string
		Port            int
		Publishable     bool
		PublishBlockers []string `json:"publish_blockers"`
		PublicURL       string   `json:"public_url"`
	}
	ExposedPorts []struct {
		Port      int
		Resume    bool
		PublicURL string `json:"public_url"`
	} `json:"exposed_ports"`
	ExposureDomain string `json:"exposure_domain"`
}

// visit asks for a URL as somebody outside does.
func (i *instance) visit(url string, header ...string) answer {
	i.t.Helper()
	rest := strings.TrimPrefix(url, "http://")
	host, path, _ := strings.Cut(rest, "/")
	req, err := http.NewRequest(http.MethodGet, i.url+"/"+path, nil)
	if err != nil {
		i.t.Fatal(err)
	}
	req.Host = host
	for n := 0; n < len(header); n += 2 {
		req.Header.Set(header[n], header[n+1])
	}
	resp, err := checked.RoundTrip(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	a := answer{t: i.t, status: resp.StatusCode, header: resp.Header, raw: b}
	if resp.StatusCode >= 400 {
		a.open(request{method: "GET", path: url})
	}
	return a
}

func TestServicesOverTheAPI(t *testing.T) {
	t.Parallel()
	i := exposing(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server-Timing", "theirs")
		fmt.Fprintf(w, "%s %s %s", r.Host, r.URL, r.Header.Get("Authorization"))
	}))
	key := i.key("admin")
	id := i.claim(key)
	path := "/api/v1/sandboxes/" + id
	var got servicesAnswer
	i.send(request{method: "GET", path: path + "/services", token: key}).want(200, &got)
	if got.SandboxID != id || got.Services == nil || len(got.Services) != 0 || !strings.HasPrefix(got.ExposureDomain, "local.s0.localhost:") {
		t.Errorf("%+v", got)
	}
	url := "http://" + id + "--p8080." + got.ExposureDomain
	i.visit(url+"/").refused(404, "not_found")

	i.send(request{method: "PUT", path: path + "/services", token: key, body: `{"services":[{"id":"WEB","port":8080,"ingress":{"public":true}}]}`}).want(200, &got)
	if len(got.Services) != 1 || got.Services[0].ID != "web" || got.Services[0].PublicURL != url || got.Services[0].Publishable || got.Services[0].PublishBlockers[0] != "missing_runtime" {
		t.Errorf("%+v", got)
	}
	host := strings.TrimPrefix(url, "http://")
	for _, token := range []string{key, i.signIn()} { // ours never reach a sandbox
		if a := i.visit(url+"/a?b", "Authorization", "Bearer "+token); string(a.raw) != host+" /a?b " || a.header.Get("Server-Timing") != "theirs" || a.header.Get("X-Request-Id") == "" || a.header.Get("Cache-Control") != "" {
			t.Errorf("%d %v %s", a.status, a.header, a.raw)
		}
	}
	if a := i.visit(i.url+"/x", "X-Sandbox-ID", id, "X-Exposure-Port", "8080"); string(a.raw) != "localhost:8080 /x " {
		t.Errorf("by headers: %d %s", a.status, a.raw)
	}
	i.visit(strings.Replace(url, "--p8080", "--p22", 1)+"/").refused(404, "not_found")
	i.visit("http://"+got.ExposureDomain+"/").refused(404, "not_found")
	i.visit("http://evil.example/").refused(403, "forbidden")

	for _, body := range []string{`{}`, `{"services":null}`, `{"services":[{}]}`, `{"services":[{"id":"a","port":49983,"ingress":{"public":true}}]}`, `{"services":[],"ports":[]}`} {
		i.send(request{method: "PUT", path: path + "/services", token: key, body: body}).refused(400, "bad_request")
	}
	var sb struct{ Services []json.RawMessage }
	i.send(request{method: "GET", path: path, token: key}).want(200, &sb)
	if len(sb.Services) != 1 {
		t.Errorf("a refused update changed the services: %v", sb)
	}
	i.send(request{method: "PUT", path: path, token: key, body: `{"config":{"services":[],"exposed_ports":[{"port":9000,"resume":true}]}}`}).want(200, nil)
	i.visit(url+"/").refused(404, "not_found")
	i.send(request{method: "DELETE", path: path, token: key}).want(200, nil)
	i.visit("http://"+id+"--p9000."+got.ExposureDomain+"/").refused(404, "not_found")
}

func TestExposedPortsOverTheAPI(t *testing.T) {
	t.Parallel()
	i := exposing(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "served") }))
	key := i.key("admin")
	var claimed struct {
		SandboxID string `json:"sandbox_id"`
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default","config":{"exposed_ports":[{"port":3000,"resume":false}],
		"services":[{"id":"a","port":80,"runtime":{"type":"cmd"},"ingress":{"public":true,"routes":[{"id":"r","resume":true}]}}]}}`}).want(201, &claimed)
	path := "/api/v1/sandboxes/" + claimed.SandboxID
	var got servicesAnswer
	i.send(request{method: "GET", path: path + "/exposed-ports", token: key}).want(200, &got)
	if len(got.ExposedPorts) != 1 || got.ExposedPorts[0].PublicURL != "http://"+claimed.SandboxID+"--p3000."+got.ExposureDomain {
		t.Fatalf("%+v", got)
	}
	if a := i.visit(got.ExposedPorts[0].PublicURL + "/"); string(a.raw) != "served" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	i.send(request{method: "PUT", path: path + "/exposed-ports", token: key, body: `{"ports":[{"port":3001,"resume":true},{"port":3002,"resume":false}]}`}).want(200, &got)
	i.visit("http://"+claimed.SandboxID+"--p3000."+got.ExposureDomain+"/").refused(404, "not_found")
	i.send(request{method: "DELETE", path: path + "/exposed-ports/3001", token: key}).want(200, &got)
	if len(got.ExposedPorts) != 1 || got.ExposedPorts[0].Port != 3002 {
		t.Errorf("%+v", got)
	}
	i.send(request{method: "DELETE", path: path + "/exposed-ports/3001", token: key}).refused(404, "not_found")
	i.send(request{method: "DELETE", path: path + "/exposed-ports/x", token: key}).refused(400, "bad_request")
	i.send(request{method: "DELETE", path: path + "/exposed-ports", token: key}).want(200, &got)
	if len(got.ExposedPorts) != 0 {
		t.Errorf("%+v", got)
	}
	for _, body := range []string{
		`{"ports":[{"port":80,"resume":false}]}`, // a service's
		`{"ports":[{"port":0,"resume":false}]}`, `{"ports":[{"port":49983,"resume":false}]}`, `{"ports":[{"port":70000,"resume":false}]}`,
		`{"ports":[{"port":53,"resume":false,"protocol":"udp"}]}`, `{}`,
	} {
		i.send(request{method: "PUT", path: path + "/exposed-ports", token: key, body: body}).refused(400, "bad_request")
	}
	// What wakes a sandbox and that nothing may wake it exclude each other.
	i.send(request{method: "PUT", path: path, token: key, body: `{"config":{"auto_resume":false}}`}).refused(400, "bad_request")
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default","config":{"auto_resume":false,
		"services":[{"id":"a","port":80,"runtime":{"type":"cmd"},"ingress":{"public":true,"routes":[{"id":"r","resume":true}]}}]}}`}).refused(400, "bad_request")
	stranger := i.stranger()
	i.send(request{method: "GET", path: path + "/exposed-ports", token: stranger}).refused(404, "not_found")
	i.send(request{method: "PUT", path: path + "/exposed-ports", token: stranger, body: `{"ports":[{"port":22,"resume":false}]}`}).refused(404, "not_found")
	viewer := i.key("viewer")
	i.send(request{method: "GET", path: path + "/services", token: viewer}).want(200, nil)
	i.send(request{method: "PUT", path: path + "/services", token: viewer, body: `{"services":[]}`}).refused(403, "forbidden")
}

func TestPublicDomain(t *testing.T) {
	t.Parallel()
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.PublicDomain, c.RegionID = "apps.example.com", "eu-1" })
	key := i.key("admin")
	id := i.claim(key)
	var got servicesAnswer
	i.send(request{method: "PUT", path: "/api/v1/sandboxes/" + id + "/services", token: key, body: `{"services":[{"id":"a","port":80,"ingress":{"public":true}}]}`}).want(200, &got)
	if want := "https://" + id + "--p80.eu-1.apps.example.com"; got.Services[0].PublicURL != want || got.ExposureDomain != "eu-1.apps.example.com" {
		t.Errorf("%+v", got)
	}
	i.visit("http://"+id+"--p80.eu-1.apps.example.com/").refused(503, "unavailable") // nothing listens
}

func TestX40_ServicesOfAnotherReplica(t *testing.T) {
	t.Parallel()
	a := exposing(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "served") }))
	b := replica(t, a)
	key := a.key("admin")
	id := a.claim(key)
	path := "/api/v1/sandboxes/" + id + "/exposed-ports"
	a.send(request{method: "PUT", path: path, token: key, body: `{"ports":[{"port":80,"resume":false}]}`}).want(200, nil)
	visit := func() answer { return b.visit(b.url+"/", "X-Sandbox-ID", id, "X-Exposure-Port", "80") }
	fakenode.Eventually(t, "the other replica serves the port", func() bool { return string(visit().raw) == "served" })
	a.send(request{method: "DELETE", path: path, token: key}).want(200, nil)
	began := time.Now()
	fakenode.Eventually(t, "the other replica serves it no more", func() bool { return visit().status == 404 })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("what is withdrawn was served for %s", took)
	}
}

func TestX34_ExposedPortsGoOnWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	i := exposing(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "served") }),
		func(c *api.Config, _ *fakenode.Node) { c.DatabaseURL = pg.Database(t) })
	key := i.key("admin")
	id := i.claim(key)
	i.send(request{method: "PUT", path: "/api/v1/sandboxes/" + id + "/exposed-ports", token: key, body: `{"ports":[{"port":80,"resume":false}]}`}).want(200, nil)
	visit := func() answer { return i.visit(i.url+"/", "X-Sandbox-ID", id, "X-Exposure-Port", "80") }
	if a := visit(); string(a.raw) != "served" {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	pg.Stop()
	for began := time.Now(); time.Since(began) < 2*time.Second; { // longer than a config is fresh
		if a := visit(); string(a.raw) != "served" {
			t.Fatalf("without the database: %d %s", a.status, a.raw)
		}
	}
}
