// Package imageref reads references to container images.
//
// A reference is a tenant's word that chooses which host a node speaks to and
// which repository it reads: the API server, which decides what a team may name,
// and the node, which pulls, must read it alike. The package speaks to nobody.
package imageref

import (
	"errors"
	"regexp"
	"slices"
	"strings"
)

// What short references are completed with, as everybody's tools do.
const (
	DefaultRegistry = "docker.io"
	defaultTag      = "latest"
)

const maxBytes = 512

// Ref is an image's name, complete. Digest, if there is one, says which image it
// is; else Tag does, at the moment somebody asks.
type Ref struct {
	Registry   string // host or host:port
	Repository string
	Tag        string
	Digest     string // sha256:…
}

var (
	hostPattern      = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?$`)
	componentPattern = `[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*`
	repoPattern      = regexp.MustCompile(`^` + componentPattern + `(/` + componentPattern + `)*$`)
	tagPattern       = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	digestPattern    = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// ErrInvalid is the error of every reference that can't be read.
var ErrInvalid = errors.New("image reference is invalid: want [registry/]repository[:tag][@sha256:digest]")

// Parse reads and completes a reference: python becomes docker.io/library/python:latest.
func Parse(s string) (Ref, error) {
	if s == "" || len(s) > maxBytes {
		return Ref{}, ErrInvalid
	}
	var r Ref
	s, digest, pinned := strings.Cut(s, "@")
	if pinned {
		if !digestPattern.MatchString(digest) {
			return Ref{}, ErrInvalid
		}
		r.Digest = digest
	}
	if colon := strings.LastIndexByte(s, ':'); colon > strings.LastIndexByte(s, '/') {
		s, r.Tag = s[:colon], s[colon+1:]
		if !tagPattern.MatchString(r.Tag) {
			return Ref{}, ErrInvalid
		}
	} else if !pinned {
		r.Tag = defaultTag
	}
	r.Registry, r.Repository = splitRegistry(s)
	if !hostPattern.MatchString(r.Registry) || !ValidRepository(r.Repository) {
		return Ref{}, ErrInvalid
	}
	return r, nil
}

func splitRegistry(s string) (registry, repository string) {
	host, rest, ok := strings.Cut(s, "/")
	switch {
	case !ok:
		return DefaultRegistry, "library/" + s
	case host == "index.docker.io" || host == DefaultRegistry:
		if !strings.Contains(rest, "/") {
			rest = "library/" + rest
		}
		return DefaultRegistry, rest
	case host != "localhost" && !strings.ContainsAny(host, ".:"):
		return DefaultRegistry, s
	}
	return strings.ToLower(host), rest
}

// ValidRepository says whether a repository's name may be.
func ValidRepository(name string) bool { return len(name) <= 255 && repoPattern.MatchString(name) }

// ValidTag says whether a tag may be.
func ValidTag(tag string) bool { return tagPattern.MatchString(tag) }

// ValidDigest says whether a digest is one that we know: sha256.
func ValidDigest(digest string) bool { return digestPattern.MatchString(digest) }

// Name is the reference without tag and digest.
func (r Ref) Name() string { return r.Registry + "/" + r.Repository }

// String is the reference, complete: by digest when it has one.
func (r Ref) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest
	}
	return r.Name() + ":" + r.Tag
}

// Pinned is the reference by a digest.
func (r Ref) Pinned(digest string) Ref {
	r.Tag, r.Digest = "", digest
	return r
}

// Registries is which registries images may come from: hosts, with the port that
// references name, if they name one, or * for any.
type Registries []string

// Public are the registries that everybody knows: what a server that was told
// nothing else lets templates name.
var Public = Registries{
	DefaultRegistry, "ghcr.io", "quay.io", "gcr.io", "registry.k8s.io", "public.ecr.aws", "mcr.microsoft.com", "registry.gitlab.com",
}

// Lists says whether a registry is named: its operator vouches for it, whatever
// its address is.
func (l Registries) Lists(registry string) bool { return slices.Contains(l, registry) }

// Allows says whether images may come from a registry.
func (l Registries) Allows(registry string) bool { return l.Lists(registry) || slices.Contains(l, "*") }
