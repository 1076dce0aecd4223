package images

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/regauth"
	"s0.run/internal/s0test"
)

// The registry is told every image of its own that a template names, and nobody
// else is told anything.
func TestG09_TheRegistryIsToldWhatIsInUse(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	key, err := regauth.NewKey(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	var told regauth.InUse
	status := http.StatusNoContent
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		g, err := key.Open(user, password, time.Now())
		if err != nil || !g.Admin || r.Method != http.MethodPut || r.URL.Path != regauth.InUsePath {
			t.Errorf("%s %s as %+v, %v", r.Method, r.URL.Path, g, err)
		}
		if err := json.NewDecoder(r.Body).Decode(&told); err != nil {
			t.Error(err)
		}
		w.WriteHeader(status)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	digest := "sha256:" + strings.Repeat("a", 64)
	for id, image := range map[string]string{"tag": host + "/t-00000000/app:v1", "digest": host + "/s0/default@" + digest, "elsewhere": "ghcr.io/a/b:1"} {
		spec := json.RawMessage(fmt.Sprintf(`{"mainContainer":{"image":%q}}`, image))
		if err := s.PutPublicTemplate(t.Context(), id, spec, ""); err != nil {
			t.Fatal(err)
		}
	}
	k := New(Config{Store: s, Registry: &Registry{Pull: host, Push: host, Key: key}, Table: placement.New(), Log: slog.New(slog.DiscardHandler)})
	if err := k.TellRegistry(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[regauth.UsedImage]bool{}
	for _, u := range told.Images {
		got[u] = true
	}
	if len(got) != 2 || !got[regauth.UsedImage{Repository: "t-00000000/app", Tag: "v1"}] || !got[regauth.UsedImage{Repository: "s0/default", Digest: digest}] {
		t.Errorf("it was told %v", told.Images)
	}
	status = http.StatusForbidden
	if err := k.TellRegistry(t.Context()); err == nil {
		t.Error("a refusal went unseen")
	}
	if _, err := k.resolve(t.Context(), "ghcr.io/a/b:1"); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("without a node: %v", err)
	}
	// What this server pushes for a team lies below the team's prefix.
	team := store.Template{}.ID
	c, prefix, err := k.ServerCredentials(t.Context(), team)
	if g, oerr := key.Open(c.User, c.Password, time.Now()); err != nil || oerr != nil || !g.MayPush(prefix+"/x") || g.MayPush("s0/x") || time.Until(g.Expires) > serverGrantLife {
		t.Errorf("%+v, %v, %v", g, err, oerr)
	}
}
