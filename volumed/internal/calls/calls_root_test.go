package calls

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/jail"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/work"
)

// patience is for a loaded machine.
const patience = time.Minute

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "volume-files" {
		os.Exit(jail.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// stored is a Manager as calls know it.
type stored struct{ *work.Manager }

func (s stored) Share(ctx context.Context, v volumeapi.Volume, open func(string) (func(), error)) error {
	return s.Manager.Share(ctx, inStore(v), open)
}

func inStore(v volumeapi.Volume) work.Volume {
	return work.Volume{ID: v.ID, Team: v.Team, Epoch: v.Epoch, UID: v.UID, GID: v.GID, Limit: v.Limit}
}

// bench is file calls over a working tier with a plain directory as the durable one.
type bench struct {
	t       *testing.T
	dir     string
	manager *work.Manager
	calls   *Calls
	url     string
	spec    volumeapi.Volume
}

func newBench(t *testing.T, spec volumeapi.Volume) *bench {
	t.Helper()
	s0test.NeedRoot(t)
	dir, err := os.MkdirTemp("", "s0f") // short: paths are bounded
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, spec: spec}
	t.Cleanup(b.unmountAll)
	st, err := store.Open(store.Config{Dir: filepath.Join(dir, "tier"), Known: filepath.Join(dir, "known")})
	if err != nil {
		t.Fatal(err)
	}
	b.manager = work.New(work.Config{
		Store: st, Node: "node", DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"),
		Sync: func() error { return nil }, Log: slog.New(slog.DiscardHandler),
	})
	if err := b.manager.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.manager.Create(t.Context(), inStore(spec), nil); err != nil {
		t.Fatal(err)
	}
	b.calls = New(Config{Manager: stored{b.manager}, Command: []string{"/proc/self/exe", "volume-files"}, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = b.calls.Run(ctx)
	}()
	srv := httptest.NewServer(b.calls)
	b.url = srv.URL
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		cancel()
		<-ended
	})
	return b
}

func (b *bench) unmountAll() {
	mounts, err := layers.Mounts(b.dir)
	if err != nil {
		b.t.Error(err)
	}
	slices.Reverse(mounts)
	for _, at := range mounts {
		if err := layers.Unmount(at, true); err != nil {
			b.t.Errorf("unmounting %s: %v", at, err)
		}
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) request(ctx context.Context, method, call string, body io.Reader) *http.Request {
	b.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, b.url+volumeapi.PathCalls+procapi.PathFiles+call, body)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set(volumeapi.VolumeHeader, b.spec.Header())
	return req
}

func (b *bench) do(method, call, body string) (status int, answer string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	resp, err := http.DefaultClient.Do(b.request(ctx, method, call, strings.NewReader(body)))
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, call, err)
	}
	return resp.StatusCode, strings.TrimSpace(string(got))
}

func (b *bench) must(method, call, body string) string {
	b.t.Helper()
	status, answer := b.do(method, call, body)
	if status >= 300 {
		b.t.Fatalf("%s %s: %d %s", method, call, status, answer)
	}
	return answer
}

// at is the query of a path.
func at(path string) string { return "?path=" + url.QueryEscape(path) }

// use mounts the volume as a sandbox has it.
func (b *bench) use(use string) string {
	b.t.Helper()
	dir, err := b.manager.Use(b.t.Context(), inStore(b.spec), use, false)
	if err != nil {
		b.t.Fatal(err)
	}
	return dir
}

func (b *bench) sessions() int {
	b.calls.mu.Lock()
	defer b.calls.mu.Unlock()
	return len(b.calls.sessions)
}

var plain = volumeapi.Volume{ID: "vol", Team: "team", Epoch: 1, UID: 1000, GID: 1001}

