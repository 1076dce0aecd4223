package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"s0.run/cmd/s0/internal/sync/state"
	"s0.run/cmd/s0/internal/sync/tree"
)

// machine is a directory that is kept alike with a volume; its worker may end any time.
type machine struct {
	t      *testing.T
	v      *volume
	id     string
	dir    string
	state  string
	from   string
	caps   Capabilities
	failAt func(point string) error
	r      *rand.Rand
	clock  time.Time // a look later than the last by what confirms a removal
	stop   func()
	e      *Engine
}

func newMachine(t *testing.T, v *volume, id string) *machine {
	t.Helper()
	m := &machine{t: t, v: v, id: id, dir: t.TempDir(), state: t.TempDir(), from: FromAuto, caps: Capabilities{CaseSensitive: true}, stop: func() {}}
	m.r, m.clock = rand.New(rand.NewPCG(1, 1)), time.Now()
	tr, err := tree.Open(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err := tr.Mark(id); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.stop() })
	return m
}

// start begins anew with what is stored.
func (m *machine) start() {
	m.t.Helper()
	m.stop()
	store, err := state.Open(m.state, true)
	if err != nil {
		m.t.Fatal(err)
	}
	tr, err := tree.Open(m.dir)
	if err != nil {
		m.t.Fatal(err)
	}
	m.stop = func() { store.Close(); tr.Close() }
	m.e = New(Config{
		Store: store, Tree: tr, Server: replicaOf{m.v, m.id}, ID: m.id, From: m.from,
		Replica: Replica{Name: m.id, Capabilities: m.caps}, Log: slog.New(slog.DiscardHandler), failAt: m.failAt,
		now: func() time.Time { m.clock = m.clock.Add(confirmAfter); return m.clock },
	})
}

func (m *machine) cycle() error {
	if m.e == nil {
		m.start()
	}
	return m.e.Cycle(m.t.Context())
}

func (m *machine) sync() {
	m.t.Helper()
	if err := m.cycle(); err != nil {
		m.t.Fatalf("%s: %v", m.id, err)
	}
}

func (m *machine) write(p, content string) {
	m.t.Helper()
	name := filepath.Join(m.dir, p)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
		m.t.Fatal(err)
	}
	// As if it were a while ago, to have stamps that count.
	old := time.Now().Add(-time.Minute)
	if m.r.IntN(2) == 0 {
		os.Chtimes(name, old, old)
	}
}

func (m *machine) remove(p string) { os.RemoveAll(filepath.Join(m.dir, p)) }

// files is what is in the directory: a file's content, "/" for a directory.
func (m *machine) files() map[string]string {
	all := map[string]string{}
	filepath.WalkDir(m.dir, func(name string, d fs.DirEntry, err error) error {
		p, _ := filepath.Rel(m.dir, name)
		switch {
		case err != nil:
			m.t.Fatal(err)
		case p == tree.Own:
			return filepath.SkipDir
		case p == ".":
		case d.IsDir():
			all[p] = "/"
		case d.Type()&fs.ModeSymlink != 0:
			all[p] = "->"
		default:
			b, _ := os.ReadFile(name)
			all[p] = string(b)
		}
		return nil
	})
	return all
}

func (v *volume) all() map[string]string {
	all := map[string]string{}
	for p, e := range v.files {
		if all[p] = string(e.content); e.kind == tree.Dir {
			all[p] = "/"
		}
	}
	return all
}

// settle syncs until nothing moves any more, marking conflicts.
func settle(t *testing.T, v *volume, all ...*machine) {
	t.Helper()
	for range 20 {
		before := v.head()
		for _, m := range all {
			m.persist()
		}
		v.resolve()
		quiet := v.head() == before
		for _, m := range all {
			quiet = quiet && maps.Equal(m.files(), v.all())
		}
		if quiet {
			return
		}
	}
	for _, m := range all {
		t.Errorf("%s has %q", m.id, m.files())
	}
	t.Fatalf("the volume has %q", v.all())
}

// persist cycles until it is as if nothing had ended the work.
func (m *machine) persist() {
	m.t.Helper()
	var err error
	for range 50 {
		if err = m.cycle(); err == nil {
			return
		}
		if !errors.Is(err, errEnd) {
			break
		}
		m.start()
	}
	m.t.Fatalf("%s: %v", m.id, err)
}

var errEnd = errors.New("the end")

