package bundle

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/shimapi"
)

func writeSpec(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, specFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOpen(t *testing.T) {
	t.Parallel()
	spec := fmt.Sprintf(`{"linux": {"cgroupsPath": "/g"}, "annotations": {%q: "/runsc", %q: "/root", %q: "g", %q: "/ov", %q: "7"}}`,
		shimapi.RunscAnnotation, shimapi.RootAnnotation, shimapi.GroupAnnotation,
		shimapi.OverlayDirAnnotation, shimapi.OverlaySizeAnnotation)
	b, err := Open(writeSpec(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	want := Spec{CgroupsPath: "/g", Group: "g", Runsc: "/runsc", Root: "/root", OverlayDir: "/ov", OverlaySize: "7"}
	if b.Spec != want {
		t.Errorf("spec %+v, want %+v", b.Spec, want)
	}
	for name, text := range map[string]string{
		"nothing":  "{}",
		"relative": strings.Replace(spec, "/runsc", "runsc", 1),
		"no json":  "{",
		"huge":     strings.Repeat(" ", maxSpecBytes+1),
	} {
		if _, err := Open(writeSpec(t, text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRecord(t *testing.T) {
	t.Parallel()
	b := &Bundle{Dir: t.TempDir()}
	if r, err := b.ReadRecord(); err != nil || r != (Record{}) {
		t.Errorf("before any was written: %+v, %v", r, err)
	}
	want := Record{Pid: 7, Exited: true, Status: 137, At: time.Now().UTC(), Deleted: true}
	if err := b.WriteRecord(want); err != nil {
		t.Fatal(err)
	}
	if r, err := b.ReadRecord(); err != nil || !r.At.Equal(want.At) || r.Pid != 7 || r.Status != 137 || !r.Deleted {
		t.Errorf("read %+v, %v", r, err)
	}
	if err := os.WriteFile(filepath.Join(b.Dir, recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadRecord(); err == nil {
		t.Error("half a record was read")
	}
}

// Lines reach whoever reads the FIFO; while nobody does, they are dropped and
// the shim goes on.
func TestLoggerNeverBlocks(t *testing.T) {
	t.Parallel()
	b := &Bundle{Dir: t.TempDir()}
	if log, f := b.Logger("x"); f != nil {
		t.Error("a FIFO that is not there was opened")
	} else {
		log.Info("goes nowhere")
	}
	path := filepath.Join(b.Dir, logFIFO)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	log, f := b.Logger("x")
	defer f.Close()
	for range 1000 {
		log.Info(strings.Repeat("y", 1000))
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 100)
	if _, err := io.ReadFull(r, line); err != nil || !strings.Contains(string(line), `"level":"INFO"`) {
		t.Errorf("read %q, %v", line, err)
	}
}
