package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// D12: headers are held until their layer is unpacked, and what they hold counts.
func TestC02_HeadersHoldWhatTheyNeed(t *testing.T) {
	huge := strings.Repeat("x", 250<<10)
	headers := make([]tar.Header, 64)
	for i := range headers {
		headers[i] = tar.Header{
			Name: fmt.Sprintf("d%d%s/", i, strings.Repeat("y", 200)), Typeflag: tar.TypeDir, Uname: huge, Gname: huge,
			PAXRecords: map[string]string{"SCHILY.xattr.trusted.x": huge, "COMMENT.x": huge, "SCHILY.xattr.user.mine": "1"},
		}
	}
	r := tar.NewReader(bytes.NewReader(archiveOf(t, headers...)))
	a := &applier{limits: defaultLimits, root: t.TempDir()}
	held := make([]*tar.Header, 0, len(headers))
	before := heap()
	for range headers {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := a.accept(h); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if len(h.PAXRecords) != 1 || h.PAXRecords["SCHILY.xattr.user.mine"] != "1" {
			t.Fatalf("attributes %.200v", h.PAXRecords)
		}
		held = append(held, h)
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("%d headers hold %d bytes", len(held), grown)
	}
	if want := int64(len(headers) * 200); a.names < want {
		t.Errorf("%d bytes of names are counted, want %d at least", a.names, want)
	}
	runtime.KeepAlive(held)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// D12: a short name may stand for a long path, which is what is held.
func TestC02_PathsCountAsLinksLead(t *testing.T) {
	t.Parallel()
	limits := defaultLimits
	limits.nameBytes = 100 << 10
	a := &applier{limits: limits, root: t.TempDir()}
	long := strings.Repeat("/"+strings.Repeat("x", 200), 10)
	link := tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "."}
	accept := func(h tar.Header) error {
		_, err := a.accept(&h)
		return err
	}
	relink := func(to string) error {
		return errors.Join(os.RemoveAll(filepath.Join(a.root, "a")), os.Symlink(to, filepath.Join(a.root, "a")))
	}
	if err := errors.Join(accept(link), relink("."), accept(tar.Header{Name: "a/0"})); err != nil {
		t.Fatal(err)
	}
	link.Name = "a/a" // itself, by itself
	if err := errors.Join(accept(link), relink(long)); err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for n := range 1000 {
		if err := accept(tar.Header{Name: fmt.Sprintf("a/%d", n), Typeflag: tar.TypeReg}); err != nil {
			if !strings.Contains(err.Error(), "longer than") {
				t.Error(err)
			}
			break
		}
		accepted++
	}
	if accepted > 60 {
		t.Errorf("%d paths of 2 KB are within 100 KB", accepted)
	}
}
