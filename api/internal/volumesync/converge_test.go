package volumesync_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"s0.run/api/internal/store"
	"s0.run/api/internal/volumesync"
	"s0.run/internal/errdefs"
)

// replica is a directory on somebody's machine: its files by their names, a directory's
// content is "/".
type replica struct {
	*bench
	id     string
	cursor int64
	local  map[string]string
	synced map[string]string // what local was when it was the journal's
}

func (b *bench) replica(id string) *replica {
	b.register(id, everywhere)
	return &replica{bench: b, id: id, local: map[string]string{}, synced: map[string]string{}}
}

// set makes a file or a directory, and those above it.
func set(tree map[string]string, name, content string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if tree[dir] != "/" {
			tree[dir] = "/"
		}
	}
	if tree[name] == "/" && content != "/" {
		drop(tree, name)
	}
	tree[name] = content
}

func drop(tree map[string]string, name string) {
	maps.DeleteFunc(tree, func(other, _ string) bool { return other == name || strings.HasPrefix(other, name+"/") })
}

// diff is what has changed in the directory, as a client would send it.
func (r *replica) diff() (all []volumesync.Change) {
	names := slices.Sorted(maps.Keys(r.synced))
	slices.Reverse(names)
	for _, name := range names {
		is, there := r.local[name]
		if !there || (is == "/") != (r.synced[name] == "/") {
			all = append(all, volumesync.Change{Event: "remove", Path: name})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.local)) {
		was, there := r.synced[name]
		is := r.local[name]
		kindChanged := there && (is == "/") != (was == "/")
		switch {
		case is == "/" && (!there || kindChanged):
			all = append(all, volumesync.Change{Event: "create", Path: name, Kind: "directory"})
		case is != "/" && (!there || kindChanged):
			all = append(all, put("create", name, is))
		case is != was:
			all = append(all, put("write", name, is))
		}
	}
	return all
}

// send pushes what has changed. What is refused is kept beside, and comes back with the
// journal.
func (r *replica) send() {
	r.t.Helper()
	changes := r.diff()
	if len(changes) == 0 {
		return
	}
	contents := map[string]string{}
	for _, c := range changes {
		contents[c.Path] = string(c.Content)
	}
	done := r.push(r.id, r.cursor, changes...)
	is := r.is()
	for _, c := range done.Conflicts {
		if c.ArtifactPath != "" && is[c.ArtifactPath] != contents[c.Path] {
			r.t.Errorf("%s of %s is lost: %q is in %s", c.Event, c.Path, is[c.ArtifactPath], c.ArtifactPath)
		}
		if c.ArtifactPath == "" && (c.Event == "create" || c.Event == "write") && contents[c.Path] != "" {
			r.t.Errorf("%s of %s is kept nowhere", c.Event, c.Path)
		}
		if c.Event != "remove" {
			drop(r.local, c.Path)
		}
	}
}

// receive applies the journal, when what has changed in the directory was sent.
func (r *replica) receive() {
	r.t.Helper()
	for {
		r.stale()
		_, list, err := r.keep.Changes(r.t.Context(), r.of, r.cursor, 7)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range list {
			r.apply(e)
			r.cursor = e.Seq
		}
		if _, _, err := r.keep.MoveCursor(r.t.Context(), r.of, r.id, r.cursor); err != nil {
			r.t.Fatal(err)
		}
		if len(list) == 0 {
			r.synced = maps.Clone(r.local)
			return
		}
	}
}

func (r *replica) apply(e store.SyncEntry) {
	r.t.Helper()
	switch {
	case e.Event == "remove" && e.Kind == store.SyncDirectory && r.hasBelow(e.Path): // what it has sent since
	case e.Event == "remove":
		drop(r.local, e.Path)
	case e.Kind == store.SyncDirectory:
		set(r.local, e.Path, "/")
	case e.Event == "chmod":
	case e.Event == "create", e.Event == "write":
		content, err := r.content(e.SHA256)
		if errdefs.Is(err, errdefs.NotFound) {
			return // a later entry says what became of it
		}
		if err != nil {
			r.t.Fatal(err)
		}
		set(r.local, e.Path, content)
	default:
		r.t.Errorf("an entry of event %s", e.Event)
	}
}

func (r *replica) hasBelow(dir string) bool {
	for name := range r.local {
		if strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// universe are few names, so that actors meet.
var universe = []string{"a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a", "f/g/a"}

// act makes a random change of the directory.
func (r *replica) act(dice *rand.Rand, n int) {
	name := universe[dice.IntN(len(universe))]
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if is, there := r.local[dir]; there && is != "/" {
			return // below a file
		}
	}
	switch dice.IntN(6) {
	case 0:
		drop(r.local, name)
	case 1:
		if r.local[name] == "" {
			set(r.local, name, "/")
		}
	default:
		if r.local[name] != "/" {
			set(r.local, name, fmt.Sprintf("%s %d", r.id, n))
		}
	}
}

// move has the server rename what the replica has, if it can.
func (r *replica) move(dice *rand.Rand, n int) {
	r.t.Helper()
	from := universe[dice.IntN(len(universe))]
	if r.local[from] == "" || fmt.Sprint(r.local) != fmt.Sprint(r.synced) {
		return
	}
	done := r.push(r.id, r.cursor, volumesync.Change{Event: "rename", OldPath: from, Path: fmt.Sprintf("moved-%s-%d", r.id, n)})
	if len(done.Conflicts)+len(done.Accepted) != 1 {
		r.t.Errorf("a rename became %+v", done)
	}
}

// meddle is what a sandbox does. It answers what it wrote.
func (b *bench) meddle(dice *rand.Rand, n int) (name, content string) {
	b.t.Helper()
	name = universe[dice.IntN(len(universe))]
	full := filepath.Join(b.dir, name)
	switch dice.IntN(6) {
	case 0:
		_ = os.RemoveAll(full) // below a file there is nothing
		return "", ""
	case 1:
		_ = os.Rename(full, filepath.Join(b.dir, fmt.Sprintf("s-%d", n))) // of what may not be there
		return "", ""
	}
	content = fmt.Sprintf("sandbox %d", n)
	if os.MkdirAll(filepath.Dir(full), 0o755) != nil || os.WriteFile(full, []byte(content), 0o644) != nil {
		return "", "" // below a file, or a directory
	}
	return name, content
}

// Whatever two replicas and a sandbox do, at the end everybody has the same; and what the
// sandbox has just written is never overwritten by who has not seen it.
func TestReplicasConverge(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			converge(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

func converge(t *testing.T, dice *rand.Rand) {
	b := newBench(t)
	b.write("a", "begin")
	b.write("d/a", "begin")
	all := []*replica{b.replica("one"), b.replica("two")}
	for n := range 60 {
		r := all[dice.IntN(2)]
		switch dice.IntN(5) {
		case 0:
			name, content := b.meddle(dice, n)
			if name == "" {
				continue
			}
			r.send()
			if is := b.is()[name]; is != content {
				t.Fatalf("%s, which the sandbox has just written, has %q", name, is)
			}
		case 1:
			r.send()
			r.receive()
			r.move(dice, n)
		default:
			r.act(dice, n)
		}
	}
	for range 3 { // what one sends the other has, and what is refused comes back
		for _, r := range all {
			r.send()
			r.receive()
		}
	}
	is := b.is()
	for _, r := range all {
		if fmt.Sprint(r.local) != fmt.Sprint(is) {
			t.Errorf("%s has\n%q, the volume\n%q", r.id, r.local, is)
		}
	}
}
