package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/s3test"
	"s0.run/internal/sealed"
	"s0.run/internal/volumeapi"
)

// patience is for a loaded machine.
const patience = time.Minute

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "volume-bucket" {
		os.Exit(Main(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "greedy" {
		os.Exit(greedy())
	}
	os.Exit(m.Run())
}

// bench is a Manager and a store with a bucket.
type bench struct {
	t *testing.T
	*Manager
	store  *s3test.Server
	volume volumeapi.Volume
}

func newBench(t *testing.T, change ...func(*Config)) *bench {
	t.Helper()
	s0test.NeedRoot(t)
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys")
	public, err := sealed.Ensure(keys)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sealed.ReadPublic(public)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, store: s3test.New(t)}
	cfg := Config{Dir: filepath.Join(dir, "buckets"), Command: []string{"/proc/self/exe", "volume-bucket"}, Keys: keys, Log: slog.New(slog.DiscardHandler), AllowPrivate: true}
	for _, c := range change {
		c(&cfg)
	}
	b.Manager = New(cfg)
	if err := b.Recover(); err != nil {
		t.Fatal(err)
	}
	b.volume = volumeapi.Volume{ID: "one", Team: "team", UID: 1234, GID: 4321, Bucket: &volumeapi.Bucket{
		Provider: "aws", Name: s3test.Bucket, Region: s3test.Region, Endpoint: b.store.URL, Kind: "s3", Version: 1,
	}}
	secret := sealed.Secret{Values: map[string]string{"access_key": s3test.AccessKey, "secret_key": s3test.SecretKey}}
	blob, err := key.SealSecret(sealed.Of{Team: "team", Source: "one", Kind: "s3", Version: 1}, secret)
	if err != nil {
		t.Fatal(err)
	}
	b.volume.Bucket.Key, b.volume.Bucket.Sealed = blob.Key, blob.Data
	t.Cleanup(func() {
		if err := b.Remove(context.Background(), "one"); err != nil {
			t.Error(err)
		}
		b.Close()
		if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
		if pids := b.processes(); len(pids) > 0 {
			b.until("the processes have ended", func() bool { return len(b.processes()) == 0 })
		}
	})
	return b
}

func (b *bench) use(use string) (at string) {
	b.t.Helper()
	at, err := b.Use(b.t.Context(), b.volume, use)
	if err != nil {
		b.t.Fatal(err)
	}
	return at
}

func (b *bench) until(what string, is func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.t.Fatalf("it never comes to be that %s", what)
		}
	}
}

// processes are those whose root is in this bench's directory.
func (b *bench) processes() (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range all {
		if root, err := os.Readlink(proc + "/root"); err == nil && strings.HasPrefix(root, b.cfg.Dir+"/") {
			pids = append(pids, proc)
		}
	}
	return pids
}

