package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"s0.run/internal/imageref"
)

// Load adds the one image of an OCI layout as repository:tag and returns its
// digest. Content that is there already is not copied again.
func (r *Registry) Load(layout, repository, tag string) (digest string, err error) {
	digest, err = r.load(layout, repository, tag)
	if err != nil {
		return "", fmt.Errorf("loading %s from %s: %w", repository, layout, err)
	}
	return digest, nil
}

func (r *Registry) load(layout, repository, tag string) (string, error) {
	raw, err := readMeta(filepath.Join(layout, "index.json"))
	if err != nil {
		return "", err
	}
	var index manifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return "", err
	}
	if len(index.Manifests) != 1 {
		return "", fmt.Errorf("the layout holds %d images: want 1", len(index.Manifests))
	}
	blob := func(d descriptor) (string, error) {
		if !imageref.ValidDigest(d.Digest) {
			return "", fmt.Errorf("digest %q can't be used", d.Digest)
		}
		return filepath.Join(layout, "blobs", "sha256", hexOf(d.Digest)), nil
	}
	path, err := blob(index.Manifests[0])
	if err != nil {
		return "", err
	}
	if raw, err = readMeta(path); err != nil {
		return "", err
	}
	m, err := parseManifest(raw, index.Manifests[0].MediaType)
	if err != nil {
		return "", err
	}
	for _, part := range m.parts() {
		path, err := blob(part)
		if err != nil {
			return "", err
		}
		if err := r.store.Add(repository, hexOf(part.Digest), part.Size, func() (io.ReadCloser, error) { return os.Open(path) }); err != nil {
			return "", err
		}
	}
	hex, err := r.store.PutManifest(repository, tag, m.MediaType, raw, m.children())
	if err == nil && "sha256:"+hex != index.Manifests[0].Digest {
		err = errors.New("its manifest does not match its digest")
	}
	return "sha256:" + hex, err
}

func readMeta(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err == nil && len(raw) > maxManifestBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxManifestBytes)
	}
	return raw, err
}
