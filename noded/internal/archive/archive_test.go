package archive

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/objects"
)

// canary is what no one but the image's owner may ever read.
const canary = "canary-6f1d-memory-of-a-sandbox"

func newID(t testing.TB) sandbox.ID {
	t.Helper()
	id, err := sandbox.NewID("test")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// newKeys makes keys as an operator does, by a file.
func newKeys(t testing.TB) Keys {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := MakeKey(file); err != nil {
		t.Fatal(err)
	}
	keys, err := LoadKeys(file)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func newDirStore(t testing.TB) (*objects.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	store, err := objects.Open("file://" + dir)
	if err != nil {
		t.Fatal(err)
	}
	return store, dir
}

func newArchive(t testing.TB, store Store, keys Keys) *Archive {
	t.Helper()
	a, err := New(Config{Store: store, Keys: keys, Room: func(int64) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// makeImage makes a directory like an image: sparse memory of several chunks, a file
// that does not compress, small ones and an empty one.
func makeImage(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	noise := make([]byte, chunkBytes+chunkBytes/2)
	rand.Read(noise)
	for name, data := range map[string][]byte{
		"image.json": []byte(`{"version":1}`), "files/overlay": noise, "files/complete": nil,
		"memory/checkpoint.img": []byte(strings.Repeat(canary, 1000)), "memory/complete": nil,
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(dir, "memory", "pages.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 5 {
		if _, err := f.WriteAt(bytes.Repeat([]byte(canary), 50_000), int64(i)*(3*chunkBytes)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(20 * chunkBytes); err != nil {
		t.Fatal(err)
	}
	return dir
}

// memoryLike makes an image whose one file is like a sandbox's memory: half zeros, a
// quarter text, a quarter noise, page by page.
func memoryLike(t testing.TB, size int) string {
	t.Helper()
	const page = 4096
	data := make([]byte, size)
	for at := 0; at < size; at += 4 * page {
		copy(data[at:at+page], strings.Repeat("import os, sys; def main(): print(42)\n", 128))
		rand.Read(data[at+page : at+2*page])
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pages.img"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sameTree fails unless two directories have the same content.
func sameTree(t testing.TB, want, got string) {
	t.Helper()
	read := func(root string) map[string]string {
		all := map[string]string{}
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			name, _ := filepath.Rel(root, path)
			all[name] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	a, b := read(want), read(got)
	if len(a) != len(b) {
		t.Errorf("%d files, want %d", len(b), len(a))
	}
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s differs", name)
		}
	}
}

func keysOf(t testing.TB, store Store, prefix string) (list []string) {
	t.Helper()
	for o, err := range store.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, o.Key)
	}
	return list
}

func TestUploadAndFetch(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	a := newArchive(t, store, newKeys(t))
	ref := Ref{Team: "team", Sandbox: newID(t), Generation: 3}
	image, got := makeImage(t), filepath.Join(t.TempDir(), "sandbox", "3")
	if _, err := a.Fetch(t.Context(), ref, got); !errors.Is(err, ErrNotFound) {
		t.Fatalf("fetching what was never stored: %v", err)
	}
	for range 2 { // the second takes the place of the first
		if err := a.Upload(t.Context(), ref, image, []byte(`{"n":1}`)); err != nil {
			t.Fatal(err)
		}
	}
	if left := keysOf(t, store, uploadsPrefix); len(left) > 0 {
		t.Errorf("notes of uploads are left: %q", left)
	}
	tree, err := scan(image)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	if n := len(keysOf(t, store, ref.prefix())); n != tree.chunks()+1 || tree.chunks() < 3 {
		t.Errorf("%d objects for %d chunks and a manifest", n, tree.chunks())
	}
	about, err := a.Fetch(t.Context(), ref, got)
	if err != nil || string(about) != `{"n":1}` {
		t.Fatalf("fetched with %q: %v", about, err)
	}
	sameTree(t, image, got)
	var st, was os.FileInfo
	if st, err = os.Stat(filepath.Join(got, "memory", "pages.img")); err == nil {
		was, err = os.Stat(filepath.Join(image, "memory", "pages.img"))
	}
	if err != nil || blocks(st) > blocks(was)*2 {
		t.Errorf("a sparse file has %d blocks, had %d (%v)", blocks(st), blocks(was), err)
	}
	if left, err := os.ReadDir(filepath.Dir(got)); err != nil || len(left) != 1 {
		t.Errorf("beside the image: %v, %v", left, err)
	}
}

// F10, for what a sandbox has in memory: neither it nor the key is in the store.
func TestF10_TheStoreHoldsNoPlaintext(t *testing.T) {
	t.Parallel()
	store, dir := newDirStore(t)
	keys := newKeys(t)
	if err := newArchive(t, store, keys).Upload(t.Context(), Ref{Team: "team", Sandbox: newID(t), Generation: 1}, makeImage(t), []byte(`"`+canary+`"`)); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		for _, secret := range [][]byte{[]byte(canary), []byte(canary[8:]), []byte("image.json"), keys.all[0].secret[:]} {
			if bytes.Contains(b, secret) {
				t.Errorf("%s holds %.10q…", path, secret)
			}
		}
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("%d files: %v", files, err)
	}
	for _, text := range []string{fmt.Sprint(keys), fmt.Sprintf("%v %+v %#v", keys, keys, keys)} {
		if strings.Contains(text, fmt.Sprintf("%x", keys.all[0].secret[:4])) || !strings.Contains(text, "REDACTED") {
			t.Errorf("keys print as %q", text)
		}
	}
}

// G11: an image opens as what it was stored as, and nothing else.
func TestG11_AnImageIsBoundToWhoseItIs(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	keys := newKeys(t)
	a := newArchive(t, store, keys)
	ref, image := Ref{Team: "team-a", Sandbox: newID(t), Generation: 1}, makeImage(t)
	if err := a.Upload(t.Context(), ref, image, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	steal := func(to Ref) { // whoever may write to the store copies an image to another's name
		for _, key := range keysOf(t, store, ref.prefix()) {
			b, err := store.Get(t.Context(), key, maxManifest)
			if err == nil {
				err = store.Put(t.Context(), to.prefix()+strings.TrimPrefix(key, ref.prefix()), b)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	other := newID(t)
	for name, to := range map[string]Ref{
		"team": {Team: "team-b", Sandbox: ref.Sandbox, Generation: 1}, "no team": {Sandbox: ref.Sandbox, Generation: 1},
		"sandbox": {Team: "team-a", Sandbox: other, Generation: 1}, "generation": {Team: "team-a", Sandbox: ref.Sandbox, Generation: 2},
		"snapshot": {Team: "team-a", Snapshot: snapshotName},
	} {
		if to.prefix() != ref.prefix() {
			steal(to)
		}
		dir := filepath.Join(t.TempDir(), "s", "1")
		if _, err := a.Fetch(t.Context(), to, dir); !errors.Is(err, ErrDamaged) {
			t.Errorf("as another %s's: %v", name, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("as another %s's: it is there", name)
		}
	}
	if _, err := newArchive(t, store, newKeys(t)).Fetch(t.Context(), ref, filepath.Join(t.TempDir(), "s", "1")); !errors.Is(err, ErrDamaged) {
		t.Errorf("with another key: %v", err)
	}
	older := newKeys(t)
	older.all = append(older.all, keys.all...)
	if _, err := newArchive(t, store, older).Fetch(t.Context(), ref, filepath.Join(t.TempDir(), "s", "1")); err != nil {
		t.Errorf("with a new key beside the old one: %v", err)
	}
}

// X43: whatever is done to what lies in the store, an image is whole or is not.
func TestX43_EveryDamageIsNoticed(t *testing.T) {
	t.Parallel()
	image := makeImage(t)
	keys := newKeys(t)
	damages := map[string]func(t *testing.T, store Store, chunks []string){
		"a bit": func(t *testing.T, store Store, chunks []string) {
			rewrite(t, store, chunks[1], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		},
		"truncated": func(t *testing.T, store Store, chunks []string) {
			rewrite(t, store, chunks[0], func(b []byte) []byte { return b[:len(b)-1] })
		},
		"empty": func(t *testing.T, store Store, chunks []string) {
			rewrite(t, store, chunks[0], func([]byte) []byte { return nil })
		},
		"longer": func(t *testing.T, store Store, chunks []string) {
			rewrite(t, store, chunks[0], func(b []byte) []byte { return append(b, 0) })
		},
		"enormous": func(t *testing.T, store Store, chunks []string) {
			rewrite(t, store, chunks[0], func([]byte) []byte { return make([]byte, maxChunk+1) })
		},
		"gone": func(t *testing.T, store Store, chunks []string) {
			if err := store.Delete(t.Context(), chunks[len(chunks)-1]); err != nil {
				t.Fatal(err)
			}
		},
		"swapped": func(t *testing.T, store Store, chunks []string) {
			b, err := store.Get(t.Context(), chunks[0], maxChunk)
			if err != nil {
				t.Fatal(err)
			}
			rewrite(t, store, chunks[1], func([]byte) []byte { return b })
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, _ := newDirStore(t)
			a := newArchive(t, store, keys)
			ref := Ref{Team: "team", Sandbox: newID(t), Generation: 1}
			if err := a.Upload(t.Context(), ref, image, []byte(`{}`)); err != nil {
				t.Fatal(err)
			}
			var chunks []string
			for _, key := range keysOf(t, store, ref.prefix()) {
				if !strings.HasSuffix(key, "manifest") {
					chunks = append(chunks, key)
				}
			}
			damage(t, store, chunks)
			notThere(t, a, ref)
		})
	}
	t.Run("manifest", func(t *testing.T) {
		t.Parallel()
		store, _ := newDirStore(t)
		a := newArchive(t, store, keys)
		ref := Ref{Team: "team", Sandbox: newID(t), Generation: 1}
		if err := a.Upload(t.Context(), ref, image, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		whole, err := store.Get(t.Context(), ref.manifestKey(), maxManifest)
		if err != nil {
			t.Fatal(err)
		}
		for at := range headerBytes + 40 { // every byte of its beginning
			rewrite(t, store, ref.manifestKey(), func([]byte) []byte {
				b := bytes.Clone(whole)
				b[at] ^= 1
				return b
			})
			notThere(t, a, ref)
		}
		for _, n := range []int{0, 7, headerBytes, len(whole) - 1} {
			rewrite(t, store, ref.manifestKey(), func([]byte) []byte { return whole[:n] })
			notThere(t, a, ref)
		}
	})
}

func rewrite(t testing.TB, store Store, key string, f func([]byte) []byte) {
	t.Helper()
	b, err := store.Get(t.Context(), key, maxManifest)
	if err == nil {
		err = store.Put(t.Context(), key, f(b))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func notThere(t testing.TB, a *Archive, ref Ref) {
	t.Helper()
	parent := filepath.Join(t.TempDir(), "s")
	if _, err := a.Fetch(t.Context(), ref, filepath.Join(parent, "1")); !errors.Is(err, ErrDamaged) {
		t.Errorf("fetch: %v", err)
	}
	if left, err := os.ReadDir(parent); len(left) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// D04 at the other end: what has no room is refused before it is fetched.
func TestX41_AFetchNeedsRoom(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	a := newArchive(t, store, newKeys(t))
	ref := Ref{Team: "team", Sandbox: newID(t), Generation: 1}
	if err := a.Upload(t.Context(), ref, makeImage(t), []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	asked := int64(0)
	a.cfg.Room = func(n int64) error { asked = n; return errdefs.New(errdefs.Exhausted, "full") }
	dir := filepath.Join(t.TempDir(), "s", "1")
	if _, err := a.Fetch(t.Context(), ref, dir); !errdefs.Is(err, errdefs.Exhausted) || asked < chunkBytes {
		t.Errorf("%v, asked for %d bytes", err, asked)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something was made")
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	a := newArchive(t, store, newKeys(t))
	image, id, other := makeImage(t), newID(t), newID(t)
	for _, ref := range []Ref{{Team: "t", Sandbox: id, Generation: 1}, {Team: "t", Sandbox: id, Generation: 2}, {Team: "t", Sandbox: id, Generation: 10}, {Team: "t", Sandbox: other, Generation: 1}} {
		if err := a.Upload(t.Context(), ref, image, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	count := func(prefix string) int { return len(keysOf(t, store, prefix)) }
	all := count(Ref{Team: "t", Sandbox: other, Generation: 1}.prefix())
	for _, c := range []struct {
		below sandbox.Generation
		want  int
	}{{1, 3 * all}, {10, all}, {10, all}, {0, 0}, {0, 0}} {
		if err := a.Remove(t.Context(), id, c.below); err != nil {
			t.Fatal(err)
		}
		if n := count(sandboxPrefix(id)); n != c.want {
			t.Errorf("below %d: %d objects are left, want %d", c.below, n, c.want)
		}
	}
	if count(sandboxPrefix(other)) != all {
		t.Error("another sandbox's are gone")
	}
}

// failingStore fails calls as a test says.
type failingStore struct {
	Store
	put func(ctx context.Context, key string) error
}

func (s failingStore) Put(ctx context.Context, key string, data []byte) error {
	if err := s.put(ctx, key); err != nil {
		return err
	}
	return s.Store.Put(ctx, key, data)
}

func TestX43_AFailedUploadLeavesNothing(t *testing.T) {
	t.Parallel()
	image := makeImage(t)
	for name, fails := range map[string]func(key string) bool{
		"note":     func(key string) bool { return strings.HasPrefix(key, uploadsPrefix) },
		"chunk":    func(key string) bool { return strings.HasSuffix(key, "00000002") },
		"manifest": func(key string) bool { return strings.HasSuffix(key, "manifest") },
	} {
		store, _ := newDirStore(t)
		a := newArchive(t, failingStore{store, func(_ context.Context, key string) error {
			if fails(key) {
				return objects.ErrDenied
			}
			return nil
		}}, newKeys(t))
		ref := Ref{Team: "team", Sandbox: newID(t), Generation: 1}
		if err := a.Upload(t.Context(), ref, image, []byte(`{}`)); !errors.Is(err, objects.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
		if left := keysOf(t, store, ""); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestAnImageHasFilesAlone(t *testing.T) {
	t.Parallel()
	store, _ := newDirStore(t)
	dir := makeImage(t)
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "files", "link")); err != nil {
		t.Fatal(err)
	}
	if err := newArchive(t, store, newKeys(t)).Upload(t.Context(), Ref{Team: "t", Sandbox: newID(t), Generation: 1}, dir, []byte(`{}`)); err == nil {
		t.Error("a link was stored")
	}
	for _, bad := range [][]entry{
		{{Path: "../out"}}, {{Path: "/out"}}, {{Path: ""}}, {{Path: "a", Size: 5, Data: []extent{{0, 6}}}}, {{Path: "a", Size: 5, Data: []extent{{-1, 2}}}},
		{{Path: "a", Size: 5, Data: []extent{{0, 3}, {2, 3}}}}, {{Path: "a", Size: -1}}, {{Path: "a", Size: 5, Data: []extent{{1 << 62, 1 << 62}}}}, {{Path: "a", Size: 1 << 50}},
	} {
		if tree, err := lay(t.TempDir(), bad); err == nil {
			tree.close()
			t.Errorf("%+v was laid", bad)
		}
	}
}

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	for range 2 {
		if err := MakeKey(file); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("beside it: %v", left)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeys(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others may read: %v", err)
	}
	good := strings.Repeat("0a", 32)
	for text, ok := range map[string]bool{good: true, "# old\n" + good + "\n\n" + good + "\n": true, "": false, good[2:]: false, good + "0a": false, "x" + good[1:]: false} {
		if _, err := parseKeys([]byte(text)); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		} else if err != nil && strings.Contains(err.Error(), "0a0a") {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

// One file of an image is read without the rest, checked like the whole.
func TestOneFile(t *testing.T) {
	t.Parallel()
	store, dir := newDirStore(t)
	a := newArchive(t, store, newKeys(t))
	ref, image := Ref{Team: "team", Sandbox: newID(t), Generation: 1}, makeImage(t)
	if err := a.Upload(t.Context(), ref, image, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"image.json", "files/complete", "files/overlay", "memory/checkpoint.img"} {
		want, err := os.ReadFile(filepath.Join(image, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a.FetchFile(t.Context(), ref, name, int64(len(want))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, not %d, %v", name, len(got), len(want), err)
		}
	}
	if _, err := a.FetchFile(t.Context(), ref, "files/overlay", 1000); err == nil {
		t.Error("a file of any size is read")
	}
	for _, name := range []string{"files", "nosuch", "", "../image.json"} {
		if _, err := a.FetchFile(t.Context(), ref, name, 1000); !errors.Is(err, ErrNoFile) {
			t.Errorf("%q: %v", name, err)
		}
	}
	other := ref
	other.Generation = 2
	if _, err := a.FetchFile(t.Context(), other, "image.json", 1000); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoFile) {
		t.Errorf("of an image that is not stored: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "sandboxes", string(ref.Sandbox), "1")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.FetchFile(t.Context(), ref, "image.json", 1000); err == nil || errors.Is(err, ErrNoFile) {
		t.Errorf("what was lost counts as never there: %v", err)
	}
}
