package engine

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/sync/tree"
)

// volume is a server of one volume, in memory: the journal, conflicts and answers of the
// contract.
type volume struct {
	mu       sync.Mutex
	files    map[string]entry
	rows     map[string]JournalEntry // the last entry of each path
	journal  []JournalEntry
	floor    int64
	cursors  map[string]int64
	open     []Conflict
	answers  map[string]answer
	contents map[string][]byte
	released int
	seeds    int
}

type entry struct {
	kind    tree.Kind
	mode    fs.FileMode
	content []byte
}

type answer struct {
	body string
	is   *Pushed
}

func newVolume() *volume {
	return &volume{
		files: map[string]entry{}, rows: map[string]JournalEntry{}, cursors: map[string]int64{}, answers: map[string]answer{}, contents: map[string][]byte{},
	}
}

// replicaOf is the volume as one replica reaches it.
type replicaOf struct {
	*volume
	id string
}

func hexSum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func no(status int, reason string) error {
	return &client.APIError{StatusCode: status, Code: "conflict", Message: reason, Details: map[string]any{"reason": reason}}
}

func (v *volume) head() int64 {
	if len(v.journal) == 0 {
		return v.floor
	}
	return v.journal[len(v.journal)-1].Seq
}

// log changes a path; a nil entry removes it.
func (v *volume) log(by, event, p string, e *entry) JournalEntry {
	j := JournalEntry{Seq: v.head() + 1, ReplicaID: by, Event: event, Path: "/" + p, Tombstone: e == nil}
	if e == nil {
		j.Kind = v.files[p].kind
		delete(v.files, p)
	} else {
		v.files[p] = *e
		j.Kind, j.Mode = e.kind, e.mode
		if e.kind == tree.File {
			j.Sum, j.Size = hexSum(e.content), int64(len(e.content))
			j.Ref = "sha256:" + j.Sum
			v.contents[j.Ref] = e.content
		}
	}
	v.journal = append(v.journal, j)
	v.rows[p] = j
	return j
}

// write is what a sandbox does.
func (v *volume) write(p, content string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.parents("", p)
	v.log("", eventWrite, p, &entry{tree.File, 0o644, []byte(content)})
}

func (v *volume) remove(p string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, q := range v.below(p) {
		v.log("", eventRemove, q, nil)
	}
	v.log("", eventRemove, p, nil)
}

func (v *volume) below(p string) []string {
	var all []string
	for q := range v.files {
		if strings.HasPrefix(q, p+"/") {
			all = append(all, q)
		}
	}
	slices.Sort(all)
	slices.Reverse(all)
	return all
}

func (v *volume) parents(by, p string) bool {
	for i := range len(p) {
		if p[i] != '/' {
			continue
		}
		switch e, is := v.files[p[:i]]; {
		case !is:
			v.log(by, eventCreate, p[:i], &entry{kind: tree.Dir, mode: 0o755})
		case e.kind != tree.Dir:
			return false
		}
	}
	return true
}

func (r replicaOf) Register(context.Context, Replica) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head(), nil
}

func (r replicaOf) Bootstrap(context.Context, string, Capabilities) (*Seed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seeds++
	return &Seed{SnapshotID: "snap", Cursor: r.head()}, nil
}

func (r replicaOf) Archive(context.Context, string) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	for _, p := range slices.Sorted(maps.Keys(r.files)) {
		e := r.files[p]
		h := &tar.Header{Name: p, Mode: int64(e.mode), Size: int64(len(e.content)), Typeflag: tar.TypeReg}
		if e.kind == tree.Dir {
			h.Name, h.Typeflag = p+"/", tar.TypeDir
		}
		if err := t.WriteHeader(h); err != nil {
			return nil, err
		}
		t.Write(e.content)
	}
	t.Close()
	z.Close()
	return io.NopCloser(&b), nil
}

func (r replicaOf) Release(context.Context, string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released++
	return nil
}

func (r replicaOf) Changes(_ context.Context, after int64, limit int) (*Page, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if after < r.floor {
		return nil, no(409, reseedRequired)
	}
	page := &Page{Head: r.head()}
	for _, j := range r.journal {
		if j.Seq > after && len(page.Changes) < limit {
			page.Changes = append(page.Changes, j)
		}
	}
	return page, nil
}

