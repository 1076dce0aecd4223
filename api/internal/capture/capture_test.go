package capture

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/images"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
	"s0.run/internal/nodeapi"
	"s0.run/internal/publicnet"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// stage is a capturer between a registry, a database and a node whose layers a test
// decides.
type stage struct {
	*Capturer
	t    *testing.T
	host string // of the registry
	base string // an image in it, by digest
	sb   store.Sandbox
	dsn  string
	user uuid.UUID
}

// ServerCredentials implements Registry.
func (s *stage) ServerCredentials(context.Context, uuid.UUID) (images.Credentials, string, error) {
	return images.Credentials{Push: s.host, Pull: s.host, User: "t-1", Password: "x"}, "t-1", nil
}

func newStage(t *testing.T, layers http.Handler) *stage {
	t.Helper()
	s := &stage{t: t, dsn: s0test.Postgres(t)}
	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	s.host = strings.TrimPrefix(reg.URL, "http://")
	s.base = s.pushBase()
	st, err := store.Open(t.Context(), s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	node := fakenode.Start(t, &fakenode.Node{Layers: layers})
	discard := slog.New(slog.DiscardHandler)
	table, catalog := placement.New(), templates.NewCatalog(st, "local.test", discard)
	if err := (templates.Builtins{Images: map[string]string{"default": s.base}}).Put(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	set := nodes.New(nodes.Config{
		Sockets: []string{node.Socket}, Cluster: "local", Table: table, Log: discard, OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {},
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	fakenode.Eventually(t, "the node is known", func() bool { return table.IsSynced("n1") })
	s.Capturer = New(Config{Store: st, Catalog: catalog, Nodes: set, Registry: s, Changed: func(context.Context) {}, Log: discard})
	t.Cleanup(s.Close)
	s.populate()
	return s
}

// populate makes a team with a running sandbox.
func (s *stage) populate() {
	s.t.Helper()
	_, err := s.cfg.Store.CreateFirstAdmin(s.t.Context(), store.FirstAdmin{
		Email: "a@example.com", Name: "A", PasswordHash: "x", TeamName: "T", TeamSlug: "t", RegionID: "local",
	})
	if err != nil {
		s.t.Fatal(err)
	}
	var team uuid.UUID
	s.sql("SELECT id FROM users", &s.user)
	s.sql("SELECT id FROM teams", &team)
	id, err := sandbox.NewID("local")
	if err != nil {
		s.t.Fatal(err)
	}
	s.sb, err = s.cfg.Store.InsertSandbox(s.t.Context(), store.NewSandbox{
		ID: id, TeamID: team, UserID: s.user, ClaimID: uuid.New(), TemplateID: "default", Node: "n1", Generation: 1,
		Config: json.RawMessage(`{}`), MemoryBytes: 2 << 30,
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) sql(query string, into any) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.dsn)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(s.t.Context(), query).Scan(into); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
}

func (s *stage) pushBase() string {
	s.t.Helper()
	img, err := random.Image(1000, 2)
	if err != nil {
		s.t.Fatal(err)
	}
	ref, err := name.NewTag(s.host+"/s0/base:latest", name.Insecure)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		s.t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.host + "/s0/base@" + digest.String()
}

func (s *stage) request(id string) Request {
	return Request{
		TeamID: s.sb.TeamID, UserID: s.user, TemplateID: id, SandboxID: s.sb.ID,
		Rules: templates.Rules{Offers: func(sandbox.RuntimeClass) bool { return false }},
	}
}

func (s *stage) begin(id string) store.Template {
	s.t.Helper()
	row, err := s.Begin(s.t.Context(), s.request(id))
	if err != nil || row.Capture == nil || row.Capture.State != store.CaptureCreating {
		s.t.Fatalf("beginning %s: %+v, %v", id, row, err)
	}
	return row
}

func (s *stage) get(id string) store.Template {
	s.t.Helper()
	row, err := s.cfg.Store.Template(s.t.Context(), s.sb.TeamID, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return row
}

func (s *stage) await(id, state string) store.Template {
	s.t.Helper()
	fakenode.Eventually(s.t, id+" is "+state, func() bool { return s.get(id).Capture.State == state })
	return s.get(id)
}

// layerOf answers every question for a layer with one file in it.
func layerOf(t *testing.T, image func() string) http.Handler {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "made", Size: 4, Mode: 0o644}), write(w, "made"), w.Close()); err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(nodeapi.GenerationHeader) != "1" {
			http.Error(w, "{}", http.StatusConflict)
			return
		}
		w.Header().Set(nodeapi.LayerImageHeader, image())
		_, _ = w.Write(layer.Bytes())
	})
}

func write(w io.Writer, s string) error { _, err := io.WriteString(w, s); return err }

