package snapshots

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

func manifest(t *testing.T) Manifest {
	t.Helper()
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	return Manifest{
		Sandbox: id, Generation: 3, Team: "team-1", Template: "default:abc", Memory: true, Created: time.Now().UTC(),
		Origin: Origin{Image: "example.com/i@sha256:aa", Runtime: "runsc 1", CPU: CPU{Arch: "amd64", Features: []string{"avx", "sse42"}}, Spec: "sha256:bb"},
	}
}

func TestManifestRoundTrip(t *testing.T) {
	t.Parallel()
	dir, want := t.TempDir(), manifest(t)
	if _, err := Read(dir); !errors.Is(err, ErrNone) {
		t.Fatalf("reading none: %v", err)
	}
	for range 2 { // the second replaces the first
		if err := Write(dir, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(dir)
	want.Version = version
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("read %+v, %v, wrote %+v", got, err, want)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 {
		t.Errorf("left beside the manifest: %v", entries)
	}
}

func TestReadRefusesWhatIsNoManifest(t *testing.T) {
	t.Parallel()
	good := manifest(t)
	good.Version = version
	spoilt := func(spoil func(*Manifest)) string {
		m := good
		m.CPU.Features = nil
		spoil(&m)
		b, _ := json.Marshal(m)
		return string(b)
	}
	for name, text := range map[string]string{
		"empty": "", "half": `{"version":1`, "huge": strings.Repeat(" ", MaxFileBytes) + "{}",
		"newer":        spoilt(func(m *Manifest) { m.Version++ }),
		"foreign path": spoilt(func(m *Manifest) { m.Sandbox = "../x" }),
		"no team":      spoilt(func(m *Manifest) { m.Team = "" }),
		"no image":     spoilt(func(m *Manifest) { m.Image = "" }),
		"generation 0": spoilt(func(m *Manifest) { m.Generation = 0 }),
		"long name":    spoilt(func(m *Manifest) { m.Runtime = strings.Repeat("x", maxName+1) }),
		"many":         spoilt(func(m *Manifest) { m.CPU.Features = make([]string, maxFeatures+1) }),
		"strange":      spoilt(func(m *Manifest) { m.CPU.Features = []string{"a\n<script>"} }),
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, FileName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := Read(dir); err == nil || errors.Is(err, ErrNone) {
			t.Errorf("%s: read as %+v, %v", name, m, err)
		}
	}
}

func TestReadFollowsNoLink(t *testing.T) {
	t.Parallel()
	dir, other := t.TempDir(), t.TempDir()
	if err := Write(other, manifest(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(other, FileName), filepath.Join(dir, FileName)); err != nil {
		t.Fatal(err)
	}
	if m, err := Read(dir); err == nil {
		t.Errorf("read %+v through a link", m)
	}
}

func TestG10_ImageIsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	m := manifest(t)
	if err := m.Check(m.Origin); err != nil {
		t.Fatalf("its own origin: %v", err)
	}
	more := m.Origin
	more.Image = "mirror.example.com/i@sha256:aa"
	more.CPU = CPU{Arch: "amd64", Features: []string{"avx", "avx2", "sse42"}}
	if err := m.Check(more); err != nil {
		t.Fatalf("a mirror and a CPU that can do more: %v", err)
	}
	for name, c := range map[string]struct {
		spoil func(*Origin)
		code  string
		says  string
	}{
		"runtime":  {func(o *Origin) { o.Runtime = "runsc 2" }, nodeapi.CodeMemoryDiffers, "version"},
		"arch":     {func(o *Origin) { o.CPU = CPU{Arch: "arm64"} }, nodeapi.CodeMemoryDiffers, "kind of CPU"},
		"features": {func(o *Origin) { o.CPU.Features = []string{"avx"} }, nodeapi.CodeMemoryDiffers, "sse42"},
		"spec":     {func(o *Origin) { o.Spec = "sha256:cc" }, nodeapi.CodeMemoryDiffers, "configuration"},
		"image":    {func(o *Origin) { o.Image = "example.com/i@sha256:dd" }, nodeapi.CodeImageDiffers, "container image"},
	} {
		on := m.Origin
		c.spoil(&on)
		e := errdefs.From(m.Check(on))
		if e == nil || e.Kind != errdefs.Conflict || e.Code != c.code || !strings.Contains(e.Message, c.says) {
			t.Errorf("%s: %+v", name, e)
		}
		if hint := e != nil && strings.Contains(e.Message, "without its memory"); hint != (c.code == nodeapi.CodeMemoryDiffers) {
			t.Errorf("%s: %q, with code %s", name, e.Message, e.Code)
		}
		if err := m.CheckFiles(on); (err == nil) != (c.code == nodeapi.CodeMemoryDiffers) {
			t.Errorf("%s: the files alone: %v", name, err)
		}
	}
}

func TestHostCPUIsStable(t *testing.T) {
	t.Parallel()
	c := HostCPU()
	if c.Arch == "" || c.validate() != nil || !reflect.DeepEqual(c, HostCPU()) {
		t.Errorf("%+v", c)
	}
}

func TestClonesShareContentAndOutliveEachOther(t *testing.T) {
	t.Parallel()
	root, m := t.TempDir(), manifest(t)
	src, dst := filepath.Join(root, "a"), filepath.Join(root, "b")
	for _, part := range []string{"files", "memory"} {
		if err := os.MkdirAll(filepath.Join(src, part), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, part, "data"), []byte(part), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dst+aside, 0o700); err != nil { // of an attempt that was cut off
		t.Fatal(err)
	}
	m.Memory = false
	if err := Clone(src, dst, m, "files"); err != nil {
		t.Fatal(err)
	}
	a, _ := os.Stat(filepath.Join(src, "files", "data"))
	b, err := os.Stat(filepath.Join(dst, "files", "data"))
	if err != nil || !os.SameFile(a, b) {
		t.Fatalf("the clone has a file of its own: %v", err)
	}
	if err := os.RemoveAll(src); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dst, "files", "data")); err != nil || string(b) != "files" {
		t.Errorf("after the end of the source: %q, %v", b, err)
	}
	if got, err := Read(dst); err != nil || got.Memory {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(dst, "memory")); err == nil {
		t.Error("the clone has what it was not given")
	}
}

func TestACloneIsWholeOrNotThere(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	src, dst := filepath.Join(root, "a"), filepath.Join(root, "b")
	if err := os.MkdirAll(filepath.Join(src, "files", "strange"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Clone(src, dst, manifest(t), "files"); err == nil {
		t.Error("cloned an image with a directory in it")
	}
	if err := Clone(src, dst, manifest(t), "memory"); err == nil {
		t.Error("cloned what is not there")
	}
	if entries, _ := os.ReadDir(root); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}
