package httpapi

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// uploadTimeout bounds one file's way into a sandbox: 100 MiB over a slow line.
const uploadTimeout = 15 * time.Minute

var copyBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

func fileQuery(path string) url.Values { return url.Values{"path": {path}} }

// place is whose files a call is about: a sandbox's or a volume's.
type place struct {
	to  dataplane.Target
	err error // it is none
}

func placeOf(r *http.Request, id string) place {
	to, err := target(r, id)
	return place{to, err}
}

// ReadFile implements GET /api/v1/sandboxes/{id}/files.
func (a *API) ReadFile(w http.ResponseWriter, r *http.Request, id string, params openapi.ReadFileParams) {
	a.readFile(w, r, placeOf(r, id), params.Path)
}

// readFile's memory does not grow with the file, in whichever form it is asked for.
func (a *API) readFile(w http.ResponseWriter, r *http.Request, p place, path string) {
	err := p.err
	var resp *http.Response
	if err == nil {
		resp, err = a.cfg.Plane.Stream(r.Context(), p.to, dataplane.Request{
			Method: http.MethodGet, Path: procapi.PathFiles, Query: fileQuery(path), Timeout: dataplane.CallTimeout,
		})
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer resp.Body.Close()
	if wantsJSON(r) {
		err = writeBase64(w, resp.Body)
	} else {
		err = writeRaw(w, resp)
	}
	if err != nil {
		panic(http.ErrAbortHandler) // an end that looks clean would look complete
	}
}

func wantsJSON(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "application/json") || strings.Contains(r.Header.Get("Content-Type"), "application/json")
}

func writeRaw(w http.ResponseWriter, resp *http.Response) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	if resp.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.WriteHeader(http.StatusOK)
	return copyPaced(w, w, resp.Body)
}

func writeBase64(w http.ResponseWriter, body io.Reader) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if _, err := io.WriteString(w, `{"success":true,"data":{"encoding":"base64","content":"`); err != nil {
		return err
	}
	enc := base64.NewEncoder(base64.StdEncoding, w)
	if err := copyPaced(w, enc, body); err != nil {
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\"}}\n")
	return err
}

// copyPaced copies to a client that has to take each chunk in time (A09).
func copyPaced(w http.ResponseWriter, dst io.Writer, src io.Reader) error {
	rc := http.NewResponseController(w)
	buf := copyBuffers.Get().(*[64 << 10]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			rc.SetWriteDeadline(time.Now().Add(chunkTimeout))
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// WriteFile implements POST /api/v1/sandboxes/{id}/files.
func (a *API) WriteFile(w http.ResponseWriter, r *http.Request, id string, params openapi.WriteFileParams) {
	a.writeFile(w, r, placeOf(r, id), params)
}

func (a *API) writeFile(w http.ResponseWriter, r *http.Request, p place, params openapi.WriteFileParams) {
	err := p.err
	if value(params.Mkdir) {
		if err == nil {
			err = a.mkdir(r, p.to, params)
		}
		a.answer(w, r, http.StatusCreated, openapi.Created{Created: true}, err)
		return
	}
	if err == nil {
		err = a.upload(w, r, p.to, uploading{
			method: http.MethodPost, path: procapi.PathFiles, query: fileQuery(params.Path), contentType: "application/octet-stream",
			limit: procapi.MaxFileBytes, tooLarge: p.tooLarge(errFileTooLarge), timeout: uploadTimeout,
		})
	}
	a.answer(w, r, http.StatusOK, openapi.Written{Written: true}, err)
}

func (a *API) mkdir(r *http.Request, to dataplane.Target, params openapi.WriteFileParams) error {
	q := fileQuery(params.Path)
	q.Set("mkdir", "true")
	if value(params.Recursive) {
		q.Set("recursive", "true")
	}
	return a.cfg.Plane.Call(r.Context(), to, dataplane.Request{
		Method: http.MethodPost, Path: procapi.PathFiles, Query: q, Timeout: dataplane.CallTimeout,
	}, nil, nil, nil)
}

var errFileTooLarge = errdefs.WithCode(errdefs.TooLarge, "file_too_large", "the file is larger than %d bytes", procapi.MaxFileBytes)

// uploading is a request whose body is the client's.
type uploading struct {
	method, path string
	query        url.Values
	contentType  string

	limit    int64
	tooLarge error
	timeout  time.Duration // for all of it
	out      any           // what the answer is decoded into; nil: nothing
}

func (a *API) upload(w http.ResponseWriter, r *http.Request, to dataplane.Target, req uploading) error {
	if r.ContentLength > req.limit {
		return req.tooLarge
	}
	rc := http.NewResponseController(w)
	rc.SetWriteDeadline(time.Now().Add(req.timeout + replyTimeout))
	up := &upload{body: r.Body, rc: rc, left: req.limit, tooLarge: req.tooLarge, ended: r.ContentLength == 0}
	err := a.cfg.Plane.Call(r.Context(), to, dataplane.Request{
		Method: req.method, Path: req.path, Query: req.query, Timeout: req.timeout,
		Header: http.Header{"Content-Type": {req.contentType}}, Body: up, Length: r.ContentLength,
	}, nil, req.out, nil)
	if own := up.stop(); own != nil {
		return own // the sandbox only saw the upload break off
	}
	return err
}

// upload is a client's body on its way: each chunk must come in time, and not too
// many of them.
type upload struct {
	body     io.Reader
	rc       *http.ResponseController
	left     int64
	tooLarge error

	mu      sync.Mutex
	stopped bool
	ended   bool
	err     error // what is wrong with the client's side; nil while nothing is
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	if !u.pace() {
		return 0, io.ErrClosedPipe
	}
	n, err := u.body.Read(p)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.left -= int64(n)
	switch {
	case u.left < 0:
		u.err = u.tooLarge
		return 0, u.err
	case err == io.EOF:
		u.ended = true
		u.rc.SetReadDeadline(time.Time{}) // the sandbox may take its time to answer
	case err != nil && !u.stopped:
		u.err = errdefs.New(errdefs.InvalidArgument, "the body broke off").WithCause(err)
	}
	return n, err
}

func (u *upload) pace() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.stopped {
		u.rc.SetReadDeadline(time.Now().Add(chunkTimeout))
	}
	return !u.stopped
}

// stop ends the reading, for the connection is not the upload's any more when the
// request is answered: the HTTP client may be reading still. It answers what was
// wrong with the client's side.
func (u *upload) stop() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stopped = true
	if !u.ended {
		u.rc.SetReadDeadline(time.Now())
	}
	return u.err
}

