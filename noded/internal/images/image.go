package images

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"s0.run/internal/errdefs"
)

// Image is what a sandbox may know of an image.
type Image struct {
	Ref     string // name@digest
	Digest  string
	ChainID string // names the snapshot of its root filesystem

	// From the image's configuration. Everything else there is ignored.
	Env []string
}

// Bounds of what is taken from an image's configuration.
const (
	maxEntries    = 512
	maxEntryBytes = 32 << 10
)

// Load reads an image that is on the node, by a name that Ensure has returned.
func Load(ctx context.Context, client *containerd.Client, ref string) (Image, error) {
	img, err := client.GetImage(ctx, ref)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	spec, err := img.Spec(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("configuration of image %s: %w", ref, err)
	}
	if err := check(spec.Config); err != nil {
		return Image{}, errdefs.New(errdefs.Unprocessable, "image %s: %v", ref, err)
	}
	return Image{
		Ref:     ref,
		Digest:  img.Target().Digest.String(),
		ChainID: identity.ChainID(spec.RootFS.DiffIDs).String(),
		Env:     environment(spec.Config.Env),
	}, nil
}

// check refuses a configuration that no honest image has.
func check(c ocispec.ImageConfig) error {
	if len(c.Env) > maxEntries {
		return fmt.Errorf("its configuration has more than %d variables", maxEntries)
	}
	for _, s := range c.Env {
		if len(s) > maxEntryBytes || strings.ContainsRune(s, 0) || !utf8.ValidString(s) {
			return fmt.Errorf("its configuration has a variable that is too long or no text")
		}
	}
	return nil
}

// environment keeps what is NAME=value.
func environment(env []string) []string {
	var kept []string
	for _, e := range env {
		if name, _, ok := strings.Cut(e, "="); ok && name != "" {
			kept = append(kept, e)
		}
	}
	return kept
}

// defaultRegistry and defaultTag complete short references, as everybody's tools do.
const (
	defaultRegistry = "docker.io"
	defaultTag      = "latest"
	maxRefBytes     = 512
)

var tagPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// normalize completes a reference: python becomes docker.io/library/python:latest.
func normalize(ref string) (string, error) {
	invalid := errdefs.New(errdefs.InvalidArgument, "image reference is invalid")
	if ref == "" || len(ref) > maxRefBytes || strings.ContainsAny(ref, " \t\r\n\x00") || strings.Contains(ref, "://") {
		return "", invalid
	}
	host, _, ok := strings.Cut(ref, "/")
	if !ok {
		ref = defaultRegistry + "/library/" + ref
	} else if host != "localhost" && !strings.ContainsAny(host, ".:") {
		ref = defaultRegistry + "/" + ref
	}
	spec, err := reference.Parse(ref)
	if err != nil {
		return "", invalid.WithCause(err)
	}
	if spec.Object == "" {
		spec.Object = defaultTag
	}
	if tag, _, pinned := strings.Cut(spec.Object, "@"); pinned && spec.Digest().Validate() != nil || !pinned && !tagPattern.MatchString(tag) {
		return "", invalid
	}
	return spec.String(), nil
}
