package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

func upper(t *testing.T, headers ...*tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func entries(t *testing.T, layer io.Reader) map[string]*tar.Header {
	t.Helper()
	all := map[string]*tar.Header{}
	for r := tar.NewReader(layer); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = h
	}
}

func TestC02_LayerOfAnUpperLayer(t *testing.T) {
	t.Parallel()
	from := upper(t,
		&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		&tar.Header{Typeflag: tar.TypeDir, Name: "./etc/", Mode: 0o755},
		&tar.Header{Typeflag: tar.TypeReg, Name: "./etc/motd", Mode: 0o100644, Size: 7, Uid: 7, Gid: 8, PAXRecords: map[string]string{
			xattrPrefix + "user.a": "1", xattrPrefix + "trusted.b": "2", xattrPrefix + "security.selinux": "3", xattrPrefix + "user.overlay.opaque": "y",
		}},
		&tar.Header{Typeflag: tar.TypeChar, Name: "./etc/issue"},
		&tar.Header{Typeflag: tar.TypeChar, Name: "./etc/sda", Devmajor: 8},
		&tar.Header{Typeflag: tar.TypeBlock, Name: "./etc/sdb", Devmajor: 8},
		&tar.Header{Typeflag: tar.TypeFifo, Name: "./etc/pipe"},
		&tar.Header{Typeflag: tar.TypeDir, Name: "./opt/", PAXRecords: map[string]string{xattrPrefix + "trusted.overlay.opaque": "y"}},
		&tar.Header{Typeflag: tar.TypeLink, Name: "./opt/motd", Linkname: "./etc/motd"},
		&tar.Header{Typeflag: tar.TypeSymlink, Name: "./opt/up", Linkname: "../../../etc/shadow"},
		&tar.Header{Typeflag: tar.TypeReg, Name: "../../root/.ssh/authorized_keys", Size: 1},
		&tar.Header{Typeflag: tar.TypeLink, Name: "/opt/shadow", Linkname: "/../../etc/shadow"},
		&tar.Header{Typeflag: tar.TypeReg, Name: "./run/s0/node.sock", Size: 1},
		&tar.Header{Typeflag: tar.TypeReg, Name: "./proc/x", Size: 1},
		&tar.Header{Typeflag: tar.TypeReg, Name: "./process", Mode: 0o4755},
	)
	var to bytes.Buffer
	if err := convert(from, &to); err != nil {
		t.Fatal(err)
	}
	got := entries(t, &to)
	want := []string{
		"etc/", "etc/motd", "etc/.wh.issue", "opt/", "opt/.wh..wh..opq", "opt/motd", "opt/up", "opt/shadow", "root/.ssh/authorized_keys", "process",
	}
	for _, name := range want {
		if got[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d: %v", len(got), len(want), got)
	}
	motd := got["etc/motd"]
	if motd.Size != 7 || motd.Uid != 7 || motd.Gid != 8 || motd.Mode != 0o644 || len(motd.PAXRecords) != 1 || motd.PAXRecords[xattrPrefix+"user.a"] != "1" {
		t.Errorf("%+v", motd)
	}
	if l := got["opt/shadow"].Linkname; l != "etc/shadow" {
		t.Errorf("a link that leads out becomes %q", l)
	}
	if got["process"].Mode != 0o4755 || got["opt/motd"].Linkname != "etc/motd" || got["opt/up"].Linkname != "../../../etc/shadow" {
		t.Errorf("%+v", got)
	}
}

func TestC02_NamesThatNoImageCanHold(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"./etc/.wh.passwd", "./.wh..wh..opq", "./a/.wh.b/c", "./" + strings.Repeat("a/", 3000) + "a", "./\xff"} {
		err := convert(upper(t, &tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatGNU}), io.Discard)
		if !errdefs.Is(err, errdefs.Unprocessable) {
			t.Errorf("%.40q: %v", name, err)
		}
	}
	if err := convert(strings.NewReader(strings.Repeat("junk", 1000)), io.Discard); err == nil {
		t.Error("junk passes")
	}
}

// source writes a number of bytes, or waits for ever.
type source struct{ bytes int64 }

func (s source) Image(context.Context, sandbox.ID) (string, error) { return "image@digest", nil }

func (s source) Upper(ctx context.Context, _ sandbox.ID, w io.Writer) error {
	if s.bytes == 0 {
		return tar.NewWriter(w).Close()
	}
	if s.bytes < 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	block := make([]byte, 1<<20)
	for left := s.bytes; left > 0; left -= int64(len(block)) {
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	return nil
}

func TestSpoolIsBoundedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "spool")
	room := func() error { return nil }
	layers, err := New(Config{Source: source{bytes: 0}, Room: room, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	var open []*Layer
	for range atOnce {
		l, err := layers.Open(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, l)
	}
	if _, err := layers.Open(t.Context(), "a"); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("one more: %v", err)
	}
	for _, l := range open {
		if _, err := l.WriteTo(io.Discard); err != nil {
			t.Errorf("an empty layer: %v", err)
		}
		l.Close()
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
	w := &bounded{to: io.Discard, left: 10 << 20}
	if err := (source{bytes: 11 << 20}).Upper(t.Context(), "a", w); err == nil || w.left >= 0 {
		t.Errorf("more than the bound: %v", err)
	}
	layers.cfg.Source = source{bytes: -1}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := layers.Open(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who is gone: %v", err)
	}
	layers.cfg.Room = func() error { return errdefs.New(errdefs.Exhausted, "the disk is full") }
	if _, err := layers.Open(t.Context(), "a"); !errdefs.Is(err, errdefs.Exhausted) || len(layers.busy) != 0 {
		t.Errorf("no room: %v", err)
	}
}
