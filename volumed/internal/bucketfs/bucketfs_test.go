package bucketfs

import (
	"context"
	"fmt"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"s0.run/volumed/internal/s3"
)

// endless is a store whose lists never end, and whose objects are zeros.
type endless struct{ lists int }

func (e *endless) List(_ context.Context, prefix, _ string, _ int) (s3.Page, error) {
	e.lists++
	name := fmt.Sprint(prefix, e.lists)
	return s3.Page{Objects: []s3.Object{{Key: name, ETag: "e"}}, Next: name}, nil
}

func (*endless) Head(context.Context, string) (s3.Object, error) {
	return s3.Object{}, s3.ErrNotFound
}

func (*endless) Read(ctx context.Context, _ s3.Object, _ []byte, _ int64) error { return ctx.Err() }

func newTree(t *testing.T) (*tree, *endless) {
	store := &endless{}
	tr := &tree{cfg: Config{Store: store, Log: slog.New(slog.DiscardHandler)}, blocks: newBlocks(store.Read)}
	t.Cleanup(tr.blocks.close)
	return tr, store
}

// Of all directories that are listed, few pages are kept.
func TestFewListsAreKept(t *testing.T) {
	t.Parallel()
	var l lists
	for i := range 100 {
		l.put(listing{prefix: fmt.Sprint(i), entries: map[string]entry{"f": {}}, until: time.Now().Add(time.Hour)})
		l.put(listing{prefix: "same", until: time.Now().Add(time.Hour), whole: true})
	}
	if len(l.all) != maxLists {
		t.Errorf("%d are kept", len(l.all))
	}
	for _, c := range []struct {
		prefix, name string
		known, there bool
	}{{"99", "f", true, true}, {"99", "g", false, false}, {"same", "f", true, false}, {"0", "f", false, false}} {
		if _, known, there := l.find(c.prefix, c.name); known != c.known || there != c.there {
			t.Errorf("%+v: %t, %t", c, known, there)
		}
	}
	l.put(listing{prefix: "same", until: time.Now().Add(-time.Second), whole: true})
	if _, known, _ := l.find("same", "f"); known {
		t.Error("what is old is believed")
	}
}

// A signal that meets who reads is no error of the file.
func TestASignalEndsNoRead(t *testing.T) {
	t.Parallel()
	tr, _ := newTree(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := &file{tree: tr, object: s3.Object{Key: "k", ETag: "e", Size: 10}}
	if got, errno := f.Read(ctx, nil, make([]byte, 10), 0); errno != 0 || got.Size() != 10 {
		t.Errorf("%v, %v", got, errno)
	}
}

// Who seeks in a list that never ends comes back.
func TestSeekingEnds(t *testing.T) {
	t.Parallel()
	tr, store := newTree(t)
	s := &stream{dir: &dir{tree: tr}}
	if errno := s.Seekdir(t.Context(), 10); errno != 0 || store.lists != 10 {
		t.Errorf("%v after %d pages", errno, store.lists)
	}
	if errno := s.Seekdir(t.Context(), 1<<62); errno != syscall.EIO {
		t.Errorf("%v after %d pages", errno, store.lists)
	}
}
