package volumesync_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/api/internal/volumesync"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// A push that stopped half way is sent again: what is at the old path of its rename by then
// is another file, and is not moved over what was renamed.
func TestARenameIsNotDoneTwice(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write("a", "old")
	b.write("b", "replaced")
	head := b.register("one", everywhere)
	rename := volumesync.Change{Event: "rename", OldPath: "a", Path: "b", Metadata: []byte(`{"by":"one"}`)}
	b.push("one", head, rename, put("create", "a", "new"))
	_, entries, err := b.keep.Changes(t.Context(), b.of, head, 10)
	if err != nil || len(entries) != 3 || entries[0].Metadata != nil || entries[1].Metadata == nil {
		t.Errorf("what is accepted has the metadata, and nothing else: %+v, %v", entries, err)
	}
	again := b.push("one", head, rename, put("create", "a", "new"), put("create", "c", "c"))
	if len(again.Conflicts) != 1 || len(again.Accepted) != 2 {
		t.Errorf("%+v", again)
	}
	rename.SHA256 = entries[1].SHA256 // which tells that it was done
	again = b.push("one", again.Head, rename)
	if len(again.Conflicts) != 0 || len(again.Accepted) != 1 {
		t.Errorf("%+v", again)
	}
	b.want(map[string]string{"a": "new", "b": "old", "c": "c"})
	// What one push makes itself it may move over what it makes.
	again = b.push("one", again.Head, put("create", "d", "1"), put("create", "tmp", "2"), volumesync.Change{Event: "rename", OldPath: "tmp", Path: "d"})
	if len(again.Conflicts) != 0 || b.is()["d"] != "2" {
		t.Errorf("%+v", again)
	}
	_, err = b.keep.Push(t.Context(), b.of, volumesync.Push{
		Replica: "one", Request: uuid.NewString(), Base: again.Head, Changes: []volumesync.Change{put("create", "e", ""), {Event: "rename", OldPath: "a", Path: "a/b"}},
	})
	if !errdefs.Is(err, errdefs.InvalidArgument) || b.is()["a"] != "new" {
		t.Errorf("a rename into itself: %v", err)
	}
	if _, is := b.is()["e"]; is {
		t.Error("a push that makes no sense was begun")
	}
}

// Conflicts that are resolved make room for others; those that are open don't.
func TestConflictsMakeRoom(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.register("one", everywhere)
	if _, err := b.conn.Exec(t.Context(), `INSERT INTO volume_sync_conflicts (id, volume_id, replica_id, event, path, old_path, artifact_path, existing_seq, base_seq, reason, status)
		SELECT gen_random_uuid(), $1, 'one', 'write', 'a', '', '', 0, 0, 'concurrent_update', 'resolved' FROM generate_series(1, 10000)`, b.of.Volume); err != nil {
		t.Fatal(err)
	}
	b.push("one", 0, put("create", "a", "1"))
	var left int
	if err := b.conn.QueryRow(t.Context(), "SELECT count(*) FROM volume_sync_conflicts").Scan(&left); err != nil || left != 9999 {
		t.Errorf("%d are left: %v", left, err)
	}
	if _, err := b.conn.Exec(t.Context(), "UPDATE volume_sync_conflicts SET status = 'open'"); err != nil {
		t.Fatal(err)
	}
	b.push("one", 0, put("create", "b", "1"))
	_, err := b.keep.Push(t.Context(), b.of, volumesync.Push{Replica: "one", Request: "r", Changes: []volumesync.Change{put("create", "c", "1"), put("create", "d", "1")}})
	if !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("more than may be open: %v", err)
	}
}

// What is refused of a path that is as long as one can be is kept further up.
func TestArtifactsOfLongPaths(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	dir := strings.Repeat(strings.Repeat("d", 100)+"/", 9)
	name := dir + strings.Repeat("n", procapi.MaxMirrorPath-len(dir))
	b.write(name, "1")
	b.register("one", store.SyncNames{CaseSensitive: true})
	done := b.push("one", 0, put("write", name, "2"))
	if len(done.Conflicts) != 1 {
		t.Fatalf("%+v", done)
	}
	if kept := done.Conflicts[0].ArtifactPath; len(kept) > procapi.MaxMirrorPath || b.is()[kept] != "2" {
		t.Errorf("%d bytes: %s", len(kept), kept)
	}
}