// crashing ends a machine's work now and then: when, the seed alone says.
func crashing(seed uint64, id string) func(string) error {
	points := map[string]*rand.Rand{}
	return func(point string) error {
		r, is := points[point]
		if !is {
			h := fnv.New64a()
			h.Write([]byte(id + " " + point))
			r = rand.New(rand.NewPCG(seed, h.Sum64()))
			points[point] = r
		}
		if r.IntN(12) == 0 {
			return errEnd
		}
		return nil
	}
}

func TestBothWays(t *testing.T) {
	t.Parallel()
	v := newVolume()
	v.write("from/sandbox.txt", "one")
	m := newMachine(t, v, "laptop")
	m.sync()
	if got := m.files(); got["from/sandbox.txt"] != "one" {
		t.Fatalf("%q", got)
	}
	m.write("mine.txt", "two")
	m.write("empty", "")
	m.sync()
	if got := v.all(); got["mine.txt"] != "two" || len(got) != 4 {
		t.Fatalf("%q", got)
	}
	v.write("mine.txt", "three")
	v.remove("from")
	m.sync()
	if got := m.files(); got["mine.txt"] != "three" || len(got) != 2 {
		t.Fatalf("%q", got)
	}
	m.remove("mine.txt")
	os.Chmod(filepath.Join(m.dir, "empty"), 0o755)
	m.sync()
	m.sync() // a removal is believed at the second look
	if got := v.files; len(got) != 1 || got["empty"].mode != 0o755 {
		t.Fatalf("%v", got)
	}
	if s := m.e.Status(); s.State != StateSynced || s.Pending != 0 || v.cursors["laptop"] == 0 {
		t.Errorf("%+v", s)
	}
	head := v.head()
	m.sync()
	if v.head() != head || v.released != v.seeds {
		t.Error("a cycle without changes has changed something")
	}
}

func TestConflictKeepsBoth(t *testing.T) {
	t.Parallel()
	v := newVolume()
	v.write("a.txt", "base")
	m := newMachine(t, v, "laptop")
	m.sync()
	m.write("a.txt", "mine, longer")
	m.write("other.txt", "waits")
	v.write("a.txt", "theirs")
	m.sync()
	if s := m.e.Status(); s.State != StateConflict || s.Conflicts != 1 {
		t.Errorf("%+v", s)
	}
	m.write("later.txt", "uploads stop")
	m.sync()
	if _, is := v.all()["later.txt"]; is {
		t.Error("something was sent while a conflict is open")
	}
	settle(t, v, m)
	got := m.files()
	if got["a.txt"] != "theirs" || got["later.txt"] == "" || len(got) != 4 {
		t.Errorf("%q", got)
	}
	kept := false
	for p, content := range got {
		kept = kept || strings.HasPrefix(p, "a.sandbox0-conflict-laptop-seq-") && strings.HasSuffix(p, ".txt") && content == "mine, longer"
	}
	if !kept {
		t.Errorf("what was written here is gone: %q", got)
	}
}

func TestInitialSides(t *testing.T) {
	t.Parallel()
	for from, want := range map[string]string{FromVolume: "theirs", FromLocal: "mine", FromAuto: ""} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			v := newVolume()
			v.write("a.txt", "theirs")
			v.write("only.there", "x")
			m := newMachine(t, v, "laptop")
			m.from = from
			m.write("a.txt", "mine")
			m.write("only.here", "y")
			err := m.cycle()
			if from == FromAuto {
				if both, is := errors.AsType[*BothError](err); !is || !slices.Contains(both.Paths, "a.txt") || m.files()["a.txt"] != "mine" || v.all()["a.txt"] != "theirs" {
					t.Errorf("%v", err)
				}
				return
			}
			settle(t, v, m)
			got := m.files()
			if got["a.txt"] != want || got["only.there"] == "" || got["only.here"] == "" {
				t.Errorf("%q", got)
			}
			if from == FromLocal && v.released == v.seeds {
				t.Error("nothing of what the volume was is left to go back to")
			}
		})
	}
}

