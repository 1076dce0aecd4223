package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
	"s0.run/internal/regauth"
	"s0.run/registry/internal/store"
)

// A call is one request for a repository.
type call struct {
	*http.Request
	w     http.ResponseWriter
	grant regauth.Grant
	repo  string
	ref   string // what follows the verb: a digest, a tag, an upload's id
}

// problem is an error in the protocol's words.
type problem struct {
	status     int
	code, text string
}

func (p problem) Error() string { return p.text }

// The protocol's errors.
var (
	errName      = problem{http.StatusNotFound, "NAME_INVALID", "there is no such place here"}
	errUnknown   = problem{http.StatusNotFound, "MANIFEST_UNKNOWN", "there is no such image"}
	errBlob      = problem{http.StatusNotFound, "BLOB_UNKNOWN", "there is no such content"}
	errUpload    = problem{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "there is no such upload"}
	errDigest    = problem{http.StatusBadRequest, "DIGEST_INVALID", "the content does not match its digest"}
	errMissing   = problem{http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "the manifest names content that was not pushed to this repository"}
	errRange     = problem{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the upload does not go on where it was"}
	errTooLarge  = problem{http.StatusRequestEntityTooLarge, "SIZE_INVALID", fmt.Sprintf("want at most %d bytes a layer", int64(maxBlobBytes))}
	errUploads   = problem{http.StatusTooManyRequests, "TOOMANYREQUESTS", "too many uploads are under way"}
	errFull      = problem{http.StatusInsufficientStorage, "DENIED", "the registry's disk is too full for more"}
	errQuota     = problem{http.StatusForbidden, "DENIED", "your team's images take more than they may; remove some"}
	errMethod    = problem{http.StatusMethodNotAllowed, "UNSUPPORTED", "this can't be done here"}
	errWho       = problem{http.StatusUnauthorized, "UNAUTHORIZED", "get credentials with `s0 template image credentials`"}
	errForbidden = problem{http.StatusForbidden, "DENIED", "your credential does not allow this"}
)

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w = patient{w}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	// The last request on the connection may have left its own. What a handler does
	// not read of a body, the server does, of whoever sent it.
	setWriteDeadline(w)
	setReadDeadline(w, metaTimeout)
	if err := r.serve(w, req); err != nil {
		r.fail(w, req, err)
	}
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) error {
	grant, err := r.who(req)
	if err != nil {
		return err
	}
	path := req.URL.Path
	switch {
	case path == regauth.InUsePath:
		return r.putInUse(w, req, grant)
	case path == "/v2/" || path == "/v2":
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}"))
		return nil
	}
	c := &call{Request: req, w: w, grant: grant}
	handle := c.route(strings.TrimPrefix(path, "/v2/"))
	if handle == nil || !strings.HasPrefix(path, "/v2/") || !imageref.ValidRepository(c.repo) {
		return errName
	}
	if err := c.allowed(); err != nil {
		return err
	}
	return handle(r, c)
}

// who reads the credential. Without one, everybody is asked for it.
func (r *Registry) who(req *http.Request) (regauth.Grant, error) {
	user, password, ok := req.BasicAuth()
	if !ok {
		return regauth.Grant{}, errWho
	}
	g, err := r.cfg.Key.Open(user, password, r.now())
	if err != nil {
		return regauth.Grant{}, problem{errWho.status, errWho.code, err.Error()}
	}
	return g, nil
}

type handler func(*Registry, *call) error

// route finds the verb from behind: a repository's name has folders.
func (c *call) route(path string) handler {
	for _, v := range []struct {
		verb   string
		handle handler
	}{{"/blobs/uploads/", (*Registry).uploads}, {"/manifests/", (*Registry).manifests}, {"/blobs/", (*Registry).blobs}} {
		if i := strings.LastIndex(path, v.verb); i > 0 {
			c.repo, c.ref = path[:i], path[i+len(v.verb):]
			return v.handle
		}
	}
	if repo, ok := strings.CutSuffix(path, "/blobs/uploads"); ok {
		c.repo = repo
		return (*Registry).uploads
	}
	if repo, ok := strings.CutSuffix(path, "/tags/list"); ok {
		c.repo = repo
		return (*Registry).tags
	}
	return nil
}

// allowed holds the grant against what the method does. What may not be read does
// not exist.
func (c *call) allowed() error {
	reads := c.Method == http.MethodGet || c.Method == http.MethodHead
	switch {
	case reads && c.grant.MayPull(c.repo), !reads && c.grant.MayPush(c.repo):
		return nil
	case len(c.grant.Push) == 1 && c.grant.Push[0] != regauth.Everything:
		return problem{errForbidden.status, errForbidden.code, "your team's images lie below " + c.grant.Push[0] + "/"}
	}
	return errForbidden
}

// fail answers an error. What is no problem of the client's is logged.
func (r *Registry) fail(w http.ResponseWriter, req *http.Request, err error) {
	var p problem
	if !errors.As(err, &p) {
		p = known(err)
	}
	if p.status >= http.StatusInternalServerError {
		r.cfg.Log.Warn("registry call failed", "method", req.Method, "path", req.URL.Path, "error", err)
	}
	if p.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="s0"`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(p.status)
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	_ = json.NewEncoder(w).Encode(struct { // the client is gone otherwise
		Errors []entry `json:"errors"`
	}{[]entry{{p.code, p.text}}})
}

// known puts the store's errors into the protocol's words.
func known(err error) problem {
	for _, k := range []struct {
		err error
		p   problem
	}{
		{store.ErrNotFound, errBlob}, {store.ErrDigest, errDigest}, {store.ErrMissing, errMissing},
		{store.ErrTooLarge, errTooLarge}, {store.ErrRange, errRange}, {store.ErrUploads, errUploads},
	} {
		if errors.Is(err, k.err) {
			return k.p
		}
	}
	switch {
	case errdefs.Is(err, errdefs.Exhausted):
		return errFull
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problem{http.StatusRequestTimeout, "BLOB_UPLOAD_INVALID", "nothing came for too long"}
	}
	return problem{http.StatusInternalServerError, "UNKNOWN", "the registry failed"}
}

// putInUse takes the list of images in use.
func (r *Registry) putInUse(w http.ResponseWriter, req *http.Request, grant regauth.Grant) error {
	switch {
	case !grant.Admin:
		return errForbidden
	case req.Method != http.MethodPut:
		return errMethod
	}
	var list regauth.InUse
	if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, 64<<20)).Decode(&list); err != nil {
		return problem{http.StatusBadRequest, "UNSUPPORTED", "the list can't be read"}
	}
	if err := r.inUse(list); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
