package images

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
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
		return Image{}, refusal(errdefs.Unprocessable, "image %s: %v", ref, err)
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

// normalize completes a reference: python becomes docker.io/library/python:latest.
func normalize(ref string) (string, error) {
	r, err := parse(ref)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

func parse(ref string) (imageref.Ref, error) {
	r, err := imageref.Parse(ref)
	if err != nil {
		return imageref.Ref{}, refusal(errdefs.InvalidArgument, "%v", err)
	}
	return r, nil
}