func TestIgnoredStaysWhereItIs(t *testing.T) {
	t.Parallel()
	v := newVolume()
	v.write(".gitignore", "*.log\nbuild/\n")
	v.write("there.log", "theirs")
	m := newMachine(t, v, "laptop")
	m.sync()
	m.write("here.log", "mine")
	m.write("build/out", "mine")
	m.write("src/a.go", "code")
	m.write("src/x.log", "mine")
	m.sync()
	if got := v.all(); got["here.log"] != "" || got["build"] != "" || got["src/x.log"] != "" || got["src/a.go"] == "" {
		t.Errorf("the volume has %q", got)
	}
	if got := m.files(); got["there.log"] != "" {
		t.Errorf("the directory has %q", got)
	}
	m.write(".gitignore", "build/\n")
	settle2 := []string{"here.log", "there.log", "src/x.log"}
	m.sync()
	m.sync()
	for _, p := range settle2 {
		if m.files()[p] == "" || v.all()[p] == "" {
			t.Errorf("%s is no longer ignored: here %q, there %q", p, m.files()[p], v.all()[p])
		}
	}
	m.remove("src")
	m.sync()
	m.sync()
	if v.all()["src"] != "" {
		t.Errorf("%q", v.all())
	}
}

func TestJournalThatWasCut(t *testing.T) {
	t.Parallel()
	v := newVolume()
	v.write("a", "one")
	v.write("b", "one")
	v.write("c", "one")
	m := newMachine(t, v, "laptop")
	m.sync()
	v.write("a", "two")
	v.remove("b")
	v.forget()
	m.write("c", "mine")
	m.write("d", "mine")
	settle(t, v, m)
	if got := m.files(); got["a"] != "two" || got["b"] != "" || got["c"] != "mine" || got["d"] != "mine" || len(got) != 3 {
		t.Errorf("%q", got)
	}
}

// A file whose content is gone by the time somebody asks for it is in the archive.
func TestReseedNeedsNoPayload(t *testing.T) {
	t.Parallel()
	v := newVolume()
	v.write("a", "one")
	m := newMachine(t, v, "laptop")
	m.sync()
	v.write("a", "two")
	v.forget()
	clear(v.contents)
	m.sync()
	if got := m.files(); got["a"] != "two" {
		t.Errorf("%q", got)
	}
}

// Two machines and a sandbox change the same few files, each without seeing the others,
// and a worker ends wherever it may: in the end all have the same, and what anybody wrote
// is in it.
func TestRandomEditsConverge(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{1, 2, 3, 4, rand.Uint64()} { // add one that failed to have it again
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			converge(t, seed)
		})
	}
}

var names = []string{"a.txt", "b", "d/x.txt", "d/y", "d/e/z", "f", "f2/q"}

func converge(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	v := newVolume()
	all := []*machine{newMachine(t, v, "laptop"), newMachine(t, v, "desktop")}
	for _, m := range all {
		if m.r = r; seed%2 == 1 {
			m.failAt = crashing(seed, m.id)
		}
	}
	settle(t, v, all...)
	for round := range 6 {
		written := map[string]bool{}
		for _, m := range all {
			for _, p := range pick(r) {
				if r.IntN(4) == 0 {
					m.remove(p)
					continue
				}
				content := fmt.Sprintf("%s %s %d %d", m.id, p, round, r.IntN(1000))
				m.write(p, content)
				written[content] = true
			}
		}
		for _, p := range pick(r)[:1] {
			content := fmt.Sprint("sandbox ", p, round)
			v.write(p, content)
			written[content] = true
		}
		settle(t, v, all...)
		have := map[string]bool{}
		for _, content := range v.all() {
			have[content] = true
		}
		for content := range written {
			if !have[content] {
				t.Fatalf("round %d: %q is lost; there is %q", round, content, v.all())
			}
		}
	}
}

// pick takes some names in a random order.
func pick(r *rand.Rand) []string {
	all := slices.Clone(names)
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+r.IntN(4)]
}

