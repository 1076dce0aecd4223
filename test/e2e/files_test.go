package e2e_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestFiles is everything that can be done with files, in a real sandbox.
func TestFiles(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 1, Flags: []string{"--volumes"}})
	u := newUser(t, s)
	f := &filesTest{user: u, id: u.claim(), root: "/workspace"}
	t.Run("contract", f.in(f.contract))
	t.Run("watch", f.in(f.watch))
	t.Run("archive", f.in(f.archive))
	t.Run("search", f.in(f.search))
	t.Run("TestA18_NamesAreData", f.in(f.names))
	t.Run("TestB02_SymlinkSwap", f.in(f.swap))
	t.Run("TestB04_HostileArchive", f.in(f.hostileArchive))
	t.Run("TestB06_LargeTransfersAreFlat", f.in(f.large))
	t.Run("TestB06_EndlessUploads", f.in(f.endless))
	t.Run("disconnects", f.in(f.disconnects))
	v := f.ofVolume()
	t.Run("contract of a volume", v.in(v.contract))
	t.Run("watch a volume", v.in(v.watch))
	t.Run("TestR7_WhatWasAnsweredStays", v.in(v.killed))
	u.remove(f.id)
}

type filesTest struct {
	*user
	id     string
	volume string // whose files they are, and not the sandbox's; empty: the sandbox's
	root   string // what relative paths lie below
}

// volumePoint is where the sandbox has the volume.
const volumePoint = "/v"

// ofVolume is the same test for a volume that the sandbox has.
func (f *filesTest) ofVolume() *filesTest {
	f.t.Helper()
	v, err := f.c.CreateVolume(f.ctx(), "", client.CreateSandboxVolumeRequest{})
	must(f.user, "making a volume", v, err)
	m, err := f.c.MountVolume(f.ctx(), f.id, v.ID, volumePoint)
	must(f.user, "mounting a volume", m, err)
	return &filesTest{user: f.user, id: f.id, volume: v.ID}
}

// files are those that the test is about.
func (f *filesTest) files() client.Files {
	if f.volume != "" {
		return f.c.VolumeFiles(f.volume)
	}
	return f.c.Files(f.id)
}

// volumeCodes are the codes of volumes' files, whose statuses are those of sandboxes'.
var volumeCodes = map[int]string{400: "bad_request", 403: "forbidden", 404: "not_found", 409: "conflict"}

// in makes a part of the test report to its own t.
func (f *filesTest) in(part func()) func(*testing.T) {
	return func(t *testing.T) {
		outer := f.t
		f.t = t
		defer func() { f.t = outer }()
		part()
	}
}

func (f *filesTest) url(call, path string, more ...string) string {
	q := url.Values{}
	if path != "" {
		q.Set("path", path)
	}
	for i := 0; i < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	of := "sandboxes/" + f.id
	if f.volume != "" {
		of = "sandboxvolumes/" + f.volume
	}
	return f.stack.URL + "/api/v1/" + of + "/files" + call + "?" + q.Encode()
}

func (f *filesTest) request(ctx context.Context, method, url string, body io.Reader, header ...string) *http.Request {
	f.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+f.stack.Key())
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

func (f *filesTest) do(method, url string, body io.Reader, header ...string) (status int, typ string, answer string) {
	f.t.Helper()
	resp, err := http.DefaultClient.Do(f.request(f.ctx(), method, url, body, header...))
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), strings.TrimSpace(string(b))
}

// sh runs a script in the workspace, or where the sandbox has the volume.
func (f *filesTest) sh(script string) string {
	f.t.Helper()
	if f.volume != "" {
		script = "cd " + volumePoint + "; " + script
	}
	res := f.run(f.id, "sh", "-c", script)
	if res.Stdout == nil || res.ExitCode == nil || *res.ExitCode != 0 {
		f.t.Fatalf("%s: %+v", script, res)
	}
	return *res.Stdout
}

