// Package volumetest serves files of volumes that a fake node has, by the code that serves
// those of real ones: each volume, and each snapshot of one, is a directory of a test's.
package volumetest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"maps"

	"s0.run/internal/files"
	"s0.run/internal/files/mirror"
	"s0.run/internal/files/serve"
	"s0.run/internal/files/watch"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

// Dirs are the directories. They are safe for concurrent use.
type Dirs struct {
	t   testing.TB
	dir string

	mu   sync.Mutex
	made map[string]http.Handler
}

// New makes directories that go with the test.
func New(t testing.TB) *Dirs { return &Dirs{t: t, dir: t.TempDir(), made: map[string]http.Handler{}} }

// Dir is a volume's, or a snapshot's.
func (d *Dirs) Dir(id string) string { return filepath.Join(d.dir, filepath.Base(id)) }

// Files serves a volume's.
func (d *Dirs) Files(id string) http.Handler {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.made[id]; h != nil {
		return h
	}
	if err := os.MkdirAll(d.Dir(id), 0o755); err != nil {
		d.t.Error(err)
	}
	tree := files.Tree{Base: d.Dir(id), Copy: true}
	mux := http.NewServeMux()
	routes := serve.Routes(tree, watch.NewShared(4, 64))
	maps.Copy(routes, mirror.Routes(tree))
	for pattern, h := range routes {
		mux.Handle(pattern, answer.Serve(h, func(r *http.Request, err error) { d.t.Logf("%s %s: %v", r.Method, r.URL.Path, err) }))
	}
	d.made[id] = below(mux)
	return d.made[id]
}

// below makes absolute paths relative: the directory is no root of a process.
func below(next http.Handler) http.Handler {
	local := func(path string) string { return strings.TrimLeft(path, "/") }
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if path := q.Get("path"); strings.HasPrefix(path, "/") {
			q.Set("path", "./"+local(path))
			r.URL.RawQuery = q.Encode()
		}
		if r.URL.Path == procapi.PathFiles+"/move" {
			b, err := io.ReadAll(r.Body)
			var m procapi.MoveRequest
			if err == nil && json.Unmarshal(b, &m) == nil {
				m.Source, m.Destination = local(m.Source), local(m.Destination)
				b, _ = json.Marshal(m)
			}
			r.Body = io.NopCloser(bytes.NewReader(b))
		}
		next.ServeHTTP(w, r)
	})
}

// Copy makes one volume or snapshot what another is.
func (d *Dirs) Copy(from, to string) error {
	d.Files(from) // whose directory is there
	if err := os.RemoveAll(d.Dir(to)); err != nil {
		return err
	}
	return os.CopyFS(d.Dir(to), os.DirFS(d.Dir(from)))
}
