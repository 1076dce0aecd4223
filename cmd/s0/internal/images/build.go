package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// probeTimeout bounds the question whether a builder works: docker's client may be
// there, and its daemon not.
const probeTimeout = 10 * time.Second

// Builder is a program that builds images.
type Builder struct {
	Name   string
	binary string
	probe  []string
	build  []string
	save   func(image, file string) []string
}

var builders = []Builder{
	{
		Name: "docker", probe: []string{"version", "--format", "{{.Server.Version}}"}, build: []string{"build"},
		save: func(image, file string) []string { return []string{"save", "-o", file, image} },
	},
	{
		Name: "podman", probe: []string{"info"}, build: []string{"build", "--format", "oci"},
		save: func(image, file string) []string {
			return []string{"save", "--format", "oci-archive", "-o", file, image}
		},
	},
	{
		Name: "buildah", probe: []string{"info"}, build: []string{"build", "--format", "oci"},
		save: func(image, file string) []string { return []string{"push", image, "oci-archive:" + file} },
	},
}

// ErrNoBuilder says what to install.
var ErrNoBuilder = errors.New("no program that builds images works here: install docker, podman or buildah " +
	"(on Debian and Ubuntu: apt install buildah), or push an image that is built already, as an OCI layout or an archive")

// FindBuilder finds the first builder that works.
func FindBuilder(ctx context.Context) (Builder, error) {
	var why []error
	for _, b := range builders {
		path, err := exec.LookPath(b.Name)
		if err != nil {
			continue
		}
		b.binary = path
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		err = b.run(probe, io.Discard, b.probe...)
		cancel()
		if err == nil {
			return b, nil
		}
		why = append(why, err)
	}
	return Builder{}, errors.Join(append([]error{ErrNoBuilder}, why...)...)
}

// run runs the builder. What it says on stderr is in the error.
func (b Builder) run(ctx context.Context, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, b.binary, args...)
	cmd.Stdout = out
	var said tail
	cmd.Stderr = io.MultiWriter(out, &said)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", b.Name, args[0], err, said.text())
	}
	return nil
}

// tail keeps the end of what is written.
type tail struct{ kept []byte }

const tailBytes = 2 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b...)
	t.kept = t.kept[max(0, len(t.kept)-tailBytes):]
	return len(b), nil
}

func (t *tail) text() string { return string(bytes.TrimSpace(t.kept)) }

func (b Builder) export(ctx context.Context, image, file string) error {
	return b.run(ctx, io.Discard, b.save(image, file)...)
}

// BuildOptions say what to build, and as what.
type BuildOptions struct {
	Context       string // directory
	Name          string // name[:tag]
	File          string // Dockerfile; "": the context's own
	Platform      string
	Pull, NoCache bool
	Out           io.Writer // what the builder says
}

// Build has the builder build an image, and keeps it in the store as an OCI layout,
// which it returns.
func Build(ctx context.Context, b Builder, store string, o BuildOptions) (dir string, err error) {
	local := "s0-build/" + strings.ReplaceAll(o.Name, "/", "-")
	args := append([]string{}, b.build...)
	args = append(args, "-t", local)
	for flag, value := range map[string]string{"--file": o.File, "--platform": o.Platform} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	for flag, on := range map[string]bool{"--pull": o.Pull, "--no-cache": o.NoCache} {
		if on {
			args = append(args, flag)
		}
	}
	if err := b.run(ctx, o.Out, append(args, o.Context)...); err != nil {
		return "", err
	}
	if err := os.MkdirAll(store, 0o700); err != nil {
		return "", err
	}
	aside, err := os.MkdirTemp(store, ".build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(aside)
	archive := filepath.Join(aside, "image.tar")
	if err := b.export(ctx, local, archive); err != nil {
		return "", err
	}
	return keep(archive, aside, filepath.Join(store, fileName(o.Name)))
}

// keep makes a layout of an archive, and then the layout of that name.
func keep(archive, aside, dir string) (string, error) {
	img, err := fromArchive(archive)
	if err != nil {
		return "", err
	}
	defer img.Close()
	whole := filepath.Join(aside, "layout")
	p, err := layout.Write(whole, empty.Index)
	if err != nil {
		return "", err
	}
	if err := p.AppendImage(img.Image); err != nil {
		return "", fmt.Errorf("keeping the image: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.Rename(whole, dir)
}