// contract is section 1.7 of the contract, call by call, as it is on the wire.
func (f *filesTest) contract() {
	const octets = "application/octet-stream"
	ok := func(data string) string { return `{"success":true,"data":` + data + `}` }
	f.sh("ln -s c/f link; mkfifo fifo")
	for _, c := range []struct {
		name, method, url string
		body              string
		header            []string
		status            int
		want              string // the whole answer, or an error's code
	}{
		{"write makes parents", "POST", f.url("", "c/f"), "content", []string{"Content-Type", octets}, 200, ok(`{"written":true}`)},
		{"read", "GET", f.url("", f.root+"/c/f"), "", nil, 200, "content"},
		{"read JSON by Accept", "GET", f.url("", "c/f"), "", []string{"Accept", "application/json"}, 200, ok(`{"encoding":"base64","content":"Y29udGVudA=="}`)},
		{"read JSON by Content-Type", "GET", f.url("", "c/f"), "", []string{"Content-Type", "application/json"}, 200, ok(`{"encoding":"base64","content":"Y29udGVudA=="}`)},
		{"read through a symlink", "GET", f.url("", "link"), "", nil, 200, "content"},
		{"write without a type", "POST", f.url("", "c/g"), "", nil, 200, ok(`{"written":true}`)},
		{"write a directory", "POST", f.url("", "c"), "x", nil, 409, "path_not_file"},
		{"write below a file", "POST", f.url("", "c/f/x"), "x", nil, 409, "path_not_directory"},
		{"read a directory", "GET", f.url("", "c"), "", nil, 409, "path_not_file"},
		{"read nothing", "GET", f.url("", "c/none"), "", nil, 404, "file_not_found"},
		{"B03: read a FIFO", "GET", f.url("", "fifo"), "", nil, 400, "invalid_request"},
		{"B03: read memory", "GET", f.url("", "/proc/self/mem"), "", nil, 400, "invalid_request"},
		{"B01: a path up", "GET", f.url("", "c/../../etc/passwd"), "", nil, 400, "invalid_request"},
		{"B01: an empty path", "GET", f.url("", "", "path", ""), "", nil, 400, "invalid_request"},
		{"B01: percent signs are characters", "GET", f.url("", "%2e%2e/x"), "", nil, 404, "file_not_found"},
		{"B01: backslashes are characters", "GET", f.url("", `..\x`), "", nil, 404, "file_not_found"},
		{"mkdir", "POST", f.url("", "d", "mkdir", "true"), "", []string{"Content-Type", octets}, 201, ok(`{"created":true}`)},
		{"mkdir again", "POST", f.url("", "d", "mkdir", "true"), "", nil, 409, "path_exists"},
		{"mkdir again, recursive", "POST", f.url("", "d", "mkdir", "true", "recursive", "true"), "", nil, 201, ok(`{"created":true}`)},
		{"mkdir recursive", "POST", f.url("", "d/e/f", "mkdir", "true", "recursive", "true"), "", nil, 201, ok(`{"created":true}`)},
		{"mkdir without parent", "POST", f.url("", "n/e/w", "mkdir", "true"), "", nil, 404, "directory_not_found"},
		{"mkdir on a file", "POST", f.url("", "c/f", "mkdir", "true"), "", nil, 409, "path_exists"},
		{"mkdir below a file", "POST", f.url("", "c/f/d", "mkdir", "true", "recursive", "true"), "", nil, 409, "path_not_directory"},
		{"list a file", "GET", f.url("/list", "c/f"), "", nil, 409, "path_not_directory"},
		{"list nothing", "GET", f.url("/list", "none"), "", nil, 404, "directory_not_found"},
		{"stat nothing", "GET", f.url("/stat", "none"), "", nil, 404, "file_not_found"},
		{"move", "POST", f.url("/move", ""), `{"source":"c/g","destination":"` + f.root + `/d/h"}`, nil, 200, ok(`{"moved":true}`)},
		{"move nothing", "POST", f.url("/move", ""), `{"source":"c/g","destination":"x"}`, nil, 404, "file_not_found"},
		{"move onto something", "POST", f.url("/move", ""), `{"source":"c/f","destination":"d/h"}`, nil, 409, "path_exists"},
		{"move nowhere", "POST", f.url("/move", ""), `{"source":"c/f","destination":"n/h"}`, nil, 404, "directory_not_found"},
		{"delete a tree", "DELETE", f.url("", "d"), "", nil, 200, ok(`{"deleted":true}`)},
		{"delete nothing", "DELETE", f.url("", "d"), "", nil, 200, ok(`{"deleted":true}`)},
		{"delete the root", "DELETE", f.url("", "/"), "", nil, 403, "permission_denied"},
	} {
		if f.volume != "" && c.status >= 300 {
			if strings.HasPrefix(c.name, "B03: ") { // there is no memory, and a sandbox keeps its pipes to itself
				c.status = 404
			}
			c.want = volumeCodes[c.status]
		}
		status, _, answer := f.do(c.method, c.url, strings.NewReader(c.body), c.header...)
		if status != c.status || c.status < 300 && !sameAnswer(answer, c.want) || c.status >= 300 && !strings.Contains(answer, `"code":"`+c.want+`"`) {
			f.t.Errorf("%s: %d %s, want %d %s", c.name, status, answer, c.status, c.want)
		}
	}
	if got := f.sh("stat -c '%a %s' c/f; ls -A c"); got != "644 7\nf\n" {
		f.t.Errorf("in the sandbox there is %q", got)
	}
	f.describes()
}

