package mirror

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

func newMirror(t *testing.T) (Mirror, string) {
	t.Helper()
	dir := t.TempDir()
	return New(files.Tree{Base: dir, Durable: true, Copy: true}), dir
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func TestWalk(t *testing.T) {
	t.Parallel()
	m, dir := newMirror(t)
	write(t, dir+"/d/a", "1")
	write(t, dir+"/"+files.StagedNew+"x", "half of something")
	write(t, dir+"/bad\xff", "no text")
	link(t, "d", dir+"/link")
	var got []string
	sum, err := m.Walk(t.Context(), func(e procapi.TreeEntry) error {
		got = append(got, fmt.Sprintf("%s %s %o %d", e.Type, e.Path, e.Mode, e.Size))
		return nil
	})
	if want := []string{"dir d 755 0", "file d/a 644 1", "other link 0 0"}; err != nil || !slices.Equal(got, want) || sum.LeftOut != 1 {
		t.Errorf("%q, %+v: %v", got, sum, err)
	}
}

// A digest is of one content; a stamp tells of the next change, when it says so.
func TestDigest(t *testing.T) {
	t.Parallel()
	m, dir := newMirror(t)
	write(t, dir+"/a", "x")
	fresh, err := m.Digest(t.Context(), "a")
	if err != nil || fresh.SHA256 != "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" {
		t.Fatalf("%+v: %v", fresh, err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(dir+"/a", old, old); err != nil { // its change time is now
		t.Fatal(err)
	}
	if e, err := m.Digest(t.Context(), "a"); err != nil || e.Settled && e.Stamp == fresh.Stamp {
		t.Errorf("%+v: %v", e, err)
	}
	settles(t, m, "a")
	ahead := time.Now().Add(time.Hour) // of another machine's clock
	if err := os.Chtimes(dir+"/a", ahead, ahead); err != nil {
		t.Fatal(err)
	}
	settles(t, m, "a")
	link(t, "a", dir+"/link")
	write(t, dir+"/d/a", "x")
	link(t, "d", dir+"/to-d")
	for _, name := range []string{"link", "to-d/a", "d", "nothing", "a/x"} {
		if e, err := m.Digest(t.Context(), name); !os.IsNotExist(err) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Digest(ctx, "a"); err == nil {
		t.Error("a digest that nobody waits for")
	}
}

// settles waits until another change of a file makes another stamp.
func settles(t *testing.T, m Mirror, name string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		e, err := m.Digest(t.Context(), name)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("never settled: %+v, %v", e, err)
		}
		if e.Settled {
			return
		}
	}
}

func stampOf(t *testing.T, m Mirror, name string) string {
	t.Helper()
	e, err := m.Digest(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return e.Stamp
}

// A file is written where what was seen is, and nowhere else.
func TestPutExpects(t *testing.T) {
	t.Parallel()
	m, dir := newMirror(t)
	put := func(name, want, content string) error {
		_, err := m.Put(name, 0o640, want, strings.NewReader(content), 10)
		return err
	}
	if err := put("a", procapi.ExpectAbsent, "1"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir + "/a"); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	was := stampOf(t, m, "a")
	if err := put("a", was, "12"); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/d/x", "")
	link(t, "d", dir+"/link")
	for name, want := range map[string]string{"a": was, "d": procapi.ExpectAbsent, "link": procapi.ExpectAbsent, "b": was, "link/y": procapi.ExpectAbsent, "no/y": procapi.ExpectAbsent, "a/y": procapi.ExpectAbsent} {
		if err := put(name, want, "3"); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "../a", "/a", "x/../a", "a/"} {
		if err := put(name, procapi.ExpectAbsent, "3"); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := put("large", procapi.ExpectAbsent, "12345678901"); !errdefs.Is(err, errdefs.TooLarge) {
		t.Errorf("%v", err)
	}
	if read(t, dir+"/a") != "12" {
		t.Errorf("a has %q", read(t, dir+"/a"))
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 3 {
		t.Errorf("something is left over: %v, %v", names, err)
	}
}

func TestAlter(t *testing.T) {
	t.Parallel()
	m, dir := newMirror(t)
	alter := func(all ...procapi.Alteration) error {
		_, err := m.Alter(t.Context(), all)
		return err
	}
	write(t, dir+"/a", "1")
	write(t, dir+"/full/x", "1")
	link(t, "a", dir+"/link")
	a := stampOf(t, m, "a")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(alter(
		procapi.Alteration{Op: procapi.AlterMkdir, Path: "d", Mode: 0o750}, procapi.Alteration{Op: procapi.AlterMkdir, Path: "d/e", Mode: 0o777},
		procapi.Alteration{Op: procapi.AlterRename, Path: "a", To: "d/a", Expect: a, ExpectTo: procapi.ExpectAbsent},
		procapi.Alteration{Op: procapi.AlterRename, Path: "d", To: "f", Expect: procapi.ExpectDir, ExpectTo: procapi.ExpectAbsent},
	))
	if info, err := os.Stat(dir + "/f/e"); err != nil || info.Mode().Perm() != 0o777 || read(t, dir+"/f/a") != "1" {
		t.Errorf("%v, %v", info, err)
	}
	for _, c := range []procapi.Alteration{
		{Op: procapi.AlterMkdir, Path: "f"}, {Op: procapi.AlterRemove, Path: "f/a", Expect: a + "0"}, {Op: procapi.AlterRemove, Path: "full", Expect: procapi.ExpectDir},
		{Op: procapi.AlterRemove, Path: "link", Expect: a}, {Op: procapi.AlterChmod, Path: "link", Expect: a, Mode: 0o600}, {Op: procapi.AlterRemove, Path: "nothing", Expect: procapi.ExpectDir},
		{Op: procapi.AlterRename, Path: "full/x", To: "f/a", Expect: stampOf(t, m, "full/x"), ExpectTo: procapi.ExpectAbsent},
		{Op: procapi.AlterRename, Path: "full", To: "f", Expect: procapi.ExpectDir, ExpectTo: procapi.ExpectDir},
		{Op: procapi.AlterRename, Path: "full/x", To: "no/x", Expect: stampOf(t, m, "full/x"), ExpectTo: procapi.ExpectAbsent},
	} {
		if err := alter(c); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := alter(procapi.Alteration{Op: "format", Path: "f", Expect: procapi.ExpectDir}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("%v", err)
	}
	must(alter(
		procapi.Alteration{Op: procapi.AlterRename, Path: "full/x", To: "f/a", Expect: stampOf(t, m, "full/x"), ExpectTo: stampOf(t, m, "f/a")},
		procapi.Alteration{Op: procapi.AlterRemove, Path: "full", Expect: procapi.ExpectDir},
	))
	must(alter(procapi.Alteration{Op: procapi.AlterChmod, Path: "f/a", Expect: stampOf(t, m, "f/a"), Mode: 0o600}))
	if info, err := os.Stat(dir + "/f/a"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// What is refused is refused over the wire, too.
func TestRoutes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mux := http.NewServeMux()
	for pattern, h := range Routes(files.Tree{Base: dir}) {
		mux.Handle(pattern, answer.Serve(h, func(_ *http.Request, err error) { t.Error(err) }))
	}
	do := func(call, body string) (int, string) {
		t.Helper()
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodPost, procapi.PathFiles+call, strings.NewReader(body)))
		return w.Code, w.Body.String()
	}
	if status, got := do("/put?path=a&mode=644&expect=absent", "x"); status != 200 || !strings.Contains(got, `"path":"a"`) {
		t.Errorf("%d %s", status, got)
	}
	if _, got := do("/digests", `{"paths":["a","b"]}`); strings.Count(got, "\n") != 2 || !strings.Contains(got, "2d711642b726") {
		t.Errorf("%s", got)
	}
	if _, got := do("/tree", ""); strings.Count(got, "\n") != 2 {
		t.Errorf("%s", got)
	}
	for _, call := range []string{"/tree", "/digests"} { // whose reader waits for the head, and then for as long as it takes
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodPost, procapi.PathFiles+call, strings.NewReader(`{"paths":["a"]}`)))
		if !w.Flushed {
			t.Errorf("%s answers nothing before it has read", call)
		}
	}
	if status, got := do("/alter", `{"alterations":[{"op":"mkdir","path":"d","mode":493}]}`); status != 200 {
		t.Errorf("%d %s", status, got)
	}
	many := `{"paths":["a"` + strings.Repeat(`,"a"`, procapi.MaxDigests) + `]}`
	for call, body := range map[string]string{"/put?path=a&mode=9&expect=absent": "", "/digests": many, "/alter": `{"alterations":[{"op":"mkdir","path":"../d"}]}`} {
		if status, got := do(call, body); status != 400 {
			t.Errorf("%s: %d %s", call, status, got)
		}
	}
	if status, got := do("/put?path=a&mode=644&expect=absent", "y"); status != 409 || !strings.Contains(got, "path_exists") {
		t.Errorf("%d %s", status, got)
	}
}
