package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"s0.run/internal/errdefs"
)

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func layers(ids ...string) (all []Layer) {
	for _, id := range ids {
		all = append(all, Layer{ID: id})
	}
	return all
}

func create(t *testing.T, s *Store, id string, v Version) Version {
	t.Helper()
	head, err := s.Create(id, v)
	if err != nil {
		t.Fatal(err)
	}
	return head
}

// Who has been away while another node began a later epoch writes nothing any more, and
// hears so, however far the log has gone on and was cut (X26, X47).
func TestX47_StaleWriterIsFenced(t *testing.T) {
	t.Parallel()
	for _, commits := range []int{0, 1, 3 * keptEntries} {
		s, dir := open(t)
		stale := create(t, s, "v", Version{Team: "t", Epoch: 1, Layers: layers("base")})
		other, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		head, err := other.Begin("v", 2)
		if err != nil {
			t.Fatal(err)
		}
		for i := range commits {
			next := head
			next.Layers = layers(fmt.Sprint("l", i))
			if head, err = other.Advance("v", head.Seq, next); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Advance("v", stale.Seq, stale); errdefs.From(err).Code != CodeFenced {
			t.Errorf("after %d commits: a stale writer's error is %v", commits, err)
		}
		if _, err := s.Begin("v", 1); errdefs.From(err).Code != CodeFenced {
			t.Errorf("after %d commits: a stale epoch's error is %v", commits, err)
		}
		if now, err := s.Head("v"); err != nil || now.Seq != head.Seq || now.Epoch != 2 {
			t.Errorf("after %d commits: head %+v, %v; want %+v", commits, now, err, head)
		}
	}
}

func TestOneOfManyWritersGetsTheNextVersion(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	head := create(t, s, "v", Version{Team: "t", Epoch: 1})
	var wg sync.WaitGroup
	won := make(chan Version, 16)
	for range 16 {
		wg.Go(func() {
			if v, err := s.Advance("v", head.Seq, head); err == nil {
				won <- v
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d writers won", len(won))
	}
}

func TestSnapshotsAndForksAreNames(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	head := create(t, s, "v", Version{Team: "t", Epoch: 1, Layers: layers("a")})
	kept, err := s.Keep("v", "snap", head)
	if err != nil || len(kept.Layers) != 1 {
		t.Fatal(kept, err)
	}
	other := head
	other.Layers = layers("b")
	if again, err := s.Keep("v", "snap", other); err != nil || again.Layers[0].ID != "a" {
		t.Errorf("a repeated snapshot is %+v, %v", again, err)
	}
	if err := errors.Join(s.Drop("v", "snap"), s.Drop("v", "snap")); err != nil {
		t.Error(err)
	}
	if _, err := s.Snapshot("v", "snap"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a dropped snapshot: %v", err)
	}
	if _, err := s.Create("v", Version{Team: "another"}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("another team's volume of the same id: %v", err)
	}
	if err := errors.Join(s.Remove("v"), s.Remove("v")); err != nil {
		t.Error(err)
	}
	if _, err := s.Head("v"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a removed volume: %v", err)
	}
}

func TestB01_IDsNameNothingElse(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	for _, id := range []string{"", ".", "..", "../x", "a/b", "a\x00", ".hidden", string(make([]byte, 65))} {
		if _, err := s.Create(id, Version{Team: "t"}); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("a volume %q: %v", id, err)
		}
		if _, err := s.Snapshot("v", id); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("a snapshot %q: %v", id, err)
		}
	}
}

// Layers go that no version, snapshot or mount names, when they are old; nothing goes
// while anything can't be read (G09).
func TestG09_CollectNeedsProof(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	old := time.Now().Add(-2 * layerGrace)
	for _, id := range []string{"head", "snapped", "forked", "held", "mounted", "nobodys", "young"} {
		if err := os.WriteFile(s.LayerPath(id), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if id != "young" {
			if err := os.Chtimes(s.LayerPath(id), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	head := create(t, s, "v", Version{Team: "t", Layers: layers("head")})
	create(t, s, "fork", Version{Team: "t", Layers: layers("forked")})
	snapped, held := head, head
	snapped.Layers, held.Layers = layers("snapped"), layers("held")
	if _, err := s.Keep("v", "snap", snapped); err != nil {
		t.Fatal(err)
	}
	if err := s.Hold("v", "node", held); err != nil {
		t.Fatal(err)
	}
	mounted := func(id string) bool { return id == "mounted" }

	broken := filepath.Join(dir, "volumes", "fork", "log", "0000000000000002")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Collect(mounted); n != 0 || err == nil {
		t.Errorf("with an unreadable version: %d removed, %v", n, err)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Collect(mounted); n != 1 || err != nil {
		t.Errorf("%d removed, %v; want nobody's alone", n, err)
	}
	if _, err := os.Stat(s.LayerPath("nobodys")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody's layer: %v", err)
	}
}