// sameAnswer compares JSON by its values, anything else as it is.
func sameAnswer(got, want string) bool {
	var g, w any
	if json.Unmarshal([]byte(got), &g) != nil || json.Unmarshal([]byte(want), &w) != nil {
		return got == want
	}
	a, _ := json.Marshal(g)
	b, _ := json.Marshal(w)
	return bytes.Equal(a, b)
}

func (f *filesTest) describes() {
	f.sh("chmod 4750 c/f; touch -d @1000000000 c/f")
	for path, want := range map[string]string{
		"c/f":  `{"success":true,"data":{"name":"f","path":"` + f.root + `/c/f","type":"file","size":7,"mode":"4750","mod_time":"2001-09-09T01:46:40Z","is_link":false}}`,
		"link": `{"name":"link","path":"` + f.root + `/link","type":"symlink","is_link":true,"link_target":"c/f"}`,
	} {
		_, _, answer := f.do("GET", f.url("/stat", path), nil)
		if path == "c/f" && !sameAnswer(answer, want) {
			f.t.Errorf("stat %s: %s", path, answer)
		}
	}
	info, err := f.files().Stat(f.ctx(), "link")
	must(f.user, "stat of a symlink", info, err)
	if info.Type != client.FileInfoTypeSymlink || !info.IsLink || info.LinkTarget == nil || *info.LinkTarget != "c/f" {
		f.t.Errorf("the symlink is %+v", info)
	}
	list, err := f.files().List(f.ctx(), "c")
	must(f.user, "listing", list, err)
	if len(list.Entries) != 1 || list.Entries[0].Path != f.root+"/c/f" {
		f.t.Errorf("the list is %+v", list.Entries)
	}
	if _, _, answer := f.do("GET", f.url("/list", f.root+"/c/none"), nil); !strings.Contains(answer, "_not_found") && !strings.Contains(answer, `"not_found"`) {
		f.t.Errorf("listing nothing: %s", answer)
	}
}

// watch: what commands and the API do is told to every subscription that wants it.
func (f *filesTest) watch() {
	w, err := f.files().Watch(f.ctx())
	must(f.user, "watching", w, err)
	defer w.Close()
	next := func() client.FileWatchServerMessage {
		f.t.Helper()
		m, err := w.Next()
		return must(f.user, "the next message", m, err)
	}
	subscribe := func(path string, recursive bool) string {
		f.t.Helper()
		if err := w.Subscribe(path, recursive); err != nil {
			f.t.Fatal(err)
		}
		m := next()
		for m.Type == client.FileWatchServerMessageTypeEvent { // of the other one, which sees this one's directory made
			m = next()
		}
		if m.Type != client.FileWatchServerMessageTypeSubscribed || m.WatchID == nil || m.Path == nil || !strings.HasPrefix(*m.Path, f.root+"/w") {
			f.t.Fatalf("subscribing to %s: %+v", path, m)
		}
		return *m.WatchID
	}
	deep, flat := subscribe("w", true), subscribe(f.root+"/w/x", false)
	expect := func(want ...string) {
		f.t.Helper()
		left := map[string]bool{}
		for _, s := range want {
			left[s] = true
		}
		for len(left) > 0 {
			m := next()
			if m.Type != client.FileWatchServerMessageTypeEvent {
				f.t.Fatalf("got %+v, waiting for %v", m, left)
			}
			name := map[string]string{deep: "deep", flat: "flat"}[*m.WatchID]
			s := name + " " + string(*m.Event) + " " + strings.TrimPrefix(*m.Path, f.root+"/w/")
			if m.OldPath != nil {
				s += " from " + strings.TrimPrefix(*m.OldPath, f.root+"/w/")
			}
			delete(left, s)
		}
	}
	if err := f.files().Write(f.ctx(), "w/x/f", strings.NewReader("1")); err != nil {
		f.t.Fatal(err)
	}
	expect("deep create x/f", "deep write x/f", "flat create x/f", "flat write x/f")
	f.sh("mkdir -p w/x/y/z; echo 2 > w/x/y/z/g")
	expect("deep create x/y/z/g", "flat create x/y")
	f.sh("mv w/x/y/z/g w/x/h") // from a directory that is watched by now
	expect("deep rename x/h from x/y/z/g", "flat create x/h")
	if err := w.Unsubscribe(flat); err != nil {
		f.t.Fatal(err)
	}
	for m := next(); m.Type != client.FileWatchServerMessageTypeUnsubscribed || *m.WatchID != flat; m = next() {
	}
	f.sh("rm -r w")
	expect("deep remove x")
	for m := next(); m.Type != client.FileWatchServerMessageTypeUnsubscribed || *m.WatchID != deep; m = next() {
	}
	f.sh("echo > plain")
	if err := w.Subscribe("plain", false); err != nil {
		f.t.Fatal(err)
	}
	if m := next(); m.Type != client.FileWatchServerMessageTypeError || m.Error == nil || *m.Code != "path_not_directory" && *m.Code != "conflict" {
		f.t.Errorf("watching a file: %+v", m)
	}
}

