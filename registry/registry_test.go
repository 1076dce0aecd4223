package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"s0.run/internal/errdefs"
	"s0.run/internal/regauth"
	"s0.run/registry/internal/store"
)

const own, other = "t-00000000", "t-11111111"

type fixture struct {
	*testing.T
	reg  *Registry
	dir  string
	host string
	key  regauth.Key
	full error
	now  time.Time
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	key, err := regauth.NewKey(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, dir: t.TempDir(), key: key, now: time.Now()}
	f.open()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f.reg.ServeHTTP(w, r) }))
	t.Cleanup(func() {
		srv.Close()
		f.reg.Close()
	})
	f.host = strings.TrimPrefix(srv.URL, "http://")
	return f
}

func (f *fixture) open() {
	f.Helper()
	reg, err := New(Config{Dir: f.dir, Key: f.key, Room: func() error { return f.full }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	reg.now = func() time.Time { return f.now }
	f.reg = reg
}

func (f *fixture) as(g regauth.Grant) remote.Option {
	return remote.WithAuth(&authn.Basic{Username: g.User, Password: f.key.Sign(g)})
}

func (f *fixture) team(prefix string) regauth.Grant {
	return regauth.Team(prefix, f.now.Add(time.Hour))
}

func (f *fixture) ref(s string) name.Reference {
	f.Helper()
	ref, err := name.ParseReference(f.host+"/"+s, name.Insecure)
	if err != nil {
		f.Fatal(err)
	}
	return ref
}

func (f *fixture) image() v1.Image {
	f.Helper()
	img, err := random.Image(64<<10, 3)
	if err != nil {
		f.Fatal(err)
	}
	return img
}

func (f *fixture) push(s string, img v1.Image) string {
	f.Helper()
	ref := f.ref(s)
	if err := remote.Write(ref, img, f.as(f.team(own))); err != nil {
		f.Fatal(err)
	}
	digest, _ := img.Digest()
	return digest.String()
}

// pull reads all of an image, which verifies its digests.
func (f *fixture) pull(s string, g regauth.Grant) error {
	img, err := remote.Image(f.ref(s), f.as(g))
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// send makes one request as somebody and answers its status and body.
func (f *fixture) send(g *regauth.Grant, method, path string, body io.Reader, header ...string) (*http.Response, string) {
	f.Helper()
	url := path
	if strings.HasPrefix(path, "/") {
		url = "http://" + f.host + path
	}
	req, err := http.NewRequestWithContext(f.Context(), method, url, body)
	if err != nil {
		f.Fatal(err)
	}
	if g != nil {
		req.SetBasicAuth(g.User, f.key.Sign(*g))
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp, string(text)
}

func TestPushAndPull(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	img := f.image()
	digest := f.push(own+"/a/b:1", img)
	for _, ref := range []string{own + "/a/b:1", own + "/a/b@" + digest} {
		if err := f.pull(ref, f.team(own)); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		if err := f.pull(ref, regauth.Node()); err != nil {
			t.Errorf("%s as a node: %v", ref, err)
		}
	}
	// A second tag and an index of it, with nothing sent twice.
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	if err := remote.WriteIndex(f.ref(own+"/a/b:2"), index, f.as(f.team(own))); err != nil {
		t.Fatal(err)
	}
	tags, err := remote.List(f.ref(own+"/a/b:1").Context(), f.as(f.team(own)))
	if err != nil || fmt.Sprint(tags) != "[1 2]" {
		t.Errorf("tags %v, %v", tags, err)
	}
	// Another repository of the team mounts what is there.
	if err := remote.Write(f.ref(own+"/c:1"), img, f.as(f.team(own))); err != nil {
		t.Fatal(err)
	}
	before, _ := f.reg.Usage()
	f.reg.Close()
	f.open() // all of it is on disk
	after, _ := f.reg.Usage()
	if before != after || before.Repositories != 2 || before.Bytes < 3*64<<10 || before.Bytes > 4*64<<10 {
		t.Errorf("it holds %+v, and after a restart %+v", before, after)
	}
	if err := f.pull(own+"/a/b:2", regauth.Node()); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestA04_TeamsAreApart(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	img := f.image()
	digest := f.push(own+"/a:1", img)
	layers, _ := img.Layers()
	layer, _ := layers[0].Digest()
	theirs := f.team(other)
	if err := f.pull(own+"/a:1", theirs); err == nil {
		t.Error("another team pulls")
	}
	if err := remote.Write(f.ref(own+"/a:1"), f.image(), f.as(theirs)); err == nil {
		t.Error("another team pushes")
	}
	if err := remote.Write(f.ref("s0/default:1"), f.image(), f.as(theirs)); err == nil {
		t.Error("a team pushes a public image")
	}
	node := regauth.Node()
	expired := regauth.Team(own, f.now.Add(-time.Second))
	for name, c := range map[string]struct {
		as           *regauth.Grant
		method, path string
		status       int
	}{
		"nobody":            {nil, "GET", "/v2/", 401},
		"expired":           {&expired, "GET", "/v2/" + own + "/a/manifests/1", 401},
		"blob":              {&theirs, "GET", "/v2/" + own + "/a/blobs/" + layer.String(), 403},
		"blob by own name":  {&theirs, "GET", "/v2/" + other + "/a/blobs/" + layer.String(), 404},
		"manifest so":       {&theirs, "GET", "/v2/" + other + "/a/manifests/" + digest, 404},
		"tags":              {&theirs, "GET", "/v2/" + own + "/a/tags/list", 403},
		"delete":            {&theirs, "DELETE", "/v2/" + own + "/a/manifests/" + digest, 403},
		"the prefix itself": {&theirs, "GET", "/v2/" + other + "/manifests/1", 403},
		"catalog":           {&theirs, "GET", "/v2/_catalog", 404},
		"dots":              {&theirs, "GET", "/v2/" + other + "/../" + own + "/a/manifests/1", 404},
		"node pushes":       {&node, "POST", "/v2/" + own + "/a/blobs/uploads/", 403},
		"in use":            {&theirs, "PUT", regauth.InUsePath, 403},
		"what else":         {&theirs, "GET", "/metrics", 404},
	} {
		if resp, text := f.send(c.as, c.method, c.path, nil); resp.StatusCode != c.status {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, text, c.status)
		}
	}
	// A mount of another's content is an upload like any other.
	resp, _ := f.send(&theirs, "POST", "/v2/"+other+"/a/blobs/uploads/?mount="+layer.String()+"&from="+own+"/a", nil)
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("a mount from another team: %d", resp.StatusCode)
	}
	// A manifest names nothing that its repository does not have.
	raw, _ := img.RawManifest()
	resp, text := f.send(&theirs, "PUT", "/v2/"+other+"/a/manifests/1", bytes.NewReader(raw), "Content-Type", ociOrDocker(t, img))
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, "MANIFEST_BLOB_UNKNOWN") {
		t.Errorf("a manifest of another's layers: %d %s", resp.StatusCode, text)
	}
	if resp, _ := f.send(nil, "GET", "/v2/", nil); resp.Header.Get("WWW-Authenticate") == "" {
		t.Error("nobody is asked for a credential")
	}
}

func ociOrDocker(t *testing.T, img v1.Image) string {
	t.Helper()
	mt, err := img.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	return string(mt)
}

// An upload in pieces goes on after its connection broke, and is dropped when it
// stands still.
func TestUploadsGoOnAndEnd(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	g := f.team(own)
	content := bytes.Repeat([]byte("s0"), 1<<10)
	digest := sha256Of(content)
	begin := func() string {
		resp, text := f.send(&g, "POST", "/v2/"+own+"/a/blobs/uploads/", nil)
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("begin: %d %s", resp.StatusCode, text)
		}
		return resp.Header.Get("Location")
	}
	at := begin()
	resp, _ := f.send(&g, "PATCH", at, bytes.NewReader(content[:1000]), "Content-Range", "0-999")
	if resp.StatusCode != http.StatusAccepted || resp.Header.Get("Range") != "0-999" {
		t.Fatalf("first piece: %d, range %s", resp.StatusCode, resp.Header.Get("Range"))
	}
	if resp, _ := f.send(&g, "PATCH", at, bytes.NewReader(content[:10]), "Content-Range", "0-9"); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a piece again: %d", resp.StatusCode)
	}
	if resp, _ := f.send(&g, "GET", at, nil); resp.Header.Get("Range") != "0-999" {
		t.Errorf("it is at %s", resp.Header.Get("Range"))
	}
	theirs := f.team(other)
	if resp, _ := f.send(&theirs, "PATCH", strings.Replace(at, own, other, 1), nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("another team's upload: %d", resp.StatusCode)
	}
	if resp, text := f.send(&g, "PUT", at+"?digest="+digest, bytes.NewReader(content[1000:]), "Content-Range", "1000-2047"); resp.StatusCode != http.StatusCreated {
		t.Errorf("the end: %d %s", resp.StatusCode, text)
	}
	if resp, text := f.send(&g, "GET", "/v2/"+own+"/a/blobs/"+digest, nil, "Range", "bytes=2-3"); resp.StatusCode != http.StatusPartialContent || text != "s0" {
		t.Errorf("a part of it: %d %q", resp.StatusCode, text)
	}
	if resp, _ := f.send(&g, "PUT", begin()+"?digest="+sha256Of([]byte("x")), bytes.NewReader(content)); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("C02: content that is not its digest: %d", resp.StatusCode)
	}

	begin()
	for range maxUploadsPerTeam - 1 {
		begin()
	}
	if resp, _ := f.send(&g, "POST", "/v2/"+own+"/b/blobs/uploads/", nil); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("D12: one upload too many: %d", resp.StatusCode)
	}
	if resp, _ := f.send(&theirs, "POST", "/v2/"+other+"/b/blobs/uploads/", nil); resp.StatusCode != http.StatusAccepted {
		t.Errorf("another team's: %d", resp.StatusCode)
	}
	f.now = f.now.Add(uploadIdle)
	if err := f.reg.Collect(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(f.dir, "uploads")); len(left) != 0 {
		t.Errorf("%d uploads are left that stand still", len(left))
	}
}