// What a hostile volume says must not leave the directory, run or overwrite anything.
func TestHostilePaths(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"archive", "journal"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			v := newVolume()
			m := newMachine(t, v, "laptop")
			outside := filepath.Join(filepath.Dir(m.dir), "outside")
			if err := os.Mkdir(outside, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(outside, filepath.Join(m.dir, "link")); err != nil {
				t.Fatal(err)
			}
			if how == "journal" {
				m.sync()
			}
			for _, p := range []string{
				"../outside/a", "a/../../outside/b", "/etc/s0-sync-test", "link/c", ".git/hooks/post-checkout", "sub/.GIT/config", ".g\u200cit/config",
				".s0-sync/replica", ".S0-SYNC/replica", "x//y", "a/./z", "nul\x00", "a\nb", strings.Repeat("n", 256), "ok/" + strings.Repeat("p/", 2100) + "p", "good",
			} {
				v.mu.Lock()
				v.log("", eventWrite, p, &entry{tree.File, 0o4755, []byte("hostile")})
				if strings.ContainsRune(p, 0) && how == "archive" {
					delete(v.files, p)
				}
				v.mu.Unlock()
			}
			if err := m.cycle(); err != nil {
				t.Fatal(err)
			}
			if got := m.files(); len(got) != 2 || got["good"] != "hostile" || got["link"] != "->" {
				t.Errorf("the directory has %q", got)
			}
			if left, _ := os.ReadDir(outside); len(left) != 0 {
				t.Errorf("outside are %v", left)
			}
			if info, err := os.Stat(filepath.Join(m.dir, "good")); err != nil || info.Mode() != 0o755 {
				t.Errorf("%v %v", info.Mode(), err)
			}
			if b, err := os.ReadFile(filepath.Join(m.dir, tree.Own, "replica")); err != nil || string(b) != "laptop\n" {
				t.Errorf("%q %v", b, err)
			}
			m.sync() // which looks at the directory with that behind it
			if s := m.e.Status(); len(s.Skipped) < 10 {
				t.Errorf("of what is not here only %d are named", len(s.Skipped))
			}
		})
	}
}

func TestNamesThatOnlyCaseTellsApart(t *testing.T) {
	t.Parallel()
	v := newVolume()
	m := newMachine(t, v, "laptop")
	m.caps.CaseSensitive = false
	m.sync()
	v.write("Readme", "one")
	v.write("README", "two")
	v.write("dir/a", "one")
	v.write("DIR/a", "two")
	m.sync()
	got := m.files()
	if len(got) != 3 || (got["Readme"] == "") == (got["README"] == "") {
		t.Errorf("%q", got)
	}
	m.sync()
	if len(v.all()) != 6 {
		t.Errorf("the volume has only %q", v.all())
	}
}

// A directory that is gone has not been emptied by its user.
func TestDirectoryThatIsGone(t *testing.T) {
	t.Parallel()
	v := newVolume()
	v.write("a", "one")
	m := newMachine(t, v, "laptop")
	m.sync()
	if err := os.RemoveAll(m.dir); err != nil {
		t.Fatal(err)
	}
	if err := m.cycle(); err == nil || v.all()["a"] != "one" {
		t.Errorf("%v, %q", err, v.all())
	}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := m.cycle(); err == nil || v.all()["a"] != "one" {
		t.Errorf("%v, %q", err, v.all())
	}
}

// A directory that is being deleted, with all that says what it is, empties no volume:
// what is missing is believed when a while later nothing else is.
func TestDirectoryThatIsBeingDeleted(t *testing.T) {
	t.Parallel()
	v := newVolume()
	for _, p := range []string{"a", "b", "c", "d/e"} {
		v.write(p, "one")
	}
	m := newMachine(t, v, "laptop")
	m.sync()
	for _, p := range []string{"a", "b", "d"} {
		m.remove(p)
		m.sync()
		if got := v.all(); len(got) != 5 {
			t.Fatalf("after %s the volume has %q", p, got)
		}
	}
	if s := m.e.Status(); s.State != StatePending || s.Pending != 4 {
		t.Errorf("%+v", s)
	}
	m.e.failAt = func(point string) error {
		if point == "scanned" {
			return os.RemoveAll(m.dir)
		}
		return nil
	}
	if err := m.cycle(); err == nil || len(v.all()) != 5 {
		t.Errorf("%v, %q", err, v.all())
	}
}

// What is another kind of thing now has been replaced, not deleted.
func TestReplacedByAnotherKind(t *testing.T) {
	t.Parallel()
	v := newVolume()
	v.write("a/b/c", "one")
	v.write("f", "one")
	m := newMachine(t, v, "laptop")
	m.sync()
	m.remove("a")
	m.remove("f")
	m.write("a", "two")
	m.write("f/g", "two")
	m.sync()
	if got := v.all(); len(got) != 3 || got["a"] != "two" || got["f/g"] != "two" || len(v.open) != 0 {
		t.Errorf("%q %v", got, v.open)
	}
}