// killed: what was answered is there when what wrote it was killed at once.
func (f *filesTest) killed() {
	if err := f.files().Write(f.ctx(), "kept", strings.NewReader("kept")); err != nil {
		f.t.Fatal(err)
	}
	f.stack.KillChild("volumed")
	f.stack.Eventually("reading what was written", func() error {
		r, err := f.files().Read(f.ctx(), "kept")
		if err != nil {
			return err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err == nil && string(b) != "kept" {
			f.t.Fatalf("the file holds %q", b)
		}
		return err
	})
}

func (f *filesTest) archive() {
	f.sh("mkdir -p t/a/b; cd t; seq 100000 > a/n; echo x > a/b/f; chmod 755 a/b/f; ln -s b/f a/l")
	r, err := f.c.ReadArchive(f.ctx(), f.id, "t")
	must(f.user, "packing", r, err)
	defer r.Close()
	packed, err := io.ReadAll(r)
	must(f.user, "reading the archive", packed, err)
	for range 2 {
		res, err := f.c.WriteArchive(f.ctx(), f.id, "/srv/t", bytes.NewReader(packed))
		must(f.user, "unpacking", res, err)
		if *res != (client.FileArchiveResult{Files: 2, Directories: 2, Symlinks: 1, Bytes: 588897}) {
			f.t.Errorf("unpacked %+v", *res)
		}
		if got := f.sh("diff -r --no-dereference t /srv/t && stat -c %a /srv/t/a/b/f; ls -A /srv"); got != "755\nt\n" {
			f.t.Errorf("after unpacking: %q", got)
		}
	}
	if _, err := f.c.ReadArchive(f.ctx(), f.id, "none"); !isStatus(err, 404) {
		f.t.Errorf("packing nothing: %v", err)
	}
	if _, err := f.c.WriteArchive(f.ctx(), f.id, "t/a/n", bytes.NewReader(packed)); !isStatus(err, 409) {
		f.t.Errorf("unpacking into a file: %v", err)
	}
}

func (f *filesTest) hostileArchive() {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "first"}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "d", Linkname: "/etc"}), w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/out"}), w.Close())
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.c.WriteArchive(f.ctx(), f.id, "hostile", &b); !isStatus(err, 400) {
		f.t.Errorf("an archive that leads out: %v", err)
	}
	broken := io.MultiReader(bytes.NewReader(b.Bytes()), brokenOff{})
	if _, err := f.c.WriteArchive(f.ctx(), f.id, "hostile", broken); err == nil {
		f.t.Error("an upload that broke off was taken")
	}
	if got := f.sh("ls -A -d hostile /etc/out .s0-* 2> /dev/null | cat"); got != "" {
		f.t.Errorf("left behind: %q", got)
	}
}

// brokenOff is a body that breaks off.
type brokenOff struct{}

func (brokenOff) Read([]byte) (int, error) { return 0, errors.New("broken off") }