func TestD12_WhatIsTooMuchIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	g := f.team(own)
	put := func(body, contentType string) (int, string) {
		resp, text := f.send(&g, "PUT", "/v2/"+own+"/a/manifests/1", strings.NewReader(body), "Content-Type", contentType)
		return resp.StatusCode, text
	}
	empty := sha256Of([]byte("{}"))
	part := fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":2}`, empty)
	for name, body := range map[string]string{
		"no JSON":        "{",
		"no config":      `{"schemaVersion":2,"layers":[]}`,
		"schema 1":       `{"schemaVersion":1}`,
		"bad digest":     `{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1}}`,
		"negative size":  fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":-1}}`, empty),
		"elsewhere":      fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[{"digest":%q,"size":1,"urls":["http://169.254.169.254/"]}]}`, part, empty),
		"many parts":     fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s%s]}`, part, strings.Repeat(part+",", maxManifestParts), part),
		"another's type": fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/x","config":%s}`, part),
	} {
		if status, text := put(body, ociManifest); status != http.StatusBadRequest || !strings.Contains(text, "MANIFEST_INVALID") {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	if status, _ := put(`{"schemaVersion":2,"x":"`+strings.Repeat("x", maxManifestBytes)+`"}`, ociManifest); status != http.StatusRequestEntityTooLarge {
		t.Errorf("C02: a huge manifest: %d", status)
	}
	if status, _ := put(`{"schemaVersion":2}`, "text/html"); status != http.StatusBadRequest {
		t.Errorf("no image: %d", status)
	}
	f.full = errdefs.New(errdefs.Exhausted, "full")
	if resp, _ := f.send(&g, "POST", "/v2/"+own+"/a/blobs/uploads/", nil); resp.StatusCode != http.StatusInsufficientStorage {
		t.Errorf("D04: onto a full disk: %d", resp.StatusCode)
	}
}

// D12, A04: neither bytes, names nor tiny contents grow without end, mounted ones as
// little as those that are sent, and another team's count is its own.
func TestD12_TeamsHaveSoMuch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	g, theirs, server := f.team(own), f.team(other), regauth.Server(f.now.Add(time.Hour))
	f.push(own+"/a:1", f.image())
	used, err := f.reg.store.Of(own + "/")
	if err != nil || used.Repositories != 1 || used.Manifests != 1 || used.Blobs != 5 || used.Bytes < 3*64<<10 {
		t.Fatalf("%+v, %v", used, err)
	}
	begin := func(g regauth.Grant, repo string) int {
		resp, _ := f.send(&g, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
		return resp.StatusCode
	}
	for name, full := range map[string]func(*store.Usage){
		"bytes":        func(u *store.Usage) { u.Bytes = used.Bytes },
		"repositories": func(u *store.Usage) { u.Repositories = 1 },
		"manifests":    func(u *store.Usage) { u.Manifests = 1 },
		"contents":     func(u *store.Usage) { u.Blobs = 5 },
	} {
		f.reg.most = perTeam
		full(&f.reg.most)
		if status := begin(g, own+"/a"); status != http.StatusForbidden {
			t.Errorf("%s: an upload: %d", name, status)
		}
		layer := sha256Of([]byte("any"))
		if resp, text := f.send(&g, "POST", "/v2/"+own+"/b/blobs/uploads/?mount="+layer+"&from="+own+"/a", nil); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: a mount: %d %s", name, resp.StatusCode, text)
		}
		if resp, text := f.send(&g, "PUT", "/v2/"+own+"/a/manifests/1", strings.NewReader("{}")); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: a manifest: %d %s", name, resp.StatusCode, text)
		}
		for repo, g := range map[string]regauth.Grant{other + "/a": theirs, "s0/a": server} {
			if status := begin(g, repo); status != http.StatusAccepted {
				t.Errorf("%s: %s: %d", name, repo, status)
			}
		}
	}
}

