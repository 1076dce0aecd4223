package volumesync_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/api/internal/volumesync"
	"s0.run/internal/errdefs"
)

// unpacked is what an archive has: a directory's content is "/".
func unpacked(t *testing.T, packed io.Reader) map[string]string {
	t.Helper()
	plain, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			content = []byte("/")
		}
		all[strings.TrimSuffix(h.Name, "/")] = string(content)
	}
}

// A replica begins with what the volume was, and goes on with the journal.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.write("d/a", "1")
	b.write("b", "2")
	if err := os.Symlink("b", filepath.Join(b.dir, "link")); err != nil {
		t.Fatal(err)
	}
	begun, err := b.keep.Bootstrap(t.Context(), b.of, volumesync.Begin{User: uuid.New(), Name: "s", Names: everywhere})
	if err != nil || begun.After != 3 || begun.Snapshot.ExpiresAt == nil {
		t.Fatalf("%+v: %v", begun, err)
	}
	had := b.is()
	b.write("b", "3")
	var packed bytes.Buffer
	started := 0
	if err := b.keep.Archive(t.Context(), b.of, begun.Snapshot.ID, &packed, func() { started++ }); err != nil || started != 1 {
		t.Fatalf("started %d times: %v", started, err)
	}
	if got := unpacked(t, &packed); fmt.Sprint(got) != fmt.Sprint(had) {
		t.Errorf("the archive has %q, want %q", got, had)
	}
	if got := b.changes(begun.After); fmt.Sprint(got) != "[sandbox write b]" {
		t.Errorf("%q", got)
	}
	// What it was read from is nobody's volume, and goes.
	var others int
	if err := b.conn.QueryRow(t.Context(), "SELECT count(*) FROM volumes WHERE state <> 'deleting' AND id <> $1", b.of.Volume).Scan(&others); err != nil || others != 0 {
		t.Errorf("%d volumes are left: %v", others, err)
	}
	for name, of := range map[string]volumesync.Of{"another team's": {Team: uuid.New(), Volume: b.of.Volume}, "another volume's": {Team: b.of.Team, Volume: uuid.New()}} {
		if err := b.keep.Archive(t.Context(), of, begun.Snapshot.ID, io.Discard, func() { t.Error(name + " is answered") }); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A01: a volume of another team is none, whatever is asked of it.
func TestA01_VolumesOfOthers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.register("one", everywhere)
	other := volumesync.Of{Team: uuid.New(), Volume: b.of.Volume}
	ctx := t.Context()
	for name, err := range map[string]error{
		"register": second(b.keep.Register(ctx, other, store.SyncReplica{ID: "x"})), "read": second(b.keep.Replica(ctx, other, "one")),
		"cursor": second(b.keep.MoveCursor(ctx, other, "one", 0)), "changes": second(b.keep.Changes(ctx, other, 0, 1)),
		"push":      only(b.keep.Push(ctx, other, volumesync.Push{Replica: "one", Request: "r", Changes: []volumesync.Change{put("create", "a", "1")}})),
		"bootstrap": only(b.keep.Bootstrap(ctx, other, volumesync.Begin{Name: "s", Names: everywhere})),
		"content":   second(b.keep.Content(ctx, other, volumesync.ContentRef(strings.Repeat("0", 64)))),
	} {
		if !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.want(map[string]string{})
}

func second[A, B any](_ A, _ B, err error) error { return err }

func only[A any](_ A, err error) error { return err }

// Many at once are one after the other: no number is missing or given twice, and nothing
// that was accepted is lost.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var all sync.WaitGroup
	for n := range 3 {
		id := fmt.Sprint("r", n)
		b.register(id, everywhere)
		all.Go(func() {
			for i := range 5 {
				own := put("create", fmt.Sprintf("%s-%d", id, i), id)
				push := volumesync.Push{Replica: id, Request: fmt.Sprint(i), Changes: []volumesync.Change{own, put("write", "same", id)}}
				_, err := b.keep.Push(t.Context(), b.of, push)
				for errdefs.Is(err, errdefs.Unavailable) && t.Context().Err() == nil { // the others were quicker for long
					_, err = b.keep.Push(t.Context(), b.of, push)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	is := b.is()
	for n := range 3 {
		for i := range 5 {
			if name := fmt.Sprintf("r%d-%d", n, i); is[name] != fmt.Sprint("r", n) {
				t.Errorf("%s has %q", name, is[name])
			}
		}
	}
	if entries := b.changes(0); len(entries) < 16 { // with their numbers looked at
		t.Errorf("%q", entries)
	}
}