func (f *filesTest) search() {
	f.sh("mkdir -p s/x; printf 'a\\nNeedle here\\n' > s/x/f.go; echo needle > s/g.txt; printf 'needle\\0' > s/bin; mkfifo s/p")
	pattern, path, yes := "needle", "s", true
	var found []string
	sum, err := f.c.SearchFiles(f.ctx(), f.id, client.FileSearchRequest{Path: &path, Pattern: &pattern, IgnoreCase: &yes}, func(m client.FileSearchMatch) error {
		found = append(found, fmt.Sprintf("%s:%d:%s", m.Path, *m.Line, *m.Text))
		return nil
	})
	must(f.user, "searching", sum, err)
	if got := strings.Join(found, " "); got != "/workspace/s/g.txt:1:needle /workspace/s/x/f.go:2:Needle here" || sum.Matches != 2 || sum.Skipped != 1 {
		f.t.Errorf("found %q, %+v", got, sum)
	}
	for body, want := range map[string]int{`{}`: 400, `{"pattern":"(","regexp":true}`: 400, `{"pattern":"x","path":"none"}`: 404, `{"pattern":"x","depth":1}`: 400} {
		if status, _, answer := f.do("POST", f.url("/search", ""), strings.NewReader(body)); status != want {
			f.t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	status, typ, answer := f.do("POST", f.url("/search", ""), strings.NewReader(`{"path":"s","include":["*.go"]}`))
	if status != 200 || typ != "application/x-ndjson" || len(strings.Split(answer, "\n")) != 2 {
		f.t.Errorf("by name: %d %s %s", status, typ, answer)
	}
}

func (f *filesTest) names() {
	name := "a\nb\r\"c\" \x1b[31m größe 'd' %2e"
	f.write(f.id, "names/"+name, "x")
	if got := f.read(f.id, "names/"+name); got != "x" {
		f.t.Errorf("the file holds %q", got)
	}
	list, err := f.c.ListFiles(f.ctx(), f.id, "names")
	must(f.user, "listing", list, err)
	if len(list.Entries) != 1 || list.Entries[0].Name != name {
		f.t.Errorf("the list is %+v", list.Entries)
	}
	path := "names"
	sum, err := f.c.SearchFiles(f.ctx(), f.id, client.FileSearchRequest{Path: &path, Include: []string{"*"}}, func(m client.FileSearchMatch) error {
		if m.Path != "/workspace/names/"+name {
			f.t.Errorf("found %q", m.Path)
		}
		return nil
	})
	if err != nil || sum.Matches != 1 {
		f.t.Errorf("searching: %+v, %v", sum, err)
	}
	if status, _, _ := f.do("POST", f.url("", "names/a\x00b"), strings.NewReader("x")); status != 400 {
		f.t.Errorf("a NUL: %d", status)
	}
}

// swap: a directory turns into symlinks and back while files in it are read and
// written: every call is answered, and soon.
func (f *filesTest) swap() {
	f.write(f.id, "r/swap.py", `import os
while True:
    for d in ("d2", "d3", "/proc/self", "/dev"):
        os.rename("d1", "away"); os.symlink(d, "d1")
        os.remove("d1"); os.rename("away", "d1")
`)
	f.sh("cd r; mkdir d1 d2 d3; printf 1111 > d1/mem; printf 2222 > d2/mem; mkfifo d3/mem")
	cmd := client.CreateContextRequest{Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"python3", "swap.py"}}}
	cwd := "/workspace/r"
	cmd.Cwd = &cwd
	c, err := f.c.CreateContext(f.ctx(), f.id, cmd)
	must(f.user, "starting the swaps", c, err)
	allowed := map[int]bool{200: true, 400: true, 403: true, 404: true, 409: true}
	for i := range 300 {
		status, _, answer := f.do("GET", f.url("", "r/d1/mem"), nil)
		if !allowed[status] || status == 200 && len(answer) != 4 {
			f.t.Fatalf("read %d: %d %.200q", i, status, answer)
		}
		if status, _, answer := f.do("POST", f.url("", "r/d1/mem"), strings.NewReader("3333")); !allowed[status] {
			f.t.Fatalf("write %d: %d %.200q", i, status, answer)
		}
	}
	if err := f.c.DeleteContext(f.ctx(), f.id, c.ID); err != nil {
		f.t.Fatal(err)
	}
}

// metric reads a figure of the server's.
func (f *filesTest) metric(name string) int64 {
	f.t.Helper()
	resp, err := http.Get(f.stack.URL + "/metrics")
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, err := strconv.ParseFloat(v, 64)
			if err != nil {
				f.t.Fatal(err)
			}
			return int64(n)
		}
	}
	f.t.Fatalf("the server has no metric %s", name)
	return 0
}

