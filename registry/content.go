package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"s0.run/internal/imageref"
	"s0.run/internal/regauth"
	"s0.run/registry/internal/store"
)

func setReadDeadline(w http.ResponseWriter, d time.Duration) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(d)) // a connection that can't has ended
}

func setWriteDeadline(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(pieceTimeout))
}

// blobs serves content.
func (r *Registry) blobs(c *call) error {
	if !imageref.ValidDigest(c.ref) {
		return errDigest
	}
	hex := hexOf(c.ref)
	switch c.Method {
	case http.MethodHead: // a push asks so before it names content
		size, err := r.store.Want(c.repo, hex)
		if err != nil {
			return err
		}
		c.describe("application/octet-stream", c.ref, size)
		return nil
	case http.MethodGet:
		f, _, err := r.store.Blob(c.repo, hex)
		if err != nil {
			return err
		}
		defer f.Close()
		c.w.Header().Set("Content-Type", "application/octet-stream")
		c.w.Header().Set("Docker-Content-Digest", c.ref)
		http.ServeContent(c.w, c.Request, "", time.Time{}, f) // with ranges: who broke off goes on
		return nil
	}
	return errMethod
}

func (c *call) describe(mediaType, digest string, size int64) {
	h := c.w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Docker-Content-Digest", digest)
	h.Set("Content-Length", strconv.FormatInt(size, 10))
}

// patient answers for as long as something passes, and also when what was sent
// before took its time.
type patient struct{ http.ResponseWriter }

