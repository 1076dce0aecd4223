package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/s0test/proctest"
)

// watch follows a directory until the test ends.
type watch struct {
	t     *testing.T
	lines *bufio.Scanner
}

func watchDir(t *testing.T, c *proctest.Conn, query string) *watch {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Patience)
	t.Cleanup(cancel)
	resp, err := c.Do(ctx, "GET", procapi.PathFiles+"/watch?"+query, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("watching: %v, %v", resp, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	w := &watch{t, bufio.NewScanner(resp.Body)}
	if first := w.next(); first.Event != "" || first.Path == "" {
		t.Fatalf("the first line is %+v", first)
	}
	return w
}

func (w *watch) next() (line procapi.WatchLine) {
	w.t.Helper()
	if !w.lines.Scan() {
		w.t.Fatalf("the watch ended: %v", w.lines.Err())
	}
	if err := json.Unmarshal(w.lines.Bytes(), &line); err != nil {
		w.t.Fatal(err)
	}
	return line
}

// until collects events up to the creation of a file.
func (w *watch) until(mark string) (events []string) {
	w.t.Helper()
	for {
		l := w.next()
		if l.Event == procapi.WatchCreate && l.Path == mark {
			return events
		}
		events = append(events, strings.TrimSpace(l.Event+" "+l.Path+" "+l.OldPath))
	}
}

func (w *watch) want(mark string, want ...string) {
	w.t.Helper()
	if got := w.until(mark); strings.Join(got, "\n") != strings.Join(want, "\n") {
		w.t.Errorf("events\n%q, want\n%q", got, want)
	}
}

// Watches, archives and searches do in gVisor what they do in Linux.
func TestGVisorFiles(t *testing.T) {
	t.Parallel()
	s := startGVisor(t)
	t.Run("watch", func(t *testing.T) { s.watches(t) })
	t.Run("archive", func(t *testing.T) { s.archives(t) })
	t.Run("search", func(t *testing.T) { s.searches(t) })
	t.Run("TestB02_SymlinkSwap", func(t *testing.T) { s.swaps(t) })
	t.Run("TestB03_SpecialFiles", func(t *testing.T) { s.specials(t) })
}

func (s *sandbox) watches(t *testing.T) {
	w := watchDir(t, s.Conn, "path=w&recursive=true")
	sh := func(script string) { stdout(t, s.Conn, "cd /workspace/w; "+script) }
	sh("echo x > a; : > mark1")
	w.want("/workspace/w/mark1", "create /workspace/w/a", "write /workspace/w/a")
	sh("chmod 600 a; mv a b; rm b; : > mark2")
	w.want("/workspace/w/mark2", "chmod /workspace/w/a", "rename /workspace/w/b /workspace/w/a", "remove /workspace/w/b")
	sh("mkdir -p d/e/f; : > d/e/f/g; : > mark3")
	w.want("/workspace/w/mark3", "create /workspace/w/d", "create /workspace/w/d/e", "create /workspace/w/d/e/f", "create /workspace/w/d/e/f/g")
	sh("mv d/e d2; : > d2/f/h; mv d2 /workspace/away; : > /workspace/away/i; mv /workspace/away back; : > mark4")
	w.want("/workspace/w/mark4", "rename /workspace/w/d2 /workspace/w/d/e", "create /workspace/w/d2/f/h", "remove /workspace/w/d2",
		"create /workspace/w/back", "create /workspace/w/back/f", "create /workspace/w/back/f/g", "create /workspace/w/back/f/h", "create /workspace/w/back/i")
	for i, want := range [][]string{{"create /workspace/w/up", "write /workspace/w/up"}, {"write /workspace/w/up"}} {
		if status, b := s.Raw(t, "POST", procapi.PathFiles+"?path=w/up", "content"); status != 200 {
			t.Fatalf("write: %d %s", status, b)
		}
		mark := fmt.Sprint("up", i)
		sh(": > " + mark)
		w.want("/workspace/w/"+mark, want...)
	}
	sh("cd /; rm -r /workspace/w")
	for {
		if l := w.next(); l.Path == "/workspace/w" && l.Event == procapi.WatchRemove {
			break
		}
	}
	if w.lines.Scan() || w.lines.Err() != nil {
		t.Errorf("behind the end: %q, %v", w.lines.Text(), w.lines.Err())
	}
}

func (s *sandbox) archives(t *testing.T) {
	stdout(t, s.Conn, "mkdir -p t/a/b t/void; cd t; echo one > f; echo two > a/b/g; chmod 750 a/b/g; ln -s a/b l; mkfifo p; ln -s /etc/passwd abs")
	status, archive := s.Raw(t, "GET", procapi.PathFiles+"/archive?path=t", "")
	if status != 200 {
		t.Fatalf("packing: %d %s", status, archive)
	}
	for _, target := range []string{"u/v", "u/v"} { // new, then merged
		var got procapi.ArchiveResult
		status, b := s.Raw(t, "PUT", procapi.PathFiles+"/archive?path="+target, string(archive))
		if err := json.Unmarshal(b, &got); status != 200 || err != nil || got != (procapi.ArchiveResult{Files: 2, Directories: 3, Symlinks: 2, Bytes: 8}) {
			t.Fatalf("unpacking: %d %s", status, b)
		}
		if got := stdout(t, s.Conn, "rm -f t/p; diff -r --no-dereference t u/v && stat -c %a u/v/a/b/g; ls -A u"); got != "750\nv\n" {
			t.Errorf("after unpacking: %q", got)
		}
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := errors.Join(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "d", Linkname: "/etc"}), tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/out"}), tw.Close()); err != nil {
		t.Fatal(err)
	}
	if status, e := s.Refused(t, "PUT", procapi.PathFiles+"/archive?path=bad", b.String()); status != 400 || e.Code != "invalid_request" {
		t.Errorf("an archive that leads out: %d %+v", status, e)
	}
	if got := stdout(t, s.Conn, "ls -A /etc/out bad 2>&1 | grep -c 'No such'"); got != "2\n" {
		t.Errorf("a refused archive left something behind")
	}
}

