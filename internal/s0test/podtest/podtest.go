// Package podtest runs containers of the images that hack/docker/build.sh has built as a
// Kubernetes node's runtime would: by runc, with containerd's defaults, and with what a
// pod's specification adds to them or takes away.
//
// There is no network of pods: containers are on their host's. Limits are not applied.
//
// What containerd says of a container is in the program bundle: its modules would be those
// of every module whose tests import this package.
package podtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"s0.run/internal/s0test/kubetest"
)

// Image is one that was built.
type Image struct {
	Root   string // its files
	Config v1.ImageConfig
}

// Open finds the image of a stage of the Dockerfile in a directory of build.sh's.
func Open(t testing.TB, dir, name string) Image {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name, "config.json"))
	if err != nil {
		t.Fatalf("image %s is not built (make test-docker): %v", name, err)
	}
	var img v1.Image
	if err := json.Unmarshal(b, &img); err != nil {
		t.Fatalf("configuration of image %s: %v", name, err)
	}
	return Image{Root: filepath.Join(dir, name, "rootfs"), Config: img.Config}
}

// Container is what a pod says of one.
type Container struct {
	Image   Image
	Command []string // instead of the image's entry point and arguments
	Args    []string // instead of the image's arguments
	Env     []string // beside the image's
	User    string   // instead of the image's: uid:gid
	Mounts  []specs.Mount
	// Privileged containers may do everything. Others have no capabilities, get none, and
	// don't write their root file system.
	Privileged bool
	HostPID    bool
}

// Cmd is a command that runs the container, in a directory of its own, until its program
// ends. Signals are passed on to that, but for SIGKILL: see Kill. What has been made is
// removed when the test ends.
func (c Container) Cmd(t testing.TB, dir string) *exec.Cmd {
	t.Helper()
	if err := c.writeBundle(t, dir); err != nil {
		t.Fatalf("container %s: %v", dir, err)
	}
	c.mountRoot(t, dir)
	t.Cleanup(func() {
		if out, err := runc(dir, "delete", "--force").CombinedOutput(); err != nil {
			t.Errorf("runc delete: %v: %s", err, out)
		}
	})
	return runc(dir, "run", "--bundle", dir)
}

// Exec runs a program in the container in a directory, as its probes are.
func Exec(dir string, args ...string) error {
	out, err := runc(dir, "exec", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc exec %v: %w: %s", args, err, out)
	}
	return nil
}

// Kill kills the program of the container in a directory. Where that shares the host's
// processes, runc then ends all that are in the container's control group, as runtimes do.
func Kill(dir string) error {
	out, err := runc(dir, "kill", "KILL").CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc kill: %w: %s", err, out)
	}
	return nil
}

// runc is runc's command for the container in a directory. Each has a state of its own.
func runc(dir, command string, args ...string) *exec.Cmd {
	const id = "container"
	all := []string{"--root", filepath.Join(dir, "runc"), command}
	if command == "exec" || command == "kill" { // whose arguments come last
		return exec.Command("runc", append(append(all, id), args...)...)
	}
	return exec.Command("runc", append(append(all, args...), id)...)
}

// writeBundle makes the directory what runc runs.
func (c Container) writeBundle(t testing.TB, dir string) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	for _, name := range []string{"rootfs", "written", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	cmd := exec.Command(kubetest.Binary(t, "bundle"), dir)
	cmd.Stdin = bytes.NewReader(b)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("writing its bundle: %w: %s", err, out)
	}
	return nil
}

// mountRoot gives the container the image's files, and a place of its own for what it writes.
func (c Container) mountRoot(t testing.TB, dir string) {
	t.Helper()
	root := filepath.Join(dir, "rootfs")
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", c.Image.Root, filepath.Join(dir, "written"), filepath.Join(dir, "work"))
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		t.Fatalf("mounting %s: %v", root, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Errorf("unmounting %s: %v", root, err)
		}
	})
}

// Share makes a directory a mount until the test ends: what is mounted below it, containers and
// the host may share, as they may below / on a host with systemd.
func Share(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("sharing %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatalf("sharing %s: %v", dir, err)
	}
}
