// Package podtest runs containers of the images that hack/docker/build.sh has built as a
// Kubernetes node's runtime would: by runc, with containerd's defaults, and with what a
// pod's specification adds to them or takes away.
//
// There is no network of pods: containers are on their host's. Limits are not applied.
package podtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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
	spec, err := c.spec(t.Context(), filepath.Join(dir, "rootfs"))
	if err == nil {
		err = writeBundle(dir, spec)
	}
	if err != nil {
		t.Fatalf("container %s: %v", dir, err)
	}
	c.mountRoot(t, dir)
	t.Cleanup(func() {
		if out, err := runc(dir, "delete", "--force").CombinedOutput(); err != nil {
			t.Errorf("runc delete: %v: %s", err, out)
		}
	})
	return runc(dir, "run", "--keep", "--bundle", dir)
}

// Kill kills the program of the container in a directory, and it alone.
func Kill(dir string) error {
	out, err := runc(dir, "kill").CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc kill: %w: %s", err, out)
	}
	return nil
}

// runc is runc's command for the container in a directory, whose name is its.
func runc(dir, command string, flags ...string) *exec.Cmd {
	args := append([]string{"--root", filepath.Join(dir, "runc"), command}, flags...)
	args = append(args, filepath.Base(dir))
	if command == "kill" {
		args = append(args, "KILL")
	}
	return exec.Command("runc", args...)
}

func writeBundle(dir string, spec *oci.Spec) error {
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	for _, name := range []string{"rootfs", "written", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
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

// command is the program with its arguments: as Kubernetes has it, Command does away with
// both of the image's, Args with its arguments.
func (c Container) command() []string {
	switch {
	case len(c.Command) > 0:
		return slices.Concat(c.Command, c.Args)
	case len(c.Args) > 0:
		return slices.Concat(c.Image.Config.Entrypoint, c.Args)
	}
	return slices.Concat(c.Image.Config.Entrypoint, c.Image.Config.Cmd)
}

func (c Container) spec(ctx context.Context, root string) (*oci.Spec, error) {
	uid, gid, err := c.user()
	if err != nil {
		return nil, err
	}
	opts := []oci.SpecOpts{
		oci.WithRootFSPath(root), oci.WithoutRunMount, oci.WithHostResolvconf, oci.WithHostHostsFile,
		oci.WithProcessArgs(c.command()...), oci.WithEnv(slices.Concat(c.Image.Config.Env, c.Env)), oci.WithUIDGID(uid, gid),
		oci.WithHostNamespace(specs.NetworkNamespace), oci.WithHostNamespace(specs.UTSNamespace), oci.WithMounts(c.Mounts),
	}
	if dir := c.Image.Config.WorkingDir; dir != "" {
		opts = append(opts, oci.WithProcessCwd(dir))
	}
	if c.HostPID {
		opts = append(opts, oci.WithHostNamespace(specs.PIDNamespace))
	}
	if slices.ContainsFunc(c.Mounts, func(m specs.Mount) bool { return slices.Contains(m.Options, "rshared") }) {
		opts = append(opts, sharedRoot)
	}
	opts = append(opts, c.rights()...)
	// Other tests may run containers, too: the directory's name is nobody else's.
	opts = append(opts, oci.WithCgroup("/podtest"+strings.ReplaceAll(filepath.Dir(root), "/", "-")))
	return oci.GenerateSpec(namespaces.WithNamespace(ctx, "podtest"), nil, &containers.Container{ID: "pod"}, opts...)
}

func (c Container) rights() []oci.SpecOpts {
	if c.Privileged {
		return []oci.SpecOpts{oci.WithPrivileged, oci.WithHostDevices, oci.WithAllDevicesAllowed}
	}
	return []oci.SpecOpts{oci.WithRootFSReadonly(), oci.WithCapabilities(nil), oci.WithNoNewPrivileges, seccomp.WithDefaultProfile()}
}

// sharedRoot lets mounts below a shared one be seen outside.
func sharedRoot(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Linux.RootfsPropagation = "rshared"
	return nil
}

// user is as numbers: who is named can't be told from root before the image is there.
func (c Container) user() (uid, gid uint32, err error) {
	user := c.User
	if user == "" {
		user = c.Image.Config.User
	}
	if n, err := fmt.Sscanf(user, "%d:%d", &uid, &gid); n != 2 {
		return 0, 0, fmt.Errorf("user %q is not uid:gid: %w", user, err)
	}
	return uid, gid, nil
}

// Share makes a directory a mount whose own mounts containers may share, as everything is
// on a host with systemd, until the test ends.
func Share(t testing.TB, dir string) {
	t.Helper()
	err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, "")
	if err == nil {
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
				t.Errorf("unmounting %s: %v", dir, err)
			}
		})
		err = unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		t.Fatalf("sharing %s: %v", dir, err)
	}
}
