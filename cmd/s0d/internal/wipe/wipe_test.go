package wipe

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestOnlyOurProgramsOfThisInstance(t *testing.T) {
	t.Parallel()
	dirs := []string{"/var/lib/s0", "/run/s0"}
	for cmdline, want := range map[string]bool{
		"/opt/s0/containerd\x00--config\x00/run/s0/containerd/config.toml\x00":          true,
		"runsc-sandbox\x00--root=/run/s0/noded/runsc\x00boot\x00":                       true,
		"/usr/lib/postgresql/15/bin/postgres\x00-D\x00/var/lib/s0/postgres/cluster\x00": true,
		"less\x00/var/lib/s0/logs/s0d.log\x00":                                          false,
		"/usr/bin/containerd\x00":                                                       false,
		"/opt/s0/containerd\x00--config\x00/run/s0-other/containerd/config.toml\x00":    false,
		"/usr/lib/postgresql/15/bin/postgres\x00-D\x00/var/lib/postgresql/15/main\x00":  false,
		"": false,
	} {
		if got := ours([]byte(cmdline), dirs); got != want {
			t.Errorf("ours(%q) = %v, want %v", cmdline, got, want)
		}
	}
}

func TestMountsBelow(t *testing.T) {
	t.Parallel()
	const mountinfo = `22 1 254:0 / / rw - ext4 /dev/vda rw
40 22 0:40 / /run/s0/noded/a rw - overlay overlay rw
41 40 0:41 / /run/s0/noded/a/b\040c rw - tmpfs tmpfs rw
42 22 0:42 / /run/s0-other/x rw - tmpfs tmpfs rw
`
	got := mountsBelow(mountinfo, []string{"/run/s0"})
	if want := []string{"/run/s0/noded/a", "/run/s0/noded/a/b c"}; !slices.Equal(got, want) {
		t.Errorf("mountsBelow = %q, want %q", got, want)
	}
}

func TestUnknownFilesSurvive(t *testing.T) {
	t.Parallel()
	clean, mixed := filepath.Join(t.TempDir(), "clean"), filepath.Join(t.TempDir(), "mixed")
	for _, f := range []string{clean + "/logs/s0d.log", mixed + "/logs/s0d.log", mixed + "/thesis.tex"} {
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeDirs(Config{Dirs: []string{clean, mixed, mixed + "-never-was"}, Entries: []string{"logs"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(clean); !os.IsNotExist(err) {
		t.Errorf("an emptied directory is left: %v", err)
	}
	if _, err := os.Stat(mixed + "/thesis.tex"); err != nil {
		t.Errorf("somebody's file: %v", err)
	}
	if _, err := os.Stat(mixed + "/logs"); !os.IsNotExist(err) {
		t.Errorf("our directory is left: %v", err)
	}
}