// A directory that a link has taken the place of has not been emptied either.
func TestLinksAndLargeFilesStayHere(t *testing.T) {
	t.Parallel()
	v := newVolume()
	v.write("d/a", "one")
	m := newMachine(t, v, "laptop")
	m.sync()
	m.e.MaxFile = 10
	away := filepath.Join(t.TempDir(), "d")
	if err := errors.Join(os.Rename(filepath.Join(m.dir, "d"), away), os.Symlink(away, filepath.Join(m.dir, "d"))); err != nil {
		t.Fatal(err)
	}
	m.write("large", "more than ten bytes")
	m.sync()
	v.write("d/a", "two")
	m.sync()
	if got := v.all(); got["d/a"] != "two" || len(got) != 2 {
		t.Errorf("%q", got)
	}
	if b, err := os.ReadFile(filepath.Join(away, "a")); err != nil || string(b) != "one" {
		t.Errorf("behind the link is %q, %v", b, err)
	}
	if s := m.e.Status(); len(s.Skipped) < 2 {
		t.Errorf("%+v", s.Skipped)
	}
}

func TestRefusedChangesStopNothing(t *testing.T) {
	t.Parallel()
	v := newVolume()
	m := newMachine(t, v, "laptop")
	m.sync()
	m.e.Server = pickyServer{replicaOf{v, "laptop"}}
	for i := range 9 {
		m.write(fmt.Sprint("f", i), "x")
	}
	m.write("bad", "x")
	for range 8 {
		m.sync()
	}
	if got := v.all(); len(got) != 9 {
		t.Errorf("%q", got)
	}
	if s := m.e.Status(); len(s.Skipped) != 1 || s.Skipped[0].Path != "bad" || s.Pending != 1 {
		t.Errorf("%+v", s)
	}
	m.e.Server = replicaOf{v, "laptop"} // which thinks better of it
	m.clock = m.clock.Add(forget)
	m.sync()
	if v.all()["bad"] == "" {
		t.Error("a refusal is remembered for ever")
	}
}

// A request that clashes is not made again and again, and keeps nothing from being received.
func TestClashEndsSending(t *testing.T) {
	t.Parallel()
	v := newVolume()
	m := newMachine(t, v, "laptop")
	m.sync()
	server := &clashingServer{replicaOf: replicaOf{v, "laptop"}, reason: "some reason"}
	m.e.Server, m.e.batch = server, 1
	m.write("a", "x")
	m.write("b", "x")
	v.write("c", "x")
	if err := m.cycle(); err == nil || server.asked != 1 || m.files()["c"] != "x" || m.e.Status().Pending != 2 {
		t.Errorf("%v after %d requests, %q, %+v", err, server.asked, m.files(), m.e.Status())
	}
	m.start()
	server.reason, m.e.Server = "base_seq_behind_cursor", server
	m.sync()
	m.sync()
	if err := m.cycle(); err == nil {
		t.Error("what does not cure itself is no error")
	}
}

type clashingServer struct {
	replicaOf
	reason string
	asked  int
}

func (c *clashingServer) Push(context.Context, Request) (*Pushed, error) {
	c.asked++
	return nil, no(409, c.reason)
}

// What can't be put at a path keeps no other from being received.
func TestPathThatCantBeWritten(t *testing.T) {
	t.Parallel()
	v := newVolume()
	m := newMachine(t, v, "laptop")
	m.sync()
	failed := 0
	m.e.failAt = func(point string) error {
		if point == "placing" && failed == 0 {
			failed++
			return &fs.PathError{Op: "rename", Path: "a", Err: fs.ErrPermission}
		}
		return nil
	}
	v.write("a", "x")
	v.write("b", "x")
	m.sync()
	m.sync()
	if got := m.files(); got["a"] != "" || got["b"] != "x" || len(m.e.Status().Skipped) != 1 {
		t.Errorf("%q %+v", got, m.e.Status())
	}
	m.clock = m.clock.Add(forget)
	m.sync()
	if got := m.files(); got["a"] != "x" || len(v.all()) != 2 {
		t.Errorf("%q %q", got, v.all())
	}
}

// pickyServer does not take what is called bad.
type pickyServer struct{ replicaOf }

func (p pickyServer) Push(ctx context.Context, q Request) (*Pushed, error) {
	for _, c := range q.Changes {
		if c.Path == "bad" {
			return nil, no(400, "bad")
		}
	}
	return p.replicaOf.Push(ctx, q)
}