func (s *sandbox) searches(t *testing.T) {
	stdout(t, s.Conn, "mkdir -p s/x; printf 'a\\nneedle here\\n' > s/x/f.go; printf 'needle' > s/g.txt; ln -s /proc s/proc; mkfifo s/p")
	for name, c := range map[string]struct {
		req  procapi.Search
		want string
	}{
		"content": {procapi.Search{Path: "s", Pattern: "needle", Include: []string{"*.go"}}, `{"match":{"path":"/workspace/s/x/f.go","type":"file","line":2,"column":1,"text":"needle here"}}` + "\n" + `{"summary":{"matches":1,"files":1,"bytes":14,"skipped":0}}` + "\n"},
		"name":    {procapi.Search{Path: "s", Include: []string{"g.*"}}, `{"match":{"path":"/workspace/s/g.txt","type":"file"}}` + "\n" + `{"summary":{"matches":1,"files":1,"bytes":0,"skipped":0}}` + "\n"},
	} {
		body, _ := json.Marshal(c.req)
		if status, b := s.Raw(t, "POST", procapi.PathFiles+"/search", string(body)); status != 200 || string(b) != c.want {
			t.Errorf("%s: %d %s", name, status, b)
		}
	}
	body, _ := json.Marshal(procapi.Search{Path: "/", Pattern: "no such thing in the world", Exclude: []string{"/usr"}})
	if status, b := s.Raw(t, "POST", procapi.PathFiles+"/search", string(body)); status != 200 || !strings.Contains(string(b), `"summary"`) {
		t.Errorf("everything: %d %s", status, b)
	}
}

// swaps: while a directory turns into a symlink to a FIFO's and back, every call
// has an answer, a file is read whole, and what is written is whole somewhere.
func (s *sandbox) swaps(t *testing.T) {
	stdout(t, s.Conn, `mkdir -p r/d1 r/d2 r/d3; printf 1111 > r/d1/f; printf 2222 > r/d2/f; mkfifo r/d3/f
cat > r/swap.py <<'EOF'
import os
while True:
    for d in ("d2", "d3"):
        os.rename("d1", "away"); os.symlink(d, "d1")
        os.remove("d1"); os.rename("away", "d1")
EOF`)
	var c procapi.Context
	s.Call(t, "POST", procapi.PathContexts, procapi.CreateContext{Type: "cmd", Cwd: "/workspace/r", CMD: &procapi.CMDRequest{Command: []string{"python3", "swap.py"}}}, &c)
	for i := range 500 {
		status, b := s.Raw(t, "GET", procapi.PathFiles+"?path=r/d1/f", "")
		if status == 200 && len(b) != 4 || status != 200 && status != 404 && status != 400 {
			t.Fatalf("read %d: %d %q", i, status, b)
		}
		if status, b := s.Raw(t, "POST", procapi.PathFiles+"?path=r/d1/f", "3333"); status != 200 && status != 404 && status != 400 && status != 409 {
			t.Fatalf("write %d: %d %q", i, status, b)
		}
	}
	s.Call(t, "DELETE", procapi.PathContexts+"/"+c.ID, nil, nil)
	if got := stdout(t, s.Conn, "ls -A r/d2 r/d3 | grep s0-; for f in r/d*/f r/away/f; do [ -p $f ] || [ ! -e $f ] || wc -c < $f; done | sort -u"); got != "4\n" {
		t.Errorf("left behind: %q", got)
	}
}

// specials: what has no content of its own is refused at once.
func (s *sandbox) specials(t *testing.T) {
	stdout(t, s.Conn, "mkfifo fifo; ln -s fifo link; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\"")
	for _, path := range []string{"/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem", "/proc/1/environ", "/proc/kcore", "/proc/kmsg", "fifo", "link", "sock", "/sys/kernel"} {
		began := time.Now()
		status, b := s.Raw(t, "GET", procapi.PathFiles+"?path="+path, "")
		if status != 400 && status != 404 && !(status == 409 && path == "/sys/kernel") {
			t.Errorf("reading %s: %d %.100q", path, status, b)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("reading %s took %v", path, took)
		}
		if status, b := s.Raw(t, "POST", procapi.PathFiles+"?path="+path, "x"); status/100 == 2 {
			t.Errorf("writing %s: %d %s", path, status, b)
		}
	}
}

// BenchmarkGVisorFiles measures the way of a file in and out of a real sandbox.
func BenchmarkGVisorFiles(b *testing.B) {
	s := startGVisor(b)
	const size = 64 << 20
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	exchange := func(method string, body io.Reader) {
		resp, err := s.Do(b.Context(), method, procapi.PathFiles+"?path=large", body)
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		// In large pieces, as noded does: each costs the sandbox a window update.
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
		if err != nil || resp.StatusCode != 200 || method == "GET" && n != size {
			b.Fatal(fmt.Sprint(resp.StatusCode, n, err))
		}
	}
	exchange("POST", bytes.NewReader(content))
	b.Run("write", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			exchange("POST", bytes.NewReader(content))
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			exchange("GET", nil)
		}
	})
}
