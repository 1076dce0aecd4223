package docker_test

import (
	"debug/elf"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"s0.run/internal/s0test"
	"s0.run/internal/s0test/podtest"
)

func open(t *testing.T, name string) podtest.Image {
	t.Helper()
	if os.Getenv("S0_DOCKER") == "" {
		t.Skip("make test-docker builds the images and runs this")
	}
	s0test.NeedRoot(t)
	return podtest.Open(t, filepath.Join(s0test.ModuleRoot(t), "build", "docker"), name)
}

// Pods rely on whom an image runs as, and on what it starts.
func TestConfiguration(t *testing.T) {
	for _, tt := range []struct {
		image, user     string
		entrypoint, cmd []string
	}{
		{"api", "65532:65532", []string{"/usr/local/bin/s0d"}, []string{"api", "--help"}},
		{"vk", "65532:65532", []string{"/usr/local/bin/s0-vk"}, nil},
		{"node", "0:0", []string{"/usr/local/bin/s0d"}, []string{"noded", "--help"}},
	} {
		c := open(t, tt.image).Config
		if c.User != tt.user || !slices.Equal(c.Entrypoint, tt.entrypoint) || !slices.Equal(c.Cmd, tt.cmd) {
			t.Errorf("%s runs %v %v as %q", tt.image, c.Entrypoint, c.Cmd, c.User)
		}
	}
}

// programs are the files of an image below a directory that somebody may execute.
func programs(t *testing.T, image podtest.Image, below string) (paths []string) {
	t.Helper()
	top := filepath.Join(image.Root, below)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode()&0o111 != 0 {
			paths = append(paths, strings.TrimPrefix(path, image.Root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// What an image has is what it was given, owned by root and written by nobody else; the
// static ones have nothing beside it that could be started.
func TestContents(t *testing.T) {
	for image, want := range map[string]struct {
		below    string
		programs []string
	}{
		"api":  {"/", []string{"s0d"}},
		"vk":   {"/", []string{"s0-vk"}},
		"node": {"/usr/local", []string{"containerd", "containerd-shim-s0-v1", "juicefs", "procd", "runsc", "s0d"}},
	} {
		img, paths := open(t, image), []string{}
		for _, name := range want.programs {
			paths = append(paths, "/usr/local/bin/"+name)
		}
		if got := programs(t, img, want.below); !slices.Equal(got, paths) {
			t.Errorf("%s: programs below %s are %v, want %v", image, want.below, got, paths)
		}
		for _, path := range paths {
			checkFile(t, img.Root, path)
		}
	}
}

func checkFile(t *testing.T, root, path string) {
	t.Helper()
	info, err := os.Stat(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); info.Mode() != 0o755 || owner.Uid != 0 || owner.Gid != 0 {
		t.Errorf("%s is %v, of %d:%d", path, info.Mode(), owner.Uid, owner.Gid)
	}
}

// The builder stays behind.
func TestNothingOfTheBuilder(t *testing.T) {
	for _, image := range []string{"api", "vk", "node"} {
		root := open(t, image).Root
		for _, path := range []string{"src", "go", "usr/local/go", "root/.cache", "root/go", "usr/bin/gcc", "usr/bin/git", "usr/bin/make", "var/cache/apt/pkgcache.bin"} {
			if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
				t.Errorf("%s has /%s", image, path)
			}
		}
		lists, err := filepath.Glob(filepath.Join(root, "var/lib/apt/lists/*"))
		if err != nil || len(lists) != 0 {
			t.Errorf("%s has %v, %v", image, lists, err)
		}
	}
}

// A static program needs nothing of the image that it runs in. A node copies some to where
// its sandboxes and their shims run from.
func TestStatic(t *testing.T) {
	for image, names := range map[string][]string{
		"api": {"s0d"}, "vk": {"s0-vk"}, "node": {"s0d", "containerd", "containerd-shim-s0-v1", "procd", "runsc"},
	} {
		root := open(t, image).Root
		for _, name := range names {
			f, err := elf.Open(filepath.Join(root, "usr/local/bin", name))
			if err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
				t.Errorf("%s: %s is not static", image, name)
			}
			f.Close()
		}
	}
}

// run runs a container to its end, without any right, and returns what it said.
func run(t *testing.T, c podtest.Container) string {
	t.Helper()
	out, err := c.Cmd(t, t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v %v: %v: %s", c.Command, c.Args, err, out)
	}
	return string(out)
}

// Every program that pods, daemons or probes start is in the image and starts there.
func TestProgramsStart(t *testing.T) {
	for _, tt := range []struct {
		image         string
		command, args []string
		says          string
	}{
		{"api", nil, nil, "s0d api [flags]"},
		{"vk", nil, []string{"--help"}, "--node-socket"},
		{"node", nil, nil, "s0d noded [flags]"},
		{"node", nil, []string{"netd", "--help"}, "s0d netd [flags]"},
		{"node", nil, []string{"volumed", "--help"}, "s0d volumed [flags]"},
		{"node", []string{"s0d", "containerd", "--help"}, nil, "s0d containerd [flags]"},
		{"node", []string{"setpriv", "--help"}, nil, "--bounding-set"},
		{"node", []string{"containerd", "--version"}, nil, "github.com/containerd/containerd/v2"},
		{"node", []string{"containerd-shim-s0-v1", "-v"}, nil, "containerd-shim-s0-v1"},
		{"node", []string{"runsc", "--version"}, nil, "runsc version"},
		{"node", []string{"juicefs", "version"}, nil, "juicefs version"},
		{"node", []string{"mkfs.ext4", "-V"}, nil, "mke2fs"},
		{"node", []string{"modprobe", "--version"}, nil, "kmod version"},
		{"node", []string{"umount", "--version"}, nil, "util-linux"},
	} {
		said := run(t, podtest.Container{Image: open(t, tt.image), Command: tt.command, Args: tt.args})
		if !strings.Contains(said, tt.says) {
			t.Errorf("%s: %v %v says %q", tt.image, tt.command, tt.args, said)
		}
	}
}

// All of ours say which version they are, and it is the same.
func TestVersion(t *testing.T) {
	version := run(t, podtest.Container{Image: open(t, "api"), Args: []string{"version"}})
	if strings.TrimSpace(version) == "" || strings.Contains(version, "unknown") {
		t.Errorf("the version is %q", version)
	}
	for _, tt := range []struct {
		image string
		args  []string
	}{{"node", []string{"version"}}, {"vk", []string{"--version"}}} {
		if got := run(t, podtest.Container{Image: open(t, tt.image), Args: tt.args}); !strings.Contains(got, strings.TrimSpace(version)) {
			t.Errorf("%s says %q, want version %s", tt.image, got, version)
		}
	}
}
