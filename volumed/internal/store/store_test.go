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
	"s0.run/internal/failpoint"
)

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir, Known: filepath.Join(t.TempDir(), "known")})
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
		other, err := Open(Config{Dir: dir, Known: filepath.Join(t.TempDir(), "known")})
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
	for i := range 16 {
		wg.Go(func() {
			next := head
			next.ID = fmt.Sprint(i)
			if v, err := s.Advance("v", head.Seq, next); err == nil {
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

// What a writer does not know the outcome of, he asks again, and is told that it was his.
func TestX43_AnAttemptIsRepeated(t *testing.T) {
	s, _ := open(t)
	head := create(t, s, "v", Version{Team: "t", Epoch: 1})
	next := head
	next.ID = "attempt"
	if err := failpoint.Arm("volume.after-link=error"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Advance("v", head.Seq, next)
	if armed := failpoint.Arm(""); armed != nil || err == nil || errdefs.Is(err, errdefs.Conflict) {
		t.Fatalf("an attempt whose answer is lost: %v, %v", err, armed)
	}
	if got, err := s.Advance("v", head.Seq, next); err != nil || got.Seq != head.Seq+1 {
		t.Errorf("it is repeated: %+v, %v", got, err)
	}
	other := next
	other.ID = "another"
	if _, err := s.Advance("v", head.Seq, other); errdefs.From(err).Code != CodeFenced {
		t.Errorf("another's attempt: %v", err)
	}
}

// What a directory has that is not the store is no answer: neither that a volume is not
// there, nor a place for one (X43).
func TestX43_AnotherDirectoryIsNoStore(t *testing.T) {
	t.Parallel()
	dir, known := filepath.Join(t.TempDir(), "tier"), filepath.Join(t.TempDir(), "known")
	s, err := Open(Config{Dir: dir, Known: known})
	if err != nil {
		t.Fatal(err)
	}
	head := create(t, s, "v", Version{Team: "t", Epoch: 1, Layers: layers("l")})
	away := dir + ".away"
	for _, instead := range []string{"nothing", "an empty directory", "another store"} {
		if err := os.Rename(dir, away); err != nil {
			t.Fatal(err)
		}
		switch instead {
		case "an empty directory":
			err = os.Mkdir(dir, 0o700)
		case "another store":
			_, err = Open(Config{Dir: dir, Known: filepath.Join(t.TempDir(), "known")})
		}
		if err != nil {
			t.Fatal(err)
		}
		_, created := s.Create("w", head)
		_, headErr := s.Head("v")
		_, listErr := s.Volumes()
		_, layerErr := s.NewLayer("new")
		_, collectErr := s.Collect(func(string) bool { return false })
		for call, err := range map[string]error{"create": created, "head": headErr, "list": listErr, "layer": layerErr, "collect": collectErr, "remove": s.Remove("v")} {
			if !errdefs.Is(err, errdefs.Unavailable) {
				t.Errorf("%s with %s: %v", call, instead, err)
			}
		}
		if instead != "nothing" {
			if _, err := Open(Config{Dir: dir, Known: known}); err == nil {
				t.Errorf("%s is opened as the store", instead)
			}
		}
		if err := errors.Join(os.RemoveAll(dir), os.Rename(away, dir)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(Config{Dir: dir, Known: known, Magic: 0x65735546}); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a directory of another file system: %v", err)
	}
	if now, err := s.Head("v"); err != nil || now.Seq != head.Seq {
		t.Errorf("the store is back: %+v, %v", now, err)
	}
}

// Layers go that no version, snapshot, mount or version under way names, at two looks an
// hour apart; nothing goes while anything can't be read (G09).
func TestG09_CollectNeedsProof(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	now := time.Now()
	later := now.Add(layerGrace + time.Minute)
	for _, id := range []string{"head", "snapped", "forked", "held", "mounted", "written", "named", "nobodys"} {
		newLayer(t, s, id, now)
	}
	newLayer(t, s, "young", later)
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
	if err := os.WriteFile(filepath.Join(dir, "volumes", "v", ".aside"), []byte(`{"layers":[{"id":"written"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(what string, at time.Time, want int) {
		t.Helper()
		if n, err := s.collect(func(id string) bool { return id == "mounted" }, at); n != want || err != nil {
			t.Errorf("%s: %d removed, %v; want %d", what, n, err, want)
		}
	}

	broken := filepath.Join(dir, "volumes", "fork", "log", "0000000000000002")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := s.collect(func(string) bool { return false }, later); n != 0 || err == nil {
			t.Errorf("with an unreadable version: %d removed, %v", n, err)
		}
		later = later.Add(2 * betweenLooks)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	newLayer(t, s, "young", later)
	look("the first look", later, 0)
	look("the next one, too soon", later.Add(betweenLooks-time.Second), 0)
	next := head
	next.Layers = layers("named", "head")
	if _, err := s.Advance("v", head.Seq, next); err != nil { // who had it in mind at the first look
		t.Fatal(err)
	}
	look("the second look", later.Add(betweenLooks), 1)
	if _, err := os.Stat(filepath.Join(dir, "layers", "nobodys")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody's layer: %v", err)
	}
	if _, err := Open(s.cfg); err != nil {
		t.Fatal(err)
	}
}

// A process that has just begun knows of no earlier look.
func TestG09_ALookIsAProcesssOwn(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	newLayer(t, s, "nobodys", time.Now().Add(-2*layerGrace))
	for range 3 {
		again, err := Open(s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := again.Collect(func(string) bool { return false }); n != 0 || err != nil {
			t.Errorf("%d removed, %v", n, err)
		}
	}
}

// A layer that waits for its version is young again when it is about to get one.
func TestG09_ATouchedLayerStays(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	now := time.Now()
	newLayer(t, s, "pending", now.Add(-2*layerGrace))
	nobody := func(string) bool { return false }
	if n, err := s.collect(nobody, now); n != 0 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	if err := s.Touch(layers("pending")); err != nil {
		t.Fatal(err)
	}
	if n, err := s.collect(nobody, now.Add(betweenLooks)); n != 0 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	if err := s.Touch(layers("gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a layer that is gone: %v", err)
	}
}

func newLayer(t *testing.T, s *Store, id string, made time.Time) {
	t.Helper()
	path := filepath.Join(s.cfg.Dir, "layers", id)
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, made, made)); err != nil {
		t.Fatal(err)
	}
}