// A tag that looks like a digest is a tag: asked for by digest, an image is that one.
func TestA04_TagsAreNoDigests(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	digest := f.push(own+"/a:1", f.image())
	f.push(own+"/a:"+hexOf(digest), f.image())
	g := f.team(own)
	resp, text := f.send(&g, "GET", "/v2/"+own+"/a/manifests/"+digest, nil)
	if got := sha256Of([]byte(text)); got != digest || resp.Header.Get("Docker-Content-Digest") != digest {
		t.Errorf("asked for %s, got %s as %s", digest, got, resp.Header.Get("Docker-Content-Digest"))
	}
}

type deadlines struct {
	*httptest.ResponseRecorder
	read, write time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error  { d.read = at; return nil }
func (d *deadlines) SetWriteDeadline(at time.Time) error { d.write = at; return nil }

type reader func([]byte) (int, error)

func (r reader) Read(b []byte) (int, error) { return r(b) }

// However long a layer takes on its way, its client hears how that went.
func TestLongUploadsAreAnswered(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	g := f.team(own)
	d := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	body := reader(func([]byte) (int, error) {
		d.write = time.Time{} // of the request's begin: it is over
		return 0, io.EOF
	})
	req := httptest.NewRequest("POST", "/v2/"+own+"/a/blobs/uploads/?digest="+sha256Of(nil), body)
	req.SetBasicAuth(g.User, f.key.Sign(g))
	f.reg.ServeHTTP(d, req)
	if d.Code != http.StatusCreated || time.Until(d.write) <= 0 {
		t.Errorf("%d, written until %v", d.Code, d.write)
	}
}

// D12: who sends a head and then nothing gives the connection back, also one that
// may do nothing: the server reads what is left of a body.
func TestD12_BodiesThatNeverComeEnd(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, path := range []string{"/", "/v2/", regauth.InUsePath, "/v2/" + own + "/a/blobs/uploads/"} {
		d := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		f.reg.ServeHTTP(d, httptest.NewRequest("POST", path, nil))
		if in := time.Until(d.read); d.Code != http.StatusUnauthorized || in <= 0 || in > pieceTimeout {
			t.Errorf("%s: %d, reading ends in %v", path, d.Code, in)
		}
	}
}

func (f *fixture) tell(used ...regauth.UsedImage) {
	f.Helper()
	g := regauth.Server(f.now.Add(time.Minute))
	raw, _ := json.Marshal(regauth.InUse{Images: used})
	if resp, text := f.send(&g, "PUT", regauth.InUsePath, bytes.NewReader(raw)); resp.StatusCode != http.StatusNoContent {
		f.Fatalf("telling: %d %s", resp.StatusCode, text)
	}
}

func (f *fixture) collect() {
	f.Helper()
	if err := f.reg.Collect(); err != nil {
		f.Fatal(err)
	}
}

func TestG09_OnlyWhatIsProvenUnusedIsCollected(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	used := regauth.UsedImage{Repository: own + "/a", Digest: f.push(own+"/a:1", f.image())}
	unused := f.push(own+"/a:1", f.image()) // takes the tag
	f.push(own+"/a:1", f.image())           // and loses it
	tagged := f.push(own+"/b:1", f.image())
	images := []string{own + "/a@" + used.Digest, own + "/a@" + unused, own + "/b@" + tagged}
	expect := func(when string, want ...bool) {
		t.Helper()
		for i, ref := range images {
			if err := f.pull(ref, regauth.Node()); (err == nil) != want[i] {
				t.Errorf("%s: %s: %v", when, ref, err)
			}
		}
	}
	f.now = f.now.Add(10 * grace)
	f.collect()
	expect("nobody has said anything", true, true, true)
	f.tell()
	f.now = f.now.Add(10 * grace)
	f.tell()
	f.collect()
	expect("empty lists say nothing", true, true, true)
	f.tell(used)
	f.collect()
	expect("said once", true, true, true)
	f.now = f.now.Add(grace)
	f.collect()
	expect("said long ago, and no more", true, true, true)
	f.tell(used, regauth.UsedImage{Repository: own + "/a", Digest: unused})
	f.tell(used)
	f.collect()
	expect("it was used in between", true, true, true)
	f.now = f.now.Add(grace)
	f.tell(used)
	before, _ := f.reg.Usage()
	f.collect()
	expect("said twice, a day apart", true, false, true)
	if after, _ := f.reg.Usage(); after.Bytes >= before.Bytes {
		t.Errorf("what only it needed stays: %d bytes, then %d", before.Bytes, after.Bytes)
	}
}

// A push that finds content there, and a collection that would have it, at once:
// whatever the registry then says it has can be read.
func TestPushesRaceCollections(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	imgs := [4]v1.Image{f.image(), f.image(), f.image(), f.image()}
	var clock sync.Mutex
	f.reg.now = func() time.Time { clock.Lock(); defer clock.Unlock(); return f.now }
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			clock.Lock()
			f.now = f.now.Add(grace / 3)
			clock.Unlock()
			_ = f.reg.inUse(regauth.InUse{Images: []regauth.UsedImage{{Repository: own + "/x", Tag: "none"}}})
			if err := f.reg.Collect(); err != nil {
				t.Error(err)
			}
		}
	})
	server := regauth.Server(time.Time{})
	for n := range 40 {
		ref := fmt.Sprintf("%s/r%d:1", own, n%3)
		err := remote.Write(f.ref(ref), imgs[n%len(imgs)], f.as(server))
		var refused interface{ Temporary() bool }
		if err != nil && !errors.As(err, &refused) {
			t.Fatalf("push %d: %v", n, err)
		}
		if err == nil {
			if err := f.pull(ref, regauth.Node()); err != nil {
				t.Fatalf("pull %d: %v", n, err)
			}
		}
	}
	stop()
	wg.Wait()
}

func TestLoadsALayout(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	img := mutate.MediaType(f.image(), types.OCIManifestSchema1)
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is there
		digest, err := f.reg.Load(dir, "s0/default", "latest")
		if want, _ := img.Digest(); err != nil || digest != want.String() {
			t.Fatalf("Load = %s, %v, want %s", digest, err, want)
		}
	}
	if err := f.pull("s0/default:latest", f.team(other)); err != nil {
		t.Errorf("a public image: %v", err)
	}
	if _, err := f.reg.Load(t.TempDir(), "s0/default", "latest"); err == nil {
		t.Error("an empty directory was loaded")
	}
	layers, _ := img.Layers()
	hash, _ := layers[0].Digest()
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", hash.Hex), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.dir, "blobs", hash.Hex[:2], hash.Hex)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.reg.Load(dir, "s0/default", "latest"); err == nil {
		t.Error("C02: a layout whose layer is another was loaded")
	}
}