// Unwrap is for [http.ResponseController].
func (p patient) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (p patient) WriteHeader(status int) {
	setWriteDeadline(p.ResponseWriter)
	p.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (p patient) Write(b []byte) (int, error) {
	setWriteDeadline(p.ResponseWriter)
	return p.ResponseWriter.Write(b)
}

// incoming reads a body for as long as something comes.
type incoming struct {
	w    http.ResponseWriter
	body io.Reader
	room func() error
	left int64 // bytes until the next look at the disk
}

const roomEvery = 64 << 20

func (i *incoming) Read(b []byte) (int, error) {
	if i.left <= 0 {
		if err := i.room(); err != nil {
			return 0, err
		}
		i.left = roomEvery
	}
	setReadDeadline(i.w, pieceTimeout)
	n, err := i.body.Read(b)
	i.left -= int64(n)
	return n, err
}

// uploads takes content: begun with POST, sent with PATCH in pieces, ended with
// PUT and its digest.
func (r *Registry) uploads(c *call) error {
	if c.ref == "" {
		if c.Method != http.MethodPost {
			return errMethod
		}
		return r.beginUpload(c)
	}
	u, err := r.store.Upload(c.repo, c.ref)
	if err != nil {
		return errUpload
	}
	switch c.Method {
	case http.MethodGet:
		return c.accepted(u, http.StatusNoContent)
	case http.MethodPatch:
		if err := r.receive(c, u); err != nil {
			return err
		}
		return c.accepted(u, http.StatusAccepted)
	case http.MethodPut:
		return r.endUpload(c, u)
	case http.MethodDelete:
		r.store.Abort(u)
		c.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return errMethod
}

func (r *Registry) beginUpload(c *call) error {
	if err := errors.Join(r.cfg.Room(), r.quota(c)); err != nil {
		return err
	}
	q := c.URL.Query()
	if digest, from := q.Get("mount"), q.Get("from"); digest != "" && imageref.ValidDigest(digest) && c.grant.MayPull(from) {
		if err := r.store.Mount(c.repo, from, hexOf(digest)); err == nil {
			return c.created(digest)
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	u, err := r.store.Begin(c.repo, func(repo string) bool { return sameOwner(repo, c.repo) }, maxUploadsPerTeam)
	if err != nil {
		return err
	}
	if q.Get("digest") != "" { // all in one request
		return r.endUpload(c, u)
	}
	return c.accepted(u, http.StatusAccepted)
}

// sameOwner says whether two repositories are one team's.
func sameOwner(a, b string) bool { return owner(a) == owner(b) }

func owner(repo string) string {
	first, _, _ := strings.Cut(repo, "/")
	return first
}

// quota refuses more of a team that has a lot.
func (r *Registry) quota(c *call) error {
	if owner(c.repo) == regauth.PublicPrefix {
		return nil
	}
	used, err := r.store.Of(owner(c.repo) + "/")
	most := r.most
	if err == nil && (used.Bytes >= most.Bytes || used.Repositories >= most.Repositories || used.Manifests >= most.Manifests || used.Blobs >= most.Blobs) {
		return errQuota
	}
	return err
}

// receive adds a piece.
func (r *Registry) receive(c *call, u *store.Upload) error {
	offset := int64(-1)
	if span := c.Header.Get("Content-Range"); span != "" {
		first, _, ok := strings.Cut(span, "-")
		n, err := strconv.ParseInt(first, 10, 64)
		if !ok || err != nil || n < 0 {
			return errRange
		}
		offset = n
	}
	return r.store.Append(u, &incoming{w: c.w, body: c.Body, room: r.cfg.Room}, offset, maxBlobBytes)
}

func (r *Registry) endUpload(c *call, u *store.Upload) error {
	digest := c.URL.Query().Get("digest")
	if !imageref.ValidDigest(digest) {
		r.store.Abort(u)
		return errDigest
	}
	if err := r.receive(c, u); err != nil {
		return err // it may go on from here
	}
	if err := r.store.Finish(u, hexOf(digest)); err != nil {
		return err
	}
	return c.created(digest)
}

func (c *call) created(digest string) error {
	c.w.Header().Set("Location", "/v2/"+c.repo+"/blobs/"+digest)
	c.w.Header().Set("Docker-Content-Digest", digest)
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

func (c *call) accepted(u *store.Upload, status int) error {
	h := c.w.Header()
	h.Set("Location", "/v2/"+c.repo+"/blobs/uploads/"+u.ID)
	h.Set("Docker-Upload-Uuid", u.ID)
	h.Set("Range", fmt.Sprintf("0-%d", max(u.Size()-1, 0)))
	c.w.WriteHeader(status)
	return nil
}

// manifests serves and takes manifests.
func (r *Registry) manifests(c *call) error {
	byDigest := imageref.ValidDigest(c.ref)
	if !byDigest && !imageref.ValidTag(c.ref) {
		return errUnknown
	}
	switch c.Method {
	case http.MethodGet, http.MethodHead:
		return r.sendManifest(c)
	case http.MethodPut:
		return r.takeManifest(c, byDigest)
	case http.MethodDelete:
		err := r.store.Untag(c.repo, c.ref)
		if byDigest {
			err = r.store.Remove(c.repo, hexOf(c.ref))
		}
		if errors.Is(err, store.ErrNotFound) {
			return errUnknown
		}
		if err == nil {
			c.w.WriteHeader(http.StatusAccepted)
		}
		return err
	}
	return errMethod
}

func (r *Registry) sendManifest(c *call) error {
	tag, digest := c.ref, ""
	if imageref.ValidDigest(c.ref) {
		tag, digest = "", hexOf(c.ref)
	}
	hex, m, err := r.store.Manifest(c.repo, tag, digest)
	if errors.Is(err, store.ErrNotFound) {
		return errUnknown
	}
	if err != nil {
		return err
	}
	raw, err := r.store.Content(c.repo, hex, maxManifestBytes)
	if err != nil {
		return err
	}
	c.describe(m.Type, "sha256:"+hex, int64(len(raw)))
	if c.Method == http.MethodGet {
		_, _ = c.w.Write(raw)
	}
	return nil
}

func (r *Registry) takeManifest(c *call, byDigest bool) error {
	if err := errors.Join(r.cfg.Room(), r.quota(c)); err != nil {
		return err
	}
	raw, err := io.ReadAll(http.MaxBytesReader(c.w, c.Body, maxManifestBytes))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return problem{http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", fmt.Sprintf("want a manifest of at most %d bytes", maxManifestBytes)}
	}
	if err != nil {
		return problem{http.StatusBadRequest, "MANIFEST_INVALID", "the manifest broke off"}
	}
	mediaType, _, _ := strings.Cut(c.Header.Get("Content-Type"), ";")
	m, err := parseManifest(raw, mediaType)
	if err != nil {
		return problem{http.StatusBadRequest, "MANIFEST_INVALID", "the manifest can't be taken: " + err.Error()}
	}
	tag := c.ref
	if byDigest {
		tag = ""
		if sha256Of(raw) != c.ref {
			return errDigest
		}
	}
	hex, err := r.store.PutManifest(c.repo, tag, mediaType, raw, m.children())
	if err != nil {
		return err
	}
	c.w.Header().Set("Location", "/v2/"+c.repo+"/manifests/sha256:"+hex)
	c.w.Header().Set("Docker-Content-Digest", "sha256:"+hex)
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

// maxTags is how many tags one answer lists.
const maxTags = 1000

// tags lists a repository's.
func (r *Registry) tags(c *call) error {
	if c.Method != http.MethodGet {
		return errMethod
	}
	n := maxTags
	if asked := c.URL.Query().Get("n"); asked != "" {
		v, err := strconv.Atoi(asked)
		if err != nil || v < 0 {
			return problem{http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n: want a number"}
		}
		n = min(v, maxTags)
	}
	tags, err := r.store.Tags(c.repo, c.URL.Query().Get("last"), n)
	if errors.Is(err, store.ErrNotFound) {
		return problem{http.StatusNotFound, "NAME_UNKNOWN", "there is no such repository"}
	}
	if err != nil {
		return err
	}
	if len(tags) == n && n > 0 {
		c.w.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?n=%d&last=%s>; rel="next"`, c.repo, n, tags[n-1]))
	}
	return writeJSON(c.w, map[string]any{"name": c.repo, "tags": tags})
}