// DeleteFile implements DELETE /api/v1/sandboxes/{id}/files.
func (a *API) DeleteFile(w http.ResponseWriter, r *http.Request, id string, params openapi.DeleteFileParams) {
	a.deleteFile(w, r, placeOf(r, id), params.Path)
}

func (a *API) deleteFile(w http.ResponseWriter, r *http.Request, p place, path string) {
	err := a.callFiles(r, p, dataplane.Request{Method: http.MethodDelete, Path: procapi.PathFiles, Query: fileQuery(path)}, nil, nil, nil)
	a.answer(w, r, http.StatusOK, openapi.Deleted{Deleted: true}, err)
}

// StatFile implements GET /api/v1/sandboxes/{id}/files/stat.
func (a *API) StatFile(w http.ResponseWriter, r *http.Request, id string, params openapi.StatFileParams) {
	a.statFile(w, r, placeOf(r, id), params.Path)
}

func (a *API) statFile(w http.ResponseWriter, r *http.Request, p place, path string) {
	var out openapi.FileInfo
	err := a.callFiles(r, p, dataplane.Request{Method: http.MethodGet, Path: procapi.PathFiles + "/stat", Query: fileQuery(path)},
		nil, &out, func() error { return checkFile(out) })
	a.answer(w, r, http.StatusOK, out, err)
}

// ListFiles implements GET /api/v1/sandboxes/{id}/files/list.
func (a *API) ListFiles(w http.ResponseWriter, r *http.Request, id string, params openapi.ListFilesParams) {
	a.listFiles(w, r, placeOf(r, id), params.Path)
}

func (a *API) listFiles(w http.ResponseWriter, r *http.Request, p place, path string) {
	var out openapi.FileList
	err := a.callFiles(r, p, dataplane.Request{Method: http.MethodGet, Path: procapi.PathFiles + "/list", Query: fileQuery(path)},
		nil, &out, func() error {
			for _, f := range out.Entries {
				if err := checkFile(f); err != nil {
					return err
				}
			}
			return nil
		})
	if out.Entries == nil {
		out.Entries = []openapi.FileInfo{}
	}
	a.answer(w, r, http.StatusOK, out, err)
}

func checkFile(f openapi.FileInfo) error {
	if !f.Type.Valid() {
		return fmt.Errorf("file type %.20q", f.Type)
	}
	return nil
}

// MoveFile implements POST /api/v1/sandboxes/{id}/files/move.
func (a *API) MoveFile(w http.ResponseWriter, r *http.Request, id string) {
	a.moveFile(w, r, placeOf(r, id))
}

func (a *API) moveFile(w http.ResponseWriter, r *http.Request, p place) {
	var req openapi.MoveFileRequest
	err := decode(w, r, controlBytes, &req, "source", "destination")
	if err == nil {
		err = a.callFiles(r, p, dataplane.Request{Method: http.MethodPost, Path: procapi.PathFiles + "/move"}, req, nil, nil)
	}
	a.answer(w, r, http.StatusOK, openapi.Moved{Moved: true}, err)
}

func (a *API) callFiles(r *http.Request, p place, req dataplane.Request, in, out any, check func() error) error {
	if p.err != nil {
		return p.err
	}
	req.Timeout = dataplane.CallTimeout
	return a.cfg.Plane.Call(r.Context(), p.to, req, in, out, check)
}