func do(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// The calls are procd's, with a volume in the place of a sandbox. What they make is the
// volume's user's; a sandbox that has the volume sees it at once, and they what it does.
func TestFilesOfAVolume(t *testing.T) {
	b := newBench(t, plain)
	for _, c := range []struct {
		method, call, body string
		status             int
		want               string
	}{
		{"POST", at("a/f"), "content", 200, `{"written":true}`},
		{"GET", at("/a/f"), "", 200, "content"},
		{"GET", at("a"), "", 409, "path_not_file"},
		{"GET", at("none"), "", 404, "file_not_found"},
		{"GET", at("../x"), "", 400, "invalid_request"},
		{"POST", at("a/f/x"), "x", 409, "path_not_directory"},
		{"POST", at("d") + "&mkdir=true", "", 201, `{"created":true}`},
		{"POST", at("d") + "&mkdir=true", "", 409, "path_exists"},
		{"POST", at("d/e/f") + "&mkdir=true&recursive=true", "", 201, `{"created":true}`},
		{"POST", at("n/e") + "&mkdir=true", "", 404, "directory_not_found"},
		{"POST", "/move", `{"source":"a/f","destination":"/d/g"}`, 200, `{"moved":true}`},
		{"POST", "/move", `{"source":"a/f","destination":"/d/h"}`, 404, "file_not_found"},
		{"POST", "/move", `{"source":"d","destination":"/d/e/x"}`, 400, "invalid_request"},
		{"GET", "/list" + at("/"), "", 200, `"path":"/a"`},
		{"GET", "/stat" + at("d/g"), "", 200, `"mode":"0644"`},
		{"POST", "/search", `{"path":"/","pattern":"tent"}`, 200, `"path":"/d/g"`},
		{"DELETE", at("a"), "", 200, `{"deleted":true}`},
		{"DELETE", at("a"), "", 200, `{"deleted":true}`},
		{"DELETE", at("/"), "", 403, "permission_denied"},
		{"POST", "/nonsense", "", 404, ""},
		{"GET", "/../contexts", "", 404, ""},
	} {
		if status, answer := b.do(c.method, c.call, c.body); status != c.status || !strings.Contains(answer, c.want) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.call, status, answer, c.status, c.want)
		}
	}
	dir := b.use("mount")
	for path, mode := range map[string]uint32{"d": 0o755, "d/g": 0o644} {
		var st unix.Stat_t
		do(t, unix.Lstat(filepath.Join(dir, path), &st))
		if st.Uid != 1000 || st.Gid != 1001 || st.Mode&0o7777 != mode {
			t.Errorf("%s is of %d:%d, %o", path, st.Uid, st.Gid, st.Mode)
		}
	}
	// A sandbox's files are root's, for it alone; the API's callers have a right to them.
	do(t, os.Mkdir(filepath.Join(dir, "private"), 0o700), os.WriteFile(filepath.Join(dir, "private", "f"), []byte("root's"), 0o600))
	if got := b.must("GET", at("private/f"), ""); got != "root's" {
		t.Errorf("through the calls there is %q", got)
	}
	b.must("POST", at("private/f"), "theirs")
	if got, err := os.ReadFile(filepath.Join(dir, "private", "f")); err != nil || string(got) != "theirs" {
		t.Errorf("the sandbox sees %q, %v", got, err)
	}
	b.must("DELETE", at("private"), "")
}

