package volumesync

import (
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// What a push has made is in memory until its end, so there is a most of it.
func TestOnePushMakesSoMuch(t *testing.T) {
	t.Parallel()
	p := &push{session: &session{next: pending{entries: make([]store.SyncEntry, maxPushed+1)}}}
	if err := p.carry(t.Context(), Change{Event: "remove", Path: "a"}); !errdefs.Is(err, errdefs.TooLarge) {
		t.Errorf("%v", err)
	}
}

// Files are read in parts that end soon.
func TestPartsOfALook(t *testing.T) {
	t.Parallel()
	files := []procapi.TreeEntry{{Path: "large", Size: partBytes + 1}, {Path: "a", Size: partBytes - 1}, {Path: "b", Size: 1}, {Path: "c", Size: 1}}
	files = append(files, make([]procapi.TreeEntry, procapi.MaxDigests)...)
	var lengths []int
	for _, part := range parts(files) {
		lengths = append(lengths, len(part))
	}
	if want := []int{1, 2, procapi.MaxDigests, 1}; !slices.Equal(lengths, want) {
		t.Errorf("%v, want %v", lengths, want)
	}
	if len(parts(nil)) != 0 {
		t.Error("of no files there is a part")
	}
}

// The parts of an artifact's name are of the name and the replica alone, whatever they have
// in them; and the name is never too long.
func TestArtifactNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a.txt", "a-seq-1.b-seq-2", ".hidden", strings.Repeat("ä", 127)} {
		begin, end := artifactParts(name, "r-seq-3")
		for _, seq := range []int64{1, math.MaxInt64} {
			full := artifactName("d", name, "r-seq-3", seq)
			if full != "d/"+begin+strconv.FormatInt(seq, 10)+end || len(full) > len("d/")+maxArtifactName || !utf8.ValidString(full) {
				t.Errorf("%s: %s", name, full)
			}
		}
	}
}

// Only a path that is not what it was has the tree looked at again.
func TestWhatHasMoved(t *testing.T) {
	t.Parallel()
	for _, err := range []error{errdefs.New(errdefs.Conflict, "the volume is in use"), errdefs.New(errdefs.NotFound, "volume not found"), io.EOF, nil} {
		if got := moved(err); got != err {
			t.Errorf("%v: %v", err, got)
		}
	}
	if _, is := errors.AsType[*errMoved](moved(errdefs.WithCode(errdefs.Conflict, "path_exists", "x"))); !is {
		t.Error("a path that is not what it was")
	}
}
