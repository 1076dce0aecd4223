package volumesync_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/api/internal/volumesync"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/volumetest"
	"s0.run/internal/sandbox"
)

// bench is a keeper over a volume of a fake node, whose files are real.
type bench struct {
	t    *testing.T
	keep *volumesync.Keeper
	st   *store.Store
	conn *pgx.Conn
	of   volumesync.Of
	dir  string // the volume's files
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dsn := s0test.Postgres(t)
	st, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	dirs := volumetest.New(t)
	node := fakenode.Start(t, &fakenode.Node{Name: "n", Volumes: &fakenode.VolumeStore{Name: "store", Files: dirs.Files, Copy: dirs.Copy}})
	table, log := placement.New(), slog.New(slog.DiscardHandler)
	set := nodes.New(nodes.Config{
		Sockets: []string{node.Socket}, Cluster: "local", Table: table, Log: log,
		OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {}, OnStored: func(string, sandbox.ID) {},
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	fakenode.Eventually(t, "the node is known", func() bool { return table.IsSynced("n") })
	vols := volumes.New(volumes.Config{Store: st, Table: table, Nodes: set, Log: log})
	plane := dataplane.New(dataplane.Config{Store: st, Table: table, Nodes: set, Volumes: vols})
	b := &bench{t: t, st: st, conn: conn, keep: volumesync.New(volumesync.Config{Store: st, Plane: plane, Volumes: vols, Log: log})}
	b.of.Team = uuid.New()
	v, err := vols.Create(t.Context(), volumes.CreateRequest{TeamID: b.of.Team, UserID: uuid.New(), Backend: nodeapi.BackendS0FS})
	if err != nil {
		t.Fatal(err)
	}
	b.of.Volume = v.ID
	dirs.Files(v.ID.String())
	b.dir = dirs.Dir(v.ID.String())
	return b
}

// write is what a sandbox does: into the volume's files, past the journal.
func (b *bench) write(name, content string) {
	b.t.Helper()
	full := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) remove(name string) {
	b.t.Helper()
	if err := os.RemoveAll(filepath.Join(b.dir, name)); err != nil {
		b.t.Fatal(err)
	}
}

// stale has the next look look.
func (b *bench) stale() {
	b.t.Helper()
	if _, err := b.conn.Exec(b.t.Context(), "UPDATE volume_syncs SET looked_at = NULL"); err != nil {
		b.t.Fatal(err)
	}
}

var everywhere = store.SyncNames{CaseSensitive: true}

func (b *bench) register(id string, names store.SyncNames) int64 {
	b.t.Helper()
	_, head, err := b.keep.Register(b.t.Context(), b.of, store.SyncReplica{ID: id, SyncNames: names})
	if err != nil {
		b.t.Fatal(err)
	}
	return head
}

// changes are the entries behind a number, as texts.
func (b *bench) changes(after int64) (list []string) {
	b.t.Helper()
	b.stale()
	_, entries, err := b.keep.Changes(b.t.Context(), b.of, after, volumesync.MaxLimit)
	if err != nil {
		b.t.Fatal(err)
	}
	for i, e := range entries {
		if e.Seq != after+int64(i)+1 {
			b.t.Errorf("entry %d of those after %d has number %d", i, after, e.Seq)
		}
		list = append(list, strings.Join(strings.Fields(e.Source+" "+e.Replica+" "+e.Event+" "+e.Path), " "))
	}
	return list
}

func put(event, path, content string) volumesync.Change {
	return volumesync.Change{Event: event, Path: path, Content: []byte(content), HasContent: true}
}

func (b *bench) push(replica string, base int64, changes ...volumesync.Change) volumesync.Pushed {
	b.t.Helper()
	done, err := b.keep.Push(b.t.Context(), b.of, volumesync.Push{Replica: replica, Request: uuid.NewString(), Base: base, Changes: changes})
	if err != nil {
		b.t.Fatal(err)
	}
	return done
}

// is what the volume has: a directory's content is "/".
func (b *bench) is() map[string]string {
	b.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(b.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == b.dir {
			return err
		}
		name, _ := filepath.Rel(b.dir, path)
		switch {
		case d.IsDir():
			all[name] = "/"
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			all[name] = string(content)
			return err
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

func (b *bench) want(want map[string]string) {
	b.t.Helper()
	if is := b.is(); fmt.Sprint(is) != fmt.Sprint(want) {
		b.t.Errorf("the volume has %q, want %q", is, want)
	}
}

func (b *bench) content(sha256 string) (string, error) {
	b.t.Helper()
	_, r, err := b.keep.Content(b.t.Context(), b.of, volumesync.ContentRef(sha256))
	if err != nil {
		return "", err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	return string(content), err
}

// What sandboxes and replicas do is one journal, and nothing is in it twice.
func TestTheJournal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write("d/a", "1")
	if head := b.register("one", everywhere); head != 2 {
		t.Errorf("the journal of a volume with a directory and a file ends at %d", head)
	}
	want := []string{"sandbox create d", "sandbox create d/a"}
	if got := b.changes(0); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	done := b.push("one", 2, put("write", "/d/a", "2"), put("create", "e/f/b", "3"))
	if len(done.Accepted) != 2 || done.Head != 6 {
		t.Errorf("%+v", done)
	}
	b.want(map[string]string{"d": "/", "d/a": "2", "e": "/", "e/f": "/", "e/f/b": "3"})
	b.write("d/a", "4")
	b.remove("e")
	if err := os.Chmod(filepath.Join(b.dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	want = []string{
		"replica one write d/a", "replica one create e", "replica one create e/f", "replica one create e/f/b",
		"sandbox remove e/f/b", "sandbox remove e/f", "sandbox remove e", "sandbox chmod d", "sandbox write d/a",
	}
	if got := b.changes(2); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := b.changes(11); len(got) != 0 {
		t.Errorf("nothing has changed: %q", got)
	}
}

// A path that somebody else has changed since is not overwritten: what was to be written
// is beside it, for everybody.
func TestNothingIsOverwrittenUnseen(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write("a.txt", "old")
	b.register("one", everywhere)
	b.register("two", everywhere)
	b.push("one", 1, put("write", "a.txt", "one"))
	b.write("s", "of a sandbox") // that nobody has looked at
	done := b.push("two", 1, put("write", "a.txt", "two"), put("create", "s", "of two"), put("create", "new", "n"))
	if len(done.Accepted) != 1 || len(done.Conflicts) != 2 {
		t.Fatalf("%+v", done)
	}
	first := done.Conflicts[0]
	if first.Reason != "concurrent_update" || first.ExistingSeq != 2 || first.ArtifactPath != "a.sandbox0-conflict-two-seq-4.txt" {
		t.Errorf("%+v", first)
	}
	b.want(map[string]string{
		"a.txt": "one", "s": "of a sandbox", "new": "n", first.ArtifactPath: "two", done.Conflicts[1].ArtifactPath: "of two",
	})
	want := []string{"sandbox create s", "replica create " + first.ArtifactPath, "replica create " + done.Conflicts[1].ArtifactPath, "replica two create new"}
	if got := b.changes(2); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	// What the other has written is not removed, moved or changed unseen either.
	mode := int32(0o600)
	done = b.push("two", 1, volumesync.Change{Event: "remove", Path: "a.txt"}, volumesync.Change{Event: "rename", Path: "b", OldPath: "a.txt"},
		volumesync.Change{Event: "chmod", Path: "a.txt", Mode: &mode}, put("create", "a.txt", "one"))
	if len(done.Conflicts) != 3 || len(done.Accepted) != 1 { // the last is so already
		t.Errorf("%+v", done)
	}
	open, err := b.st.SyncConflicts(t.Context(), b.of.Team, b.of.Volume, "open", 100)
	if err != nil || len(open) != 5 {
		t.Errorf("%d open conflicts: %v", len(open), err)
	}
	// One's own changes are no one else's.
	if done = b.push("one", 1, put("write", "a.txt", "one more")); len(done.Conflicts) != 0 {
		t.Errorf("%+v", done)
	}
}

// A directory that somebody has changed something in stays; so does what is not kept alike.
func TestDirectoriesOfReplicas(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write("d/sub/a", "1")
	b.write("l/a", "1")
	if err := os.Symlink("a", filepath.Join(b.dir, "l/link")); err != nil {
		t.Fatal(err)
	}
	head := b.register("one", everywhere)
	b.write("d/sub/b", "2")
	remove := volumesync.Change{Event: "remove", Path: "d", Kind: "directory"}
	if done := b.push("one", head, remove); len(done.Conflicts) != 1 {
		t.Errorf("what the replica does not know was removed: %+v", done)
	}
	done := b.push("one", head, volumesync.Change{Event: "remove", Path: "l"})
	if len(done.Conflicts) != 1 || done.Conflicts[0].Reason != "unsupported_entry" {
		t.Errorf("%+v", done)
	}
	head = done.Head
	done = b.push("one", head, volumesync.Change{Event: "rename", OldPath: "d", Path: "e/d"}, put("write", "e/d/sub/a", "3"))
	if len(done.Conflicts) != 0 {
		t.Errorf("%+v", done)
	}
	b.want(map[string]string{"e": "/", "e/d": "/", "e/d/sub": "/", "e/d/sub/a": "3", "e/d/sub/b": "2", "l": "/", "l/a": "1"})
	want := []string{
		"replica one create e", "replica one remove d/sub/b", "replica one remove d/sub/a", "replica one remove d/sub", "replica one remove d",
		"replica one create e/d", "replica one create e/d/sub", "replica one create e/d/sub/a", "replica one create e/d/sub/b", "replica one write e/d/sub/a",
	}
	if got := b.changes(head); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	// Who has not heard of the rename writes to where the file was.
	b.register("two", everywhere)
	done = b.push("two", head, put("write", "d/sub/a", "4"))
	if len(done.Conflicts) != 1 || b.is()[done.Conflicts[0].ArtifactPath] != "4" {
		t.Errorf("%+v", done)
	}
	done = b.push("one", done.Head, volumesync.Change{Event: "remove", Path: "e"})
	if len(done.Conflicts) != 0 || b.is()["e"] != "" {
		t.Errorf("%+v", done)
	}
}

// The same request again is answered the same and done once.
func TestRequestsAreDoneOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.register("one", everywhere)
	req := func() volumesync.Push {
		return volumesync.Push{Replica: "one", Request: "r", Changes: []volumesync.Change{put("create", "a", "1")}}
	}
	first, err := b.keep.Push(t.Context(), b.of, req())
	if err != nil {
		t.Fatal(err)
	}
	b.write("a", "of a sandbox")
	again, err := b.keep.Push(t.Context(), b.of, req())
	if err != nil || fmt.Sprint(again) != fmt.Sprint(first) {
		t.Errorf("%+v, then %+v: %v", first, again, err)
	}
	b.want(map[string]string{"a": "of a sandbox"})
	other := req()
	other.Changes[0].Content = []byte("2")
	if _, err := b.keep.Push(t.Context(), b.of, other); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("other changes under its id: %v", err)
	}
	// What was done and not stored is done: the journal is what a look finds.
	b.write("b", "1")
	if done := b.push("one", again.Head, put("create", "b", "1")); len(done.Accepted) != 1 || len(done.Conflicts) != 0 {
		t.Errorf("%+v", done)
	}
}

func reason(err error) any { return errdefs.From(err).Details["reason"] }

// Who may send changes, and on what they may be based.
func TestBasesAndLeases(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write("a", "1")
	b.write("b", "1")
	b.register("one", everywhere)
	push := func(base int64) error {
		_, err := b.keep.Push(t.Context(), b.of, volumesync.Push{Replica: "one", Request: uuid.NewString(), Base: base, Changes: []volumesync.Change{put("create", "c", "1")}})
		return err
	}
	if err := push(3); reason(err) != "base_seq_ahead" {
		t.Errorf("a base beyond the head: %v", err)
	}
	if _, _, err := b.keep.MoveCursor(t.Context(), b.of, "one", 2); err != nil {
		t.Fatal(err)
	}
	if err := push(1); reason(err) != "base_seq_behind_cursor" {
		t.Errorf("a base before the cursor: %v", err)
	}
	for _, to := range []int64{1, 3} {
		if _, _, err := b.keep.MoveCursor(t.Context(), b.of, "one", to); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("a cursor goes from 2 to %d of 2: %v", to, err)
		}
	}
	if _, err := b.conn.Exec(t.Context(), "UPDATE volume_sync_replicas SET lease_until = now()"); err != nil {
		t.Fatal(err)
	}
	if err := push(2); reason(err) != "lease_expired" {
		t.Errorf("without a lease: %v", err)
	}
	b.register("one", everywhere)
	if err := push(2); err != nil {
		t.Error(err)
	}
	if _, err := b.conn.Exec(t.Context(), "UPDATE volume_syncs SET retained_after_seq = 2"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.keep.Changes(t.Context(), b.of, 1, 10); reason(err) != "reseed_required" {
		t.Errorf("what is forgotten: %v", err)
	}
	b.register("two", everywhere)
	_, err := b.keep.Push(t.Context(), b.of, volumesync.Push{Replica: "two", Request: "r", Base: 1, Changes: []volumesync.Change{put("create", "d", "1")}})
	if reason(err) != "reseed_required" {
		t.Errorf("a base that is forgotten: %v", err)
	}
}

// Where some replica can't tell names apart, nobody makes two that are one there.
func TestNamesOfReplicas(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write("Readme", "1")
	b.register("mac", store.SyncNames{UnicodeInsensitive: true})
	head := b.register("linux", everywhere)
	done := b.push("linux", head, put("create", "README", "2"), put("create", "README/x", "3"), put("create", "other", "4"),
		volumesync.Change{Event: "rename", OldPath: "Readme", Path: "readme"})
	reasons := []string{}
	for _, c := range done.Conflicts {
		reasons = append(reasons, c.Reason)
	}
	if !slices.Equal(reasons, []string{"casefold_collision", "casefold_collision"}) {
		t.Errorf("%q", reasons)
	}
	if is := b.is(); is["readme"] != "1" || is["README"] != "" || is[done.Conflicts[0].ArtifactPath] != "2" {
		t.Errorf("%q", is)
	}
	b.write("README", "5") // a sandbox may
	done = b.push("linux", done.Head, volumesync.Change{Event: "rename", OldPath: "readme", Path: "ReadMe"})
	if len(done.Conflicts) != 1 || done.Conflicts[0].Reason != "case_only_rename_conflict" {
		t.Errorf("%+v", done)
	}
	_, err := b.keep.Bootstrap(t.Context(), b.of, volumesync.Begin{Name: "s"})
	if reason(err) != "namespace_incompatible" {
		t.Errorf("a replica that can't have both: %v", err)
	}
	b.register("windows", store.SyncNames{CaseSensitive: true, Windows: true})
	done = b.push("linux", done.Head, put("create", "aux.txt", "6"), put("create", "a:b", "7"))
	if len(done.Conflicts) != 2 || done.Conflicts[0].Reason != "windows_reserved_name" || done.Conflicts[1].Reason != "windows_invalid_name" {
		t.Errorf("%+v", done)
	}
}

// A content is what its name says, or is not there.
func TestContents(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	large := strings.Repeat("0123456789abcdef", 600_000)
	b.write("large", large)
	b.write("small", "small")
	b.register("one", everywhere)
	_, entries, err := b.keep.Changes(t.Context(), b.of, 0, 10)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%+v: %v", entries, err)
	}
	for i, want := range []string{large, "small"} {
		if got, err := b.content(entries[i].SHA256); err != nil || got != want {
			t.Errorf("%s: %d bytes, %v", entries[i].Path, len(got), err)
		}
	}
	b.write("small", "other")
	b.write("large", "x"+large[1:])
	for _, e := range entries {
		if got, err := b.content(e.SHA256); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s: %d bytes, %v", e.Path, len(got), err)
		}
	}
	b.write("again", "small")
	b.changes(2)
	if got, err := b.content(entries[1].SHA256); err != nil || got != "small" {
		t.Errorf("another file has it: %q, %v", got, err)
	}
}
