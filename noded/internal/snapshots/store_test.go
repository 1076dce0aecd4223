package snapshots

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// R4: a snapshot whose removal was answered does not come back with the power.
func TestR4_ADeletedSnapshotIsDurablyGone(t *testing.T) {
	t.Parallel()
	const name = "00000000-0000-4000-8000-000000000001"
	s := NewStore(t.TempDir())
	var wrong error
	var names []string // in the directory when it is synced
	s.sync = func(dir string) error {
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return errors.Join(err, wrong)
	}
	for _, wrong = range []error{nil, errors.New("input/output error")} {
		names = nil
		if err := os.Mkdir(s.path(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(name); !errors.Is(err, wrong) {
			t.Errorf("deleted: %v", err)
		}
		if !slices.Equal(names, []string{name + goneSuffix}) {
			t.Errorf("synced were %q", names)
		}
	}
	synced := 0
	s.sync = func(string) error { synced++; return wrong }
	if err := s.Delete(name); !errors.Is(err, wrong) || synced != 1 {
		t.Errorf("deleted again, after its sync had failed: %v, synced %d times", err, synced)
	}
	if err := NewStore(s.path("nowhere")).Delete(name); err != nil {
		t.Errorf("deleted where there is none: %v", err)
	}
}

// G09: nobody begins to store what goes, for what he stored would be nobody's.
func TestG09_WhatGoesIsNotHeld(t *testing.T) {
	t.Parallel()
	const name = "00000000-0000-4000-8000-000000000001"
	s := NewStore(t.TempDir())
	appear := func() {
		if err := errors.Join(os.Mkdir(s.path(name), 0o700), Write(s.path(name), manifest(t))); err != nil {
			t.Fatal(err)
		}
	}
	appear()
	release, ok := s.Hold(name)
	if err := s.Delete(name); !ok || !errors.Is(err, ErrBusy) {
		t.Fatalf("held %v, deleted %v", ok, err)
	}
	release()
	syncs := 0
	s.sync = func(string) error {
		syncs++
		appear() // as if it were not gone yet
		if _, ok := s.Hold(name); ok {
			t.Error("what goes is held")
		}
		if err := s.Delete(name); !errors.Is(err, ErrBusy) {
			t.Errorf("deleted by two: %v", err)
		}
		select {
		case <-s.Released(name):
			t.Error("it is not gone, and nobody is to be waited for")
		default:
		}
		return nil
	}
	if err := s.Delete(name); err != nil || syncs != 1 {
		t.Errorf("deleted: %v, synced %d times", err, syncs)
	}
	if _, ok := s.Hold(name); !ok {
		t.Error("a removal that is over keeps what is there from being held")
	}
}

// X22: what can't be made durable is never complete.
func TestX22_Seal(t *testing.T) {
	t.Parallel()
	part := t.TempDir()
	if err := os.WriteFile(filepath.Join(part, "pages"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Seal(part, "complete"); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(part, "complete")); err != nil || st.Size() != 0 {
		t.Errorf("%v, %v", st, err)
	}
	if err := errors.Join(os.Remove(filepath.Join(part, "complete")), os.Symlink("nowhere", filepath.Join(part, "gone"))); err != nil {
		t.Fatal(err)
	}
	if err := Seal(part, "complete"); err == nil {
		t.Error("a file that can't be read is durable")
	}
	if _, err := os.Stat(filepath.Join(part, "complete")); err == nil {
		t.Error("it is complete")
	}
	if err := Seal(filepath.Join(part, "nosuch"), "complete"); err == nil {
		t.Error("nothing is complete")
	}
}