func content(t *testing.T, name string) string {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func TestABucketIsATree(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	big := make([]byte, 5<<20+123)
	_, _ = rand.NewChaCha8([32]byte{}).Read(big)
	for key, c := range map[string]string{
		"a/b/c.txt": "content", "a/big": string(big), "a/ä +&?%#": "odd", "a/empty": "", "top": "top",
		"a/marked/": "", "a/marked/f": "", "a/shadowed": "an object", "a/shadowed/x": "below it", "a//x": "no name", "a/../x": "no name either",
	} {
		b.store.Put(t, key, c)
	}
	b.volume.Bucket.Prefix = "a"
	at := b.use("u")
	names := func(dir string) (all []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, fmt.Sprintf("%s %s", e.Name(), e.Type()))
		}
		return all
	}
	want := []string{"b d---------", "big ----------", "empty ----------", "marked d---------", "shadowed d---------", "ä +&?%# ----------"}
	if got := names(at); !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	if content(t, at+"/b/c.txt") != "content" || content(t, at+"/ä +&?%#") != "odd" || content(t, at+"/empty") != "" || content(t, at+"/shadowed/x") != "below it" {
		t.Error("a file has another content")
	}
	if got := names(at + "/marked"); !slices.Equal(got, []string{"f ----------"}) {
		t.Errorf("in a directory with a mark there are %q", got)
	}
	if got := content(t, at+"/big"); got != string(big) {
		t.Errorf("a large file has %d bytes, or others", len(got))
	}
	f, err := os.Open(at + "/big")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{5 << 20, 1<<20 - 7, 0, 3 << 20} {
		p := make([]byte, 100)
		if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, big[off:off+100]) {
			t.Errorf("at %d: %v", off, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(at+"/b/c.txt", &st); err != nil || st.Uid != 1234 || st.Gid != 4321 || st.Mode != syscall.S_IFREG|0o444 || st.Size != 7 || st.Ino == 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := os.Stat(at + "/nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	if _, err := os.Stat(at + "/b/c.txt/below"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}

// Who writes to a bucket is told that it can't be done, by the kernel.
func TestABucketIsNotWrittenTo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.store.Put(t, "d/f", "content")
	at := b.use("u")
	before := len(b.store.Asked())
	for what, err := range map[string]error{
		"create": os.WriteFile(at+"/d/new", nil, 0o644), "change": os.WriteFile(at+"/d/f", nil, 0o644), "truncate": os.Truncate(at+"/d/f", 1),
		"mkdir": os.Mkdir(at+"/new", 0o755), "rename": os.Rename(at+"/d/f", at+"/d/g"), "rename a directory": os.Rename(at+"/d", at+"/e"),
		"remove": os.Remove(at + "/d/f"), "link": os.Link(at+"/d/f", at+"/d/g"), "symlink": os.Symlink("f", at+"/d/g"),
		"chmod": os.Chmod(at+"/d/f", 0o600), "chown": os.Chown(at+"/d/f", 0, 0), "a device": unix.Mknod(at+"/d/n", syscall.S_IFIFO, 0),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := unix.Setxattr(at+"/d/f", "user.a", nil, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("setxattr: %v", err)
	}
	for _, asked := range b.store.Asked()[before:] {
		if !strings.HasPrefix(asked, "GET ") && !strings.HasPrefix(asked, "HEAD ") {
			t.Errorf("the store was asked to %s", asked)
		}
	}
}

// An open file is one content of its object; who opens it anew has the newest, soon.
func TestAnObjectThatIsReplaced(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	older, newer := strings.Repeat("o", 3<<20), strings.Repeat("n", 3<<20)
	b.store.Put(t, "f", older)
	at := b.use("u")
	f, err := os.Open(at + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 10)
	if _, err := f.ReadAt(p, 0); err != nil || string(p) != older[:10] {
		t.Fatalf("%q, %v", p, err)
	}
	b.store.Put(t, "f", newer)
	if _, err := f.ReadAt(p, 2<<20); err == nil && string(p) != older[:10] || err != nil && !errors.Is(err, unix.ESTALE) {
		t.Errorf("the older one has %q, %v", p, err)
	}
	b.until("the newer one shows", func() bool {
		got, err := os.ReadFile(at + "/f")
		if err != nil && !errors.Is(err, unix.ESTALE) || err == nil && string(got) != older && string(got) != newer {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		return string(got) == newer
	})
	b.store.Delete(t, "f")
	b.until("it is gone", func() bool {
		_, err := os.Stat(at + "/f")
		return errors.Is(err, fs.ErrNotExist)
	})
}

func TestLongListsComeInPages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const many = 2500
	for i := range many {
		b.store.Put(t, fmt.Sprintf("d/%04d", i), "x")
	}
	d, err := os.Open(b.use("u") + "/d")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 2 {
		names, err := d.Readdirnames(-1)
		slices.Sort(names)
		if err != nil || len(slices.Compact(names)) != many {
			t.Errorf("%d names, %v", len(names), err)
		}
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
}

// A mount is there until its last use has left.
func TestUsesOfABucket(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.store.Put(t, "f", "content")
	at := b.use("a")
	if other := b.use("b"); other != at || b.use("a") != at || len(b.processes()) != 1 {
		t.Errorf("at %s and %s, %d processes", at, other, len(b.processes()))
	}
	for _, use := range []string{"a", "a", "nobodys"} {
		if err := b.Leave(t.Context(), "one", use); err != nil {
			t.Fatal(err)
		}
	}
	if content(t, at+"/f") != "content" || !b.Has("one") {
		t.Error("a use is left, and nothing is mounted")
	}
	if err := b.Leave(t.Context(), "one", "b"); err != nil || b.Has("one") {
		t.Errorf("nobody uses it: %v", err)
	}
	another := b.volume
	another.Team = "another"
	b.use("a")
	if _, err := b.Use(t.Context(), another, "c"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("another team's: %v", err)
	}
	for _, id := range []string{"", "..", "a/b", "."} {
		bad := b.volume
		bad.ID = id
		if _, err := b.Use(t.Context(), bad, "u"); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("volume %q: %v", id, err)
		}
	}
}

// R3: a mount outlives volumed, and the next one gives its process connections.
func TestR3_ABucketOutlivesVolumed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.store.Put(t, "f", "content")
	at := b.use("u")
	b.Close()
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	b.Manager = New(b.cfg)
	if err := b.Recover(); err != nil {
		t.Fatal(err)
	}
	b.store.Through(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close") // so that it needs others
			next.ServeHTTP(w, r)
		})
	})
	for i := range 3 {
		key := fmt.Sprintf("f%d", i)
		b.store.Put(t, key, key)
		if content(t, at+"/"+key) != key {
			t.Error("another content")
		}
	}
	if len(b.processes()) != 1 || b.use("u") != at {
		t.Error("it was mounted anew")
	}
}