func (r replicaOf) Payload(_ context.Context, ref string) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, is := r.contents[ref]
	if !is {
		return nil, no(404, "not_found")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (r replicaOf) SetCursor(_ context.Context, seq int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if seq < r.cursors[r.id] || seq > r.head() {
		return no(409, "cursor")
	}
	r.cursors[r.id] = seq
	return nil
}

func (r replicaOf) Conflicts(context.Context) ([]Conflict, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.open), nil
}

func (r replicaOf) Push(_ context.Context, q Request) (*Pushed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	body, _ := json.Marshal(q)
	if a, is := r.answers[r.id+q.ID]; is {
		if a.body != string(body) {
			return nil, no(409, "another request")
		}
		return a.is, nil
	}
	switch {
	case q.Base > r.head() || q.Base < r.cursors[r.id]:
		return nil, no(409, "base")
	case q.Base < r.floor:
		return nil, no(409, reseedRequired)
	}
	done := &Pushed{}
	for _, c := range q.Changes {
		if err := r.change(c, q.Base, done); err != nil {
			return nil, err
		}
	}
	done.Head = r.head()
	r.answers[r.id+q.ID] = answer{string(body), done}
	return done, nil
}

func (r replicaOf) unseen(p string, base int64) bool {
	j, is := r.rows[p]
	return is && j.Seq > base && j.ReplicaID != r.id
}

func (r replicaOf) change(c Change, base int64, done *Pushed) error {
	if err := tree.CheckPath(c.Path); err != nil {
		return no(400, err.Error())
	}
	have, is := r.files[c.Path]
	e := &entry{c.Kind, c.Mode, c.Content}
	if e.mode == 0 {
		e.mode = 0o644
	}
	accept := func(j JournalEntry) { done.Accepted = append(done.Accepted, j) }
	switch c.Event {
	case eventRemove:
		if !is {
			if j, was := r.rows[c.Path]; was {
				accept(j)
			}
			return nil
		}
		for _, q := range append(r.below(c.Path), c.Path) {
			if r.unseen(q, base) {
				r.refuse(c, "concurrent_update", done)
				return nil
			}
		}
		for _, q := range append(r.below(c.Path), c.Path) {
			accept(r.log(r.id, eventRemove, q, nil))
		}
	case eventChmod:
		if !is || r.unseen(c.Path, base) {
			r.refuse(c, "concurrent_update", done)
			return nil
		}
		have.mode = c.Mode
		accept(r.log(r.id, eventChmod, c.Path, &have))
	case eventCreate:
		switch {
		case is && have.kind == tree.Dir:
			accept(r.rows[c.Path])
		case is || !r.parents(r.id, c.Path):
			r.refuse(c, "path_type_conflict", done)
		default:
			accept(r.log(r.id, eventCreate, c.Path, e))
		}
	case eventWrite:
		switch {
		case is && have.kind == tree.Dir:
			r.refuse(c, "path_type_conflict", done)
		case is && bytes.Equal(have.content, c.Content) && have.mode == e.mode:
			accept(r.rows[c.Path])
		case r.unseen(c.Path, base):
			r.refuse(c, "concurrent_update", done)
		case !is && !r.parents(r.id, c.Path):
			r.refuse(c, "path_type_conflict", done)
		default:
			accept(r.log(r.id, eventWrite, c.Path, e))
		}
	}
	return nil
}

func (r replicaOf) refuse(c Change, reason string, done *Pushed) {
	conflict := Conflict{ID: fmt.Sprint("conflict-", len(r.answers), "-", len(done.Conflicts)), ReplicaID: r.id, Path: "/" + c.Path, Reason: reason}
	if c.Event == eventWrite {
		dir, ext := path.Dir(c.Path), path.Ext(c.Path)
		for dir != "." && r.files[dir].kind != tree.Dir {
			dir = path.Dir(dir)
		}
		name := path.Join(dir, fmt.Sprintf("%s.sandbox0-conflict-%s-seq-%d%s", strings.TrimSuffix(path.Base(c.Path), ext), r.id, r.head()+1, ext))
		r.log("", eventCreate, name, &entry{tree.File, 0o644, c.Content})
		conflict.Artifact = "/" + name
	}
	r.open = append(r.open, conflict)
	done.Conflicts = append(done.Conflicts, conflict)
}

// resolve marks all conflicts.
func (v *volume) resolve() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = nil
}

// forget is a journal that has been cut.
func (v *volume) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.floor = v.head()
	v.journal = nil
}
