package rpc

import (
	"io"
	"net/http"
	"net/url"
	"strconv"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/files"
)

// copyBuffer is the piece in which a file is sent: a few frames.
const copyBuffer = 256 << 10

func (s *server) readFile(w http.ResponseWriter, r *http.Request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	f, size, err := files.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	w.WriteHeader(http.StatusOK)
	// Hidden, for the response writer would copy by itself in small pieces.
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(f, size), make([]byte, min(size+1, copyBuffer)))
	if err != nil || n != size { // it has shrunk, or the reader has gone
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *server) writeFile(w http.ResponseWriter, r *http.Request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	mkdir, err := flagOf(r, "mkdir")
	if err != nil {
		return err
	}
	if mkdir {
		return s.makeDirectory(w, r, path)
	}
	if r.ContentLength > procapi.MaxFileBytes {
		return files.TooLarge(procapi.MaxFileBytes)
	}
	if err := files.Write(path, r.Body, procapi.MaxFileBytes); err != nil {
		return err
	}
	return done(w, "written")
}

func (s *server) makeDirectory(w http.ResponseWriter, r *http.Request, path string) error {
	recursive, err := flagOf(r, "recursive")
	if err != nil {
		return err
	}
	if err := files.Mkdir(path, recursive); err != nil {
		return err
	}
	write(w, http.StatusCreated, map[string]bool{"created": true})
	return nil
}

func (s *server) removeFile(w http.ResponseWriter, r *http.Request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	if err := files.Remove(path); err != nil {
		return err
	}
	return done(w, "deleted")
}

func (s *server) statFile(w http.ResponseWriter, r *http.Request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	info, err := files.Stat(path)
	if err != nil {
		return err
	}
	return ok(w, info)
}

func (s *server) listFiles(w http.ResponseWriter, r *http.Request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	entries, err := files.List(path)
	if err != nil {
		return err
	}
	return ok(w, procapi.FileList{Entries: entries})
}

func (s *server) moveFile(w http.ResponseWriter, r *http.Request) error {
	var in procapi.MoveRequest
	if err := decode(w, r, &in); err != nil {
		return err
	}
	source, err := files.Resolve(in.Source)
	if err != nil {
		return err
	}
	destination, err := files.Resolve(in.Destination)
	if err != nil {
		return err
	}
	if err := files.Move(source, destination); err != nil {
		return err
	}
	return done(w, "moved")
}

// pathOf is the file that a request names.
func pathOf(r *http.Request) (string, error) {
	path, err := queryOf(r, "path")
	if err != nil {
		return "", err
	}
	return files.Resolve(path)
}

// flagOf is a query parameter that is true or false.
func flagOf(r *http.Request, name string) (bool, error) {
	v, err := queryOf(r, name)
	if err != nil || v == "" {
		return false, err
	}
	flag, err := strconv.ParseBool(v)
	if err != nil {
		return false, invalid("%s: want true or false", name)
	}
	return flag, nil
}

// queryOf is a query parameter that appears at most once.
func queryOf(r *http.Request, name string) (string, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", invalid("malformed query")
	}
	if len(values[name]) > 1 {
		return "", invalid("%s appears twice", name)
	}
	return values.Get(name), nil
}