// X43: a process that dies makes errors and no hang, and the next use mounts anew.
func TestX43_ABucketsProcessDies(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.store.Put(t, "f", "content")
	at := b.use("u")
	f, err := os.Open(at + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var pid int
	if _, err := fmt.Sscanf(filepath.Base(b.processes()[0]), "%d", &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.until("reads fail", func() bool {
		_, err := os.Stat(at + "/f")
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	})
	if content(t, b.use("u")+"/f") != "content" {
		t.Error("another content")
	}
}

// F10: what opens a bucket is in no argument, environment or file.
func TestF10_WhatOpensABucketIsNowhere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.use("u")
	processes := b.processes()
	if len(processes) != 1 {
		t.Fatalf("%d processes", len(processes))
	}
	seen := 0
	look := func(name string) {
		got, err := os.ReadFile(name)
		if err != nil || bytes.Contains(got, []byte("s0-canary")) {
			t.Errorf("%s has %q, %v", name, got, err)
		}
		seen++
	}
	look(processes[0] + "/cmdline")
	look(processes[0] + "/environ")
	_ = filepath.WalkDir(b.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if d.Name() == "at" {
			return fs.SkipDir
		}
		if err == nil && d.Type().IsRegular() {
			look(path)
		}
		return err
	})
	if seen < 4 {
		t.Errorf("%d looks", seen)
	}
}

// B05: a bucket's process has next to nothing of the machine's.
func TestB05_ABucketsProcessHasNothingElse(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.use("u")
	proc := b.processes()[0]
	status := content(t, proc+"/status")
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("it lacks %q: %s", want, status)
		}
	}
	for line := range strings.Lines(status) {
		var caps uint64
		if _, err := fmt.Sscanf(line, "CapEff:\t%x", &caps); err == nil && caps&^(1<<unix.CAP_SYS_CHROOT) != 0 { // which a build with cgo, as of tests, can't give up
			t.Errorf("it has capabilities %x", caps)
		}
	}
	limit := regexp.MustCompile(`Max data size +(\d+) +(\d+)`).FindStringSubmatch(content(t, proc+"/limits"))
	if limit == nil || limit[1] != limit[2] {
		t.Errorf("its memory has the bound %q", limit)
	}
	for _, ns := range []string{"net", "pid", "ipc", "uts"} {
		theirs, err := os.Readlink(proc + "/ns/" + ns)
		ours, _ := os.Readlink("/proc/self/ns/" + ns)
		if err != nil || theirs == ours {
			t.Errorf("namespace %s: %s, %v", ns, theirs, err)
		}
	}
	if root, err := os.ReadDir(proc + "/root"); err != nil || len(root) != 1 || root[0].Name() != socketName {
		t.Errorf("its root has %v, %v", root, err)
	}
}