// A tenant's links, devices and pipes lead nowhere and hold nobody up.
func TestB05_NothingLeadsOutOfAVolume(t *testing.T) {
	b := newBench(t, plain)
	dir := b.use("mount")
	secret := filepath.Join(b.dir, "secret")
	do(t, os.WriteFile(secret, []byte("host"), 0o644), os.WriteFile(filepath.Join(dir, "mine"), []byte("mine"), 0o644),
		os.Symlink(secret, filepath.Join(dir, "abs")), os.Symlink("../../../../../../../.."+secret, filepath.Join(dir, "rel")),
		os.Symlink("/", filepath.Join(dir, "root")), os.Symlink("/mine", filepath.Join(dir, "in")), os.Symlink("loop", filepath.Join(dir, "loop")),
		os.Symlink("/etc", filepath.Join(dir, "conf")), os.Symlink("/proc/self/root", filepath.Join(dir, "magic")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666), unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(filepath.Join(dir, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	for _, c := range []struct {
		path   string
		status int
	}{{"abs", 404}, {"rel", 404}, {"in", 200}, {"root/mine", 200}, {"loop", 400}, {"conf/passwd", 404}, {"magic/etc/passwd", 404}, {"fifo", 400}, {"null", 403}, {"zero", 403}} {
		if status, answer := b.do("GET", at(c.path), ""); status != c.status || strings.Contains(answer, "host") {
			t.Errorf("reading %s: %d %s, want %d", c.path, status, answer, c.status)
		}
	}
	for path, status := range map[string]int{"fifo": 400, "null": 400, "abs": 409, "conf/new": 409, "magic/tmp/new": 409, "root/made": 200} {
		if got, answer := b.do("POST", at(path), "x"); got != status {
			t.Errorf("writing %s: %d %s, want %d", path, got, answer, status)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(got) != "x" {
		t.Errorf("what was written through a link to the root: %q, %v", got, err)
	}
	if got := b.must("POST", "/search", `{"path":"/","pattern":"host"}`); strings.Contains(got, `"match"`) {
		t.Errorf("a search found %s", got)
	}
	names := packed(t, b.must("GET", "/archive"+at("/"), ""))
	if slices.Contains(names, "fifo") || slices.Contains(names, "null") || !slices.Contains(names, "abs") {
		t.Errorf("the archive has %v", names)
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "host" {
		t.Errorf("outside there is %q, %v", got, err)
	}
}

func packed(t *testing.T, archive string) (names []string) {
	t.Helper()
	for r := tar.NewReader(strings.NewReader(archive + "\n")); ; {
		h, err := r.Next()
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return names
		}
		do(t, err)
		names = append(names, h.Name)
	}
}

// The process has nothing of the host's: neither descriptors nor rights.
func TestB05_AProcessHasItsVolumeAlone(t *testing.T) {
	b := newBench(t, volumeapi.Volume{ID: "vol", Team: "team", Epoch: 1})
	b.must("POST", at("f"), "x")
	b.calls.mu.Lock()
	pid := b.calls.sessions["vol"].process.Pid()
	b.calls.mu.Unlock()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	do(t, err)
	for line := range strings.SplitSeq(string(status), "\n") {
		name, value, _ := strings.Cut(line, ":\t")
		if want, ok := map[string]string{"CapBnd": "000000000004000f", "NoNewPrivs": "1"}[name]; ok && value != want {
			t.Errorf("%s is %s, want %s", name, value, want)
		}
	}
	root, err := os.Stat(fmt.Sprintf("/proc/%d/root/.", pid))
	do(t, err)
	here, err := os.Stat("/")
	do(t, err)
	if os.SameFile(root, here) {
		t.Error("its root is the host's")
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	do(t, err)
	for _, fd := range fds {
		at, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err == nil && strings.HasPrefix(at, "/") && !strings.HasPrefix(at, "/dev/") && fd.Name() != "2" {
			t.Errorf("descriptor %s is %s", fd.Name(), at)
		}
	}
}

// What an archive holds is put nowhere but below its place; one that is refused changes
// nothing.
func TestB04_HostileArchiveIntoAVolume(t *testing.T) {
	b := newBench(t, plain)
	dir := b.use("mount")
	outside := filepath.Join(b.dir, "outside")
	do(t, os.Mkdir(outside, 0o777), os.Symlink(outside, filepath.Join(dir, "out")))
	for name, entries := range map[string][]tar.Header{
		"up":       {{Name: "ok"}, {Name: "../up"}},
		"absolute": {{Name: outside + "/x"}},
		"link":     {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside}, {Name: "l/x"}},
		"device":   {{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1, Devminor: 5}},
		"hardlink": {{Typeflag: tar.TypeLink, Name: "h", Linkname: "/etc/passwd"}},
	} {
		if status, answer := b.do("PUT", "/archive"+at("in"), archive(t, entries)); status != 400 {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	b.must("PUT", "/archive"+at("good"), archive(t, []tar.Header{{Name: "d/f", Mode: 0o4755}, {Typeflag: tar.TypeSymlink, Name: "d/l", Linkname: "/etc"}}))
	if status, answer := b.do("PUT", "/archive"+at("out/x"), archive(t, []tar.Header{{Name: "f"}})); status != 409 {
		t.Errorf("through a link that leads out: %d %s", status, answer)
	}
	left, err := os.ReadDir(dir)
	do(t, err)
	if len(left) != 2 || left[0].Name() != "good" {
		t.Errorf("in the volume there are %v", left)
	}
	if made, err := os.ReadDir(outside); err != nil || len(made) > 0 {
		t.Errorf("outside there are %v, %v", made, err)
	}
	info, err := os.Stat(filepath.Join(dir, "good", "d", "f"))
	do(t, err)
	if info.Mode()&fs7 != 0o755 || info.Sys().(*syscall.Stat_t).Uid != 1000 {
		t.Errorf("an entry is %v of %d", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
	}
}

const fs7 = os.ModePerm | os.ModeSetuid

func archive(t *testing.T, entries []tar.Header) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		do(t, w.WriteHeader(&h))
	}
	do(t, w.Close())
	return buf.String()
}

// A volume that is full says so by its own code, and what was not written leaves nothing.
func TestD04_AFullVolumeSaysSo(t *testing.T) {
	limited := plain
	limited.Limit = 1 << 20
	b := newBench(t, limited)
	big := strings.Repeat("x", 24<<20)
	status, answer := b.do("POST", at("big"), big)
	if status != 429 || !strings.Contains(answer, volumeapi.CodeFull) {
		t.Fatalf("%d %s", status, answer)
	}
	b.must("POST", at("small"), "x")
	var list procapi.FileList
	do(t, json.Unmarshal([]byte(b.must("GET", "/list"+at("/"), "")), &list))
	if slices.ContainsFunc(list.Entries, func(f procapi.FileInfo) bool { return f.Name != "small" && f.Name != "lost+found" }) {
		t.Errorf("left: %+v", list.Entries)
	}
}

// A directory that lies in a committed layer can't be renamed by the kernel, and is moved
// all the same.
func TestMoveWhatIsCommitted(t *testing.T) {
	b := newBench(t, plain)
	b.must("POST", at("d/e/f"), "content")
	dir := b.use("mount")
	do(t, os.Symlink("e/f", filepath.Join(dir, "d", "l")), unix.Chmod(filepath.Join(dir, "d", "e", "f"), 0o4751), os.Chown(filepath.Join(dir, "d", "e"), 7, 8),
		os.Chtimes(filepath.Join(dir, "d", "e"), time.Unix(1e9, 0), time.Unix(1e9, 0)), b.manager.Leave(t.Context(), "vol", "mount"))
	do(t, b.manager.Release(t.Context(), "vol", b.spec.Epoch))
	b.spec.Epoch++
	b.must("POST", "/move", `{"source":"d","destination":"moved"}`)
	if status, answer := b.do("GET", at("d"), ""); status != 404 {
		t.Errorf("the source: %d %s", status, answer)
	}
	if got := b.must("GET", at("moved/l"), ""); got != "content" {
		t.Errorf("moved %q", got)
	}
	dir = b.use("mount")
	var f, e unix.Stat_t
	do(t, unix.Lstat(filepath.Join(dir, "moved", "e", "f"), &f), unix.Lstat(filepath.Join(dir, "moved", "e"), &e))
	if f.Mode&0o7777 != 0o4751 || e.Uid != 7 || e.Gid != 8 || e.Mtim.Sec != 1e9 {
		t.Errorf("the file is %o, its directory of %d:%d, %d", f.Mode, e.Uid, e.Gid, e.Mtim.Sec)
	}
}

// Watches of a volume tell what its sandbox does and what other calls do.
func TestWatchAVolume(t *testing.T) {
	b := newBench(t, plain)
	dir := b.use("mount")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := http.DefaultClient.Do(b.request(ctx, "GET", "/watch"+at("/")+"&recursive=true", nil))
	do(t, err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() (line procapi.WatchLine) {
		t.Helper()
		if !lines.Scan() {
			t.Fatal("the watch ended: ", lines.Err())
		}
		do(t, json.Unmarshal(lines.Bytes(), &line))
		return line
	}
	if line := next(); line.Path != "/" {
		t.Fatalf("it begins with %+v", line)
	}
	expect := func(event, path string) {
		t.Helper()
		for line := next(); line.Event != event || line.Path != path; line = next() {
		}
	}
	do(t, os.WriteFile(filepath.Join(dir, "inside"), []byte("1"), 0o644))
	expect(procapi.WatchCreate, "/inside")
	b.must("POST", at("d/called"), "2")
	expect(procapi.WatchCreate, "/d/called")
	do(t, b.manager.Leave(ctx, "vol", "mount"), b.manager.Release(ctx, "vol", b.spec.Epoch))
	for lines.Scan() {
	}
	if lines.Err() == nil {
		t.Error("a watch that was cut ended as if its directory had gone")
	}
}

// A series of calls has one process; whoever takes the volume elsewhere has it taken back,
// with everything that was answered committed, and calls at the old epoch are refused.
func TestR7_AReleaseCommitsWhatWasAnswered(t *testing.T) {
	b := newBench(t, plain)
	var writers sync.WaitGroup
	written := make([][]string, 4)
	stop := make(chan struct{})
	for i := range written {
		writers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("w%d-%d", i, n)
				if status, _ := b.do("POST", at(name), name); status == 200 {
					written[i] = append(written[i], name)
				} else if n > 0 {
					return // the volume has gone
				}
			}
		})
	}
	for b.sessions() == 0 {
		tick := time.NewTimer(time.Millisecond)
		<-tick.C
	}
	if err := b.manager.Release(t.Context(), "vol", b.spec.Epoch); err != nil {
		t.Fatal(err)
	}
	close(stop)
	writers.Wait()
	if status, answer := b.do("GET", at("w0-0"), ""); status != 409 || !strings.Contains(answer, volumeapi.CodeStale) {
		t.Errorf("a call of a former owner: %d %s", status, answer)
	}
	b.spec.Epoch++
	for _, name := range slices.Concat(written...) {
		if got := b.must("GET", at(name), ""); got != name {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if n := b.sessions(); n != 1 {
		t.Errorf("there are %d processes", n)
	}
}

// A later owner on this node goes on with the overlay that calls work on; a process that
// has died is started again.
func TestR2_CallsKeepNobodyFromAVolume(t *testing.T) {
	b := newBench(t, plain)
	b.must("POST", at("f"), "before")
	former := b.spec
	b.spec.Epoch++
	dir := b.use("mount")
	if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != "before" {
		t.Errorf("the sandbox has %q, %v", got, err)
	}
	b.must("POST", at("f"), "after")
	if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != "after" {
		t.Errorf("the sandbox has %q, %v", got, err)
	}
	now := b.spec
	b.spec = former
	if status, answer := b.do("GET", at("f"), ""); status != 409 || !strings.Contains(answer, volumeapi.CodeStale) {
		t.Errorf("a call of a former owner: %d %s", status, answer)
	}
	b.spec = now
	b.spec.Team = "another"
	if status, answer := b.do("GET", at("f"), ""); status != 503 {
		t.Errorf("a call of another team: %d %s", status, answer)
	}
	b.spec = now
	b.calls.mu.Lock()
	process := b.calls.sessions["vol"].process
	b.calls.mu.Unlock()
	do(t, unix.Kill(process.Pid(), unix.SIGKILL))
	<-process.Ended()
	if got := b.must("GET", at("f"), ""); got != "after" {
		t.Errorf("read %q", got)
	}
	do(t, b.manager.Unshare(t.Context(), "vol"))
	if n := b.sessions(); n != 0 {
		t.Errorf("there are %d processes", n)
	}
}

// An upload that is refused is answered at once, although the rest of it never comes:
// net/http alone would read what is left first.
func TestARefusalWaitsForNoBody(t *testing.T) {
	b := newBench(t, plain)
	b.must(http.MethodPost, at("file"), "content")
	for name, length := range map[string]int64{"a rest that net/http would wait for": 200 << 10, "a large rest": 100 << 20} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		body, feed := io.Pipe()
		defer body.Close()
		req := b.request(ctx, http.MethodPost, at("file/below"), body)
		req.ContentLength = length
		go func() { _, _ = feed.Write(make([]byte, 150<<10)) }()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusConflict {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}