func TestTemplateFromSandbox(t *testing.T) {
	t.Parallel()
	var s *stage
	s = newStage(t, layerOf(t, func() string { return s.base }))
	s.begin("made")
	row := s.await("made", store.CaptureReady)
	tmpl, err := s.cfg.Catalog.Decode(row)
	if err != nil || tmpl.Unavailable != nil || tmpl.MaxIdle != 0 || row.Capture.CapturedAt == nil || row.Capture.CompletedAt == nil {
		t.Fatalf("%+v: %v", tmpl, err)
	}
	image := tmpl.Spec.MainContainer.Image
	if !strings.HasPrefix(image, s.host+"/t-1/made@sha256:") || row.Capture.Image != image {
		t.Fatalf("its image is %s, it says %s", image, row.Capture.Image)
	}
	if layers := pull(t, image); len(layers) != 3 {
		t.Errorf("%d layers, want one more than 2", len(layers))
	} else if names := contents(t, layers[2]); names != "made" {
		t.Errorf("the last layer holds %q", names)
	}
	if tags, err := remote.List(repository(t, s.host+"/t-1/made")); err == nil && len(tags) > 0 {
		t.Errorf("tags %q keep the image longer than its template", tags)
	}
	if _, err := s.Begin(t.Context(), s.request("made")); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("the same name: %v", err)
	}
	foreign := s.request("stolen")
	foreign.TeamID = uuid.New()
	if _, err := s.Begin(t.Context(), foreign); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("A01: another team's sandbox: %v", err)
	}
}

func repository(t *testing.T, s string) name.Repository {
	t.Helper()
	repo, err := name.NewRepository(s, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// A registry that nobody vouches for was at a public address when a node asked it.
// It does not make this server ask its own network.
func TestA17_BasesComeFromWhereTheyMay(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); w.WriteHeader(http.StatusNotFound) }))
	t.Cleanup(elsewhere.Close)
	host := strings.TrimPrefix(elsewhere.URL, "http://")
	creds := images.Credentials{Push: "127.0.0.1:1", Pull: "127.0.0.1:1"}
	j := &job{Capturer: New(Config{Trusted: imageref.Registries{"*"}})}
	t.Cleanup(j.Close)
	base := host + "/a@sha256:" + strings.Repeat("0", 64)
	if _, err := j.below(t.Context(), creds, base); !errors.Is(err, publicnet.ErrNotPublic) || asked.Load() != 0 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
	j.cfg.Trusted = imageref.Registries{host}
	if _, err := j.below(t.Context(), creds, base); err == nil || asked.Load() == 0 {
		t.Errorf("a registry that the operator names: %v after %d requests", err, asked.Load())
	}
	if len(insecure("reg.example.evil.test/a", "reg.example")) != 0 || len(insecure("127.0.0.1:50000/a", "127.0.0.1:5000")) != 0 {
		t.Error("another host is spoken to without TLS")
	}
}

func pull(t *testing.T, image string) []v1.Layer {
	t.Helper()
	ref, err := name.NewDigest(image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return layers
}

func contents(t *testing.T, l v1.Layer) string {
	t.Helper()
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h, err := tar.NewReader(r).Next()
	if err != nil {
		t.Fatal(err)
	}
	return h.Name
}

// Whatever goes wrong is a state that its owner sees, with the reason as far as it
// is his to know.
func TestFailedCaptures(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		layers http.HandlerFunc
		says   string
	}{
		"a name that no image holds": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnprocessableEntity)
			_ = json.NewEncoder(w).Encode(map[string]string{"message": "no image can hold it"})
		}, "no image can hold it"},
		"an error of the node's": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(map[string]string{"message": "/secret/path"})
		}, "could not be read"},
		"a layer that breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(nodeapi.LayerImageHeader, "127.0.0.1:1/a@sha256:"+strings.Repeat("0", 64))
			_, _ = w.Write(make([]byte, 10000))
			panic(http.ErrAbortHandler)
		}, "can't be read from its registry"},
		"an image without a digest": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }, "internal error"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, c.layers)
			s.begin("made")
			row := s.await("made", store.CaptureFailed)
			if m := row.Capture.Message; !strings.Contains(m, c.says) || strings.Contains(m, "secret") {
				t.Errorf("it says %q, want %q", m, c.says)
			}
			tmpl, err := s.cfg.Catalog.Decode(row)
			if err != nil || !errdefs.Is(tmpl.Unavailable, errdefs.Conflict) {
				t.Errorf("%+v: %v", tmpl, err)
			}
		})
	}
}

// A server that ends says what becomes of its captures, and where it can't, their
// leases do; a template that was deleted meanwhile is nobody's.
func TestInterruptedCaptures(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 10)
	s := newStage(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	s.begin("leased")
	<-asked
	var id uuid.UUID
	s.sql("UPDATE template_captures SET lease_until = now() - interval '1 second' RETURNING template_id", &id)
	if c := s.get("leased").Capture; c.State != store.CaptureFailed || c.Message == "" || c.CompletedAt == nil {
		t.Errorf("after its lease: %+v", c)
	}
	if err := s.cfg.Store.RenewCapture(t.Context(), id, store.StagePublishing, time.Minute); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("renewing a lease that is over: %v", err)
	}
	if err := s.cfg.Store.FinishCapture(t.Context(), id, "x"); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("finishing what has failed: %v", err)
	}
	s.begin("closed")
	<-asked
	if _, err := s.Begin(t.Context(), s.request("third")); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("more than there may be at once: %v", err)
	}
	if _, err := s.cfg.Store.UpdateTemplate(t.Context(), s.sb.TeamID, "closed", json.RawMessage(`{}`)); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("changing what is being made: %v", err)
	}
	s.Close()
	if c := s.get("closed").Capture; c.State != store.CaptureFailed {
		t.Errorf("after the server's end: %+v", c)
	}
}
