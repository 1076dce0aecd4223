package registry

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"s0.run/internal/imageref"
)

// Media types of what a tag may name.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// manifest is what the registry reads of manifests and indexes: which content they
// name.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`
}

type descriptor struct {
	MediaType string   `json:"mediaType"`
	Digest    string   `json:"digest"`
	Size      int64    `json:"size"`
	URLs      []string `json:"urls"`
}

// parseManifest reads a manifest of a media type. Its text says to a client why
// it can't be taken.
func parseManifest(raw []byte, mediaType string) (m manifest, err error) {
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("it is no JSON that can be read: %w", err)
	}
	if m.MediaType == "" {
		m.MediaType = mediaType
	}
	parts := m.parts()
	switch {
	case m.SchemaVersion != 2:
		return m, errors.New("want schemaVersion 2")
	case m.MediaType != mediaType:
		return m, errors.New("its media type is not the one that it is sent with")
	case mediaType == ociManifest || mediaType == dockerManifest:
		if m.Config == nil || len(m.Manifests) > 0 {
			return m, errors.New("want a configuration and layers")
		}
	case mediaType == ociIndex || mediaType == dockerList:
		if m.Config != nil || len(m.Layers) > 0 || len(m.Manifests) == 0 {
			return m, errors.New("want manifests and nothing else")
		}
	default:
		return m, fmt.Errorf("media type %.100q is not one of images", mediaType)
	}
	if len(parts) > maxManifestParts {
		return m, fmt.Errorf("it names more than %d parts", maxManifestParts)
	}
	for _, p := range parts {
		if !imageref.ValidDigest(p.Digest) || p.Size < 0 || len(p.URLs) > 0 {
			return m, errors.New("want parts with a sha256 digest and a size, that lie here and not elsewhere")
		}
	}
	return m, nil
}

func (m manifest) parts() []descriptor {
	var all []descriptor
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	return append(append(all, m.Layers...), m.Manifests...)
}

// children are the hex digests of its parts.
func (m manifest) children() (all []string) {
	for _, p := range m.parts() {
		all = append(all, hexOf(p.Digest))
	}
	return all
}

// hexOf is the hex part of a digest that is valid.
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

func sha256Of(raw []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(raw)) }

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}