// A17: a tenant says where a store is, and reaches nothing of ours by that.
func TestA17_ABucketsStoreIsPublic(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *Config) { cfg.AllowPrivate = false })
	if err := b.Check(t.Context(), b.volume); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "not allowed") {
		t.Errorf("on loopback: %v", err)
	}
	if asked := b.store.Asked(); len(asked) > 0 || b.Has("one") {
		t.Errorf("it was asked %q", asked)
	}
	b.cfg.AllowPrivate = true
	b.volume.Bucket.Endpoint = "http://169.254.169.254"
	if err := b.Check(t.Context(), b.volume); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("metadata: %v", err)
	}
}

func TestABucketThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	missing, another, closed := *b.volume.Bucket, *b.volume.Bucket, *b.volume.Bucket
	missing.Name = "another-bucket"
	another.Region = "another-region"
	closed.Endpoint = "http://127.0.0.1:1"
	for want, bucket := range map[string]*volumeapi.Bucket{"no such bucket": &missing, "denied": &another, "does not answer": &closed} {
		v := b.volume
		v.Bucket = bucket
		err := b.Check(t.Context(), v)
		kind := errdefs.InvalidArgument
		if bucket == &closed {
			kind = errdefs.Unavailable
		}
		if !errdefs.Is(err, kind) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	v := b.volume
	v.Team = "another" // its seal is not for them
	if err := b.Check(t.Context(), v); err == nil || errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("another team's credential: %v", err)
	}
	if err := b.Check(t.Context(), b.volume); err != nil || b.Has("one") {
		t.Errorf("the right one: %v", err)
	}
}

// Who serves files without a sandbox keeps a bucket mounted, and gives it back.
func TestSharesOfABucket(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var back []string
	share := func() {
		t.Helper()
		err := b.Share(t.Context(), b.volume, func(at string) (func(), error) {
			return func() { back = append(back, at) }, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	share()
	if err := b.Unshare(t.Context(), "one"); err != nil || len(back) != 1 || b.Has("one") {
		t.Errorf("%q are back, %v", back, err)
	}
	share()
	if err := b.Remove(t.Context(), "one"); err != nil || len(back) != 2 || b.Has("one") {
		t.Errorf("%q are back, %v", back, err)
	}
	refused := errors.New("refused")
	if err := b.Share(t.Context(), b.volume, func(string) (func(), error) { return nil, refused }); !errors.Is(err, refused) || b.Has("one") {
		t.Errorf("a share that is none: %v", err)
	}
}

// X43: who does not wait any more leaves no process behind where the next one is to be.
func TestX43_AStartIsGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	asked := make(chan struct{}, 1)
	b.store.Through(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			<-r.Context().Done()
		})
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-asked
		cancel()
	}()
	if _, err := b.Use(ctx, b.volume, "u"); !errdefs.Is(err, errdefs.Unavailable) || ctx.Err() == nil {
		t.Errorf("a start that was given up: %v", err)
	}
	if left := b.processes(); len(left) > 0 || b.Has("one") {
		t.Errorf("%q are left", left)
	}
}

// A mount that a check left behind ends with the process that checked.
func TestNobodyUsesWhatWasChecked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.use(checkUse)
	b.Close()
	b.Manager = New(b.cfg)
	if err := b.Recover(); err != nil || b.Has("one") {
		t.Errorf("it is mounted: %v", err)
	}
}
