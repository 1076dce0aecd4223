// The bundle program reads a container of package podtest from its standard input and
// writes config.json, by which runc runs it, to a directory.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/s0test/podtest"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bundle:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bundle DIRECTORY <container.json")
	}
	var c podtest.Container
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return err
	}
	s, err := spec(context.Background(), c, args[0])
	if err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(args[0], "config.json"), b, 0o600)
}

// command is the program with its arguments: as Kubernetes has it, Command does away with
// both of the image's, Args with its arguments.
func command(c podtest.Container) []string {
	switch {
	case len(c.Command) > 0:
		return slices.Concat(c.Command, c.Args)
	case len(c.Args) > 0:
		return slices.Concat(c.Image.Config.Entrypoint, c.Args)
	}
	return slices.Concat(c.Image.Config.Entrypoint, c.Image.Config.Cmd)
}

func spec(ctx context.Context, c podtest.Container, dir string) (*oci.Spec, error) {
	uid, gid, err := user(c)
	if err != nil {
		return nil, err
	}
	opts := []oci.SpecOpts{
		oci.WithRootFSPath(filepath.Join(dir, "rootfs")), oci.WithoutRunMount, oci.WithHostResolvconf, oci.WithHostHostsFile,
		oci.WithProcessArgs(command(c)...), oci.WithEnv(slices.Concat(c.Image.Config.Env, c.Env)), oci.WithUIDGID(uid, gid),
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
	opts = append(opts, rights(c)...)
	// Other tests may run containers, too: the directory's name is nobody else's.
	opts = append(opts, oci.WithCgroup("/podtest"+strings.ReplaceAll(dir, "/", "-")))
	return oci.GenerateSpec(namespaces.WithNamespace(ctx, "podtest"), nil, &containers.Container{ID: "pod"}, opts...)
}

// rights are those of the two sorts of containers that the chart has.
func rights(c podtest.Container) []oci.SpecOpts {
	if c.Privileged {
		return []oci.SpecOpts{oci.WithPrivileged, oci.WithNewPrivileges, oci.WithHostDevices, oci.WithAllDevicesAllowed}
	}
	return []oci.SpecOpts{oci.WithRootFSReadonly(), oci.WithCapabilities(nil), oci.WithNoNewPrivileges, seccomp.WithDefaultProfile()}
}

// sharedRoot lets mounts below a shared one be seen outside.
func sharedRoot(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Linux.RootfsPropagation = "rshared"
	return nil
}

// user is in numbers, as the images have it: for a name Kubernetes can't tell whether it is
// root.
func user(c podtest.Container) (uid, gid uint32, err error) {
	name := c.User
	if name == "" {
		name = c.Image.Config.User
	}
	if n, err := fmt.Sscanf(name, "%d:%d", &uid, &gid); n != 2 {
		return 0, 0, fmt.Errorf("user %q is not uid:gid: %w", name, err)
	}
	return uid, gid, nil
}
