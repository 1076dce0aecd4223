package httpapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	archiveTimeout = time.Hour             // for an archive's way into a sandbox: 2 GiB over a slow line
	packTimeout    = time.Minute           // until an archive begins: everything is looked at first
	searchTimeout  = 2 * time.Minute       // more than procd gives a search
	searchFlush    = 50 * time.Millisecond // how long matches may wait for more of them
)

// WatchFiles implements GET /api/v1/sandboxes/{id}/files/watch.
func (a *API) WatchFiles(w http.ResponseWriter, r *http.Request, id string) {
	a.watchFiles(w, r, placeOf(r, id))
}

func (a *API) watchFiles(w http.ResponseWriter, r *http.Request, p place) {
	err := p.err
	if err == nil {
		err = a.cfg.Sockets.Watch(w, r, p.to)
	}
	if err != nil {
		a.fail(w, r, err)
	}
}

// DownloadArchive implements GET /api/v1/sandboxes/{id}/files/archive.
func (a *API) DownloadArchive(w http.ResponseWriter, r *http.Request, id string, params openapi.DownloadArchiveParams) {
	a.downloadArchive(w, r, placeOf(r, id), params.Path)
}

func (a *API) downloadArchive(w http.ResponseWriter, r *http.Request, p place, path string) {
	err := p.err
	var resp *http.Response
	if err == nil {
		resp, err = a.cfg.Plane.Stream(r.Context(), p.to, dataplane.Request{
			Method: http.MethodGet, Path: procapi.PathFiles + "/archive", Query: fileQuery(path), Timeout: packTimeout,
		})
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", procapi.ArchiveType)
	w.WriteHeader(http.StatusOK)
	if err := copyPaced(w, w, resp.Body); err != nil {
		panic(http.ErrAbortHandler) // an end that looks clean would look complete
	}
}

var errArchiveTooLarge = errdefs.WithCode(errdefs.TooLarge, "file_too_large", "the archive is larger than %d bytes", procapi.MaxArchiveBody)

// UploadArchive implements PUT /api/v1/sandboxes/{id}/files/archive.
func (a *API) UploadArchive(w http.ResponseWriter, r *http.Request, id string, params openapi.UploadArchiveParams) {
	a.uploadArchive(w, r, placeOf(r, id), params.Path)
}

func (a *API) uploadArchive(w http.ResponseWriter, r *http.Request, p place, path string) {
	var out openapi.FileArchiveResult
	err := p.err
	if err == nil {
		err = a.upload(w, r, p.to, uploading{
			method: http.MethodPut, path: procapi.PathFiles + "/archive", query: fileQuery(path), contentType: procapi.ArchiveType,
			limit: procapi.MaxArchiveBody, tooLarge: p.tooLarge(errArchiveTooLarge), timeout: archiveTimeout, out: &out,
		})
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// SearchFiles implements POST /api/v1/sandboxes/{id}/files/search.
func (a *API) SearchFiles(w http.ResponseWriter, r *http.Request, id string) {
	a.searchFiles(w, r, placeOf(r, id))
}

func (a *API) searchFiles(w http.ResponseWriter, r *http.Request, p place) {
	resp, err := a.search(w, r, p)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	if err := passMatches(w, resp); err != nil {
		panic(http.ErrAbortHandler)
	}
}

func (a *API) search(w http.ResponseWriter, r *http.Request, p place) (*http.Response, error) {
	var req openapi.FileSearchRequest
	if err := decode(w, r, controlBytes, &req); err != nil {
		return nil, err
	}
	if p.err != nil {
		return nil, p.err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	return a.cfg.Plane.Stream(r.Context(), p.to, dataplane.Request{
		Method: http.MethodPost, Path: procapi.PathFiles + "/search", Header: http.Header{"Content-Type": {"application/json"}},
		Body: bytes.NewReader(body), Length: int64(len(body)), Timeout: searchTimeout,
	})
}

// passMatches passes on what procd finds, line by line as the contract has them. An
// error means that the summary has not come.
func passMatches(w http.ResponseWriter, resp *http.Response) error {
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, procapi.MaxSearchLine)
	rc := http.NewResponseController(w)
	for n, flushed := 0, time.Now(); lines.Scan(); n++ {
		line, err := matchLine(lines.Bytes(), n)
		if err != nil {
			return err
		}
		rc.SetWriteDeadline(time.Now().Add(chunkTimeout))
		if err := json.NewEncoder(w).Encode(line); err != nil {
			return err
		}
		if line.Summary != nil {
			return nil
		}
		if time.Since(flushed) >= searchFlush {
			flushed = time.Now()
			if err := rc.Flush(); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the search broke off: %w", lines.Err())
}

// matchLine checks line n of procd's.
func matchLine(b []byte, n int) (openapi.FileSearchLine, error) {
	var line openapi.FileSearchLine
	if err := json.Unmarshal(b, &line); err != nil {
		return line, err
	}
	switch {
	case n > procapi.MaxSearchResults, (line.Match == nil) == (line.Summary == nil):
		return line, fmt.Errorf("line %d of a search makes no sense", n)
	case line.Match != nil && !line.Match.Type.Valid():
		return line, fmt.Errorf("file type %.20q", line.Match.Type)
	case line.Summary != nil && line.Summary.Stopped != nil && !line.Summary.Stopped.Valid():
		return line, fmt.Errorf("reason %.20q", *line.Summary.Stopped)
	}
	return line, nil
}