// memory is what api and noded, one process here, and procd hold.
func (f *filesTest) memory() (server, procd int64) {
	f.t.Helper()
	kib, err := strconv.ParseInt(strings.Fields(f.sh("grep VmRSS /proc/1/status"))[1], 10, 64)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.metric("process_resident_memory_bytes"), kib << 10
}

// large: what is transferred passes through; nobody holds it.
func (f *filesTest) large() {
	const (
		size  = 1 << 30
		bound = 96 << 20 // of growth, for buffers and what the collector has not taken yet
	)
	f.sh("truncate -s 1G big; printf end >> big; (while sleep 0.05; do echo more >> big; done) > /dev/null 2>&1 & echo $! > writer")
	serverBefore, procdBefore := f.memory()
	resp, err := http.DefaultClient.Do(f.request(context.Background(), "GET", f.url("", "big"), nil))
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	var n, serverPeak, procdPeak int64
	for n < size {
		m, err := io.CopyN(io.Discard, resp.Body, 128<<20)
		if n += m; err != nil {
			break
		}
		server, procd := f.memory()
		serverPeak, procdPeak = max(serverPeak, server), max(procdPeak, procd)
	}
	if rest, err := io.Copy(io.Discard, resp.Body); err != nil || n+rest != resp.ContentLength || n+rest < size {
		f.t.Errorf("%d bytes came of %d: %v", n+rest, resp.ContentLength, err)
	}
	f.sh("kill $(cat writer); rm big")
	f.t.Logf("server: %d MiB before, %d MiB at most; procd: %d, %d", serverBefore>>20, serverPeak>>20, procdBefore>>20, procdPeak>>20)
	if serverPeak-serverBefore > bound || procdPeak-procdBefore > bound {
		f.t.Errorf("the server grew by %d MiB, procd by %d MiB", (serverPeak-serverBefore)>>20, (procdPeak-procdBefore)>>20)
	}
}

// endless: an upload without a length ends at the limit; nothing of it stays.
func (f *filesTest) endless() {
	for name, c := range map[string]struct{ method, url, code string }{
		"file":    {"POST", f.url("", "endless"), "file_too_large"},
		"archive": {"PUT", f.url("/archive", "endless"), "file_too_large"},
	} {
		var head bytes.Buffer
		if name == "archive" {
			if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 200 << 20}); err != nil {
				f.t.Fatal(err)
			}
		}
		resp, err := refused(func() (*http.Response, error) {
			body := io.LimitReader(io.MultiReader(bytes.NewReader(head.Bytes()), zeros{}), 300<<20)
			return http.DefaultClient.Do(f.request(f.ctx(), c.method, c.url, body))
		})
		if err != nil {
			f.t.Fatal(err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 413 || !strings.Contains(string(answer), c.code) {
			f.t.Errorf("%s: %d %s, %v", name, resp.StatusCode, answer, err)
		}
	}
	if got := f.sh("ls -A -d endless .s0-* 2> /dev/null | cat"); got != "" {
		f.t.Errorf("left behind: %q", got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// disconnects: who leaves in the middle frees everything.
func (f *filesTest) disconnects() {
	f.sh("truncate -s 1G big")
	before := f.metric("go_goroutines")
	for range 10 {
		ctx, cancel := context.WithCancel(context.Background())
		resp, err := http.DefaultClient.Do(f.request(ctx, "GET", f.url("", "big"), nil))
		if err != nil {
			f.t.Fatal(err)
		}
		io.CopyN(io.Discard, resp.Body, 1<<20)
		cancel()
		resp.Body.Close()

		ctx, cancel = context.WithCancel(context.Background())
		r, w := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			if resp, err := http.DefaultClient.Do(f.request(ctx, "POST", f.url("", "cut"), r)); err == nil {
				resp.Body.Close()
			}
		}()
		w.Write(make([]byte, 1<<20))
		cancel()
		w.CloseWithError(context.Canceled)
		<-done
	}
	f.stack.Eventually("everything to be given up", func() error {
		if now := f.metric("go_goroutines"); now > before+20 {
			return fmt.Errorf("%d goroutines, before there were %d", now, before)
		}
		if got := f.sh("ls -A -d cut .s0-* 2> /dev/null | cat"); got != "" {
			return fmt.Errorf("left behind: %q", got)
		}
		return nil
	})
	f.write(f.id, "after", "x")
}
