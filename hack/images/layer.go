package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"
)

// open reads the one image of a layout that this program wrote.
func open(dir string) (v1.Image, error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, err
	}
	index, err := p.ImageIndex()
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%s holds %d images: want 1", dir, len(manifest.Manifests))
	}
	return p.Image(manifest.Manifests[0].Digest)
}

// unpack writes the layers of an image of ours, which is trusted, to rootfs.
func unpack(ctx context.Context, dir, rootfs string) error {
	img, err := open(dir)
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		blob := filepath.Join(dir, "blobs", digest.Algorithm, digest.Hex)
		if _, err := output(ctx, "tar", "-xzf", blob, "-C", rootfs, "--numeric-owner", "--preserve-permissions"); err != nil {
			return err
		}
	}
	return nil
}

// extend installs the recipe's packages and programs into the rootfs of its base.
// The machine's apt finds and checks the packages, as it does for the machine; in
// there nothing reaches a network.
func extend(ctx context.Context, r recipe, rootfs, work string) error {
	archives := filepath.Join(work, "archives")
	if err := download(ctx, r.Packages, rootfs, archives); err != nil {
		return err
	}
	for path, content := range r.Files {
		to := filepath.Join(rootfs, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, []byte(content), 0o755); err != nil {
			return err
		}
	}
	return inside(ctx, r, rootfs, archives)
}

// download gets what the rootfs, by its own list of packages, still needs.
func download(ctx context.Context, packages []string, rootfs, archives string) error {
	if err := os.MkdirAll(filepath.Join(archives, "partial"), 0o755); err != nil {
		return err
	}
	args := []string{
		"-y", "-q", "--no-install-recommends", "--download-only",
		"-o", "Dir::State::status=" + filepath.Join(rootfs, "var/lib/dpkg/status"),
		"-o", "Dir::Cache::archives=" + archives,
		"-o", "Debug::NoLocking=true", // the machine's own apt may be at work
		"-o", "APT::Sandbox::User=root", "install",
	}
	_, err := output(ctx, "apt-get", append(args, packages...)...)
	return err
}

// inside unpacks the packages in the rootfs and runs the recipe's setup.
func inside(ctx context.Context, r recipe, rootfs, archives string) (err error) {
	const debs = "/var/cache/apt/archives"
	for _, m := range []struct {
		from, to, kind string
		flags          uintptr
	}{{"proc", "proc", "proc", 0}, {"/dev", "dev", "", unix.MS_BIND}, {archives, debs, "", unix.MS_BIND}} {
		to := filepath.Join(rootfs, m.to)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.from, to, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.to, err)
		}
		defer func() { err = errors.Join(err, unix.Unmount(to, unix.MNT_DETACH)) }()
	}
	noDaemons := filepath.Join(rootfs, "usr/sbin/policy-rc.d")
	if err := os.WriteFile(noDaemons, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
		return err
	}
	defer os.Remove(noDaemons)
	found, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	install := []string{"apt-get", "-y", "-q", "--no-install-recommends", "--no-download", "install"}
	for _, deb := range found {
		install = append(install, filepath.Join(debs, filepath.Base(deb)))
	}
	for _, argv := range append([][]string{install}, r.Setup...) {
		if err := chroot(ctx, rootfs, r.Env, argv); err != nil {
			return err
		}
	}
	return nil
}

// tailBytes is what an error says of a command's output.
const tailBytes = 4 << 10

func chroot(ctx context.Context, rootfs string, env map[string]string, argv []string) error {
	cmd := exec.CommandContext(ctx, "/usr/bin/env", argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: rootfs}
	cmd.Dir, cmd.Env = "/", []string{"DEBIAN_FRONTEND=noninteractive"}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		out = out[max(0, len(out)-tailBytes):]
		return fmt.Errorf("%s: %w; its last lines:\n%s", strings.Join(argv[:min(len(argv), 3)], " "), err, out)
	}
	return nil
}

// A mark is what tells a file from the one that the base had under its name.
type mark struct {
	mode        fs.FileMode
	size, mtime int64
	uid, gid    uint32
	target      string
}

// marks describes every file below rootfs.
func marks(rootfs string) (map[string]mark, error) {
	all := map[string]mark{}
	err := filepath.WalkDir(rootfs, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == rootfs {
			return err
		}
		name, err := filepath.Rel(rootfs, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[name], err = markOf(path, info)
		return err
	})
	return all, err
}

func markOf(path string, info fs.FileInfo) (mark, error) {
	st := info.Sys().(*syscall.Stat_t)
	m := mark{mode: info.Mode(), uid: st.Uid, gid: st.Gid}
	switch {
	case info.Mode().Type() == fs.ModeSymlink:
		var err error
		m.target, err = os.Readlink(path)
		return m, err
	case info.IsDir(): // its time changes with its entries, which are listed themselves
	default:
		m.size, m.mtime = info.Size(), info.ModTime().UnixNano()
	}
	return m, nil
}
