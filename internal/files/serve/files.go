// Package serve has procapi's calls of files, for one tree: the same for a sandbox's, to
// which procd has them, and for a volume's.
//
// Memory does not grow with a file or a tree. The package keeps no state but a Watcher's
// counts; whoever serves says who may call.
package serve

import (
	"io"
	"net/http"
	"strconv"

	"s0.run/internal/files"
	"s0.run/internal/files/watch"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

// copyBuffer is the piece in which a file is sent: a few frames.
const copyBuffer = 256 << 10

type server struct {
	tree    files.Tree
	watches *watch.Watcher
}

// Routes are the calls, by their patterns.
func Routes(tree files.Tree, watches *watch.Watcher) map[string]answer.Handler {
	s := &server{tree, watches}
	return map[string]answer.Handler{
		"GET " + procapi.PathFiles:            s.readFile,
		"POST " + procapi.PathFiles:           s.writeFile,
		"DELETE " + procapi.PathFiles:         s.removeFile,
		"GET " + procapi.PathFiles + "/stat":  s.statFile,
		"GET " + procapi.PathFiles + "/list":  s.listFiles,
		"POST " + procapi.PathFiles + "/move": s.moveFile,
		"GET " + procapi.PathFiles + "/watch": s.watchFiles,

		"GET " + procapi.PathFiles + "/archive": s.packFiles,
		"PUT " + procapi.PathFiles + "/archive": s.unpackFiles,
		"POST " + procapi.PathFiles + "/search": s.searchFiles,
	}
}

func (s *server) readFile(w http.ResponseWriter, r *http.Request) error {
	path, err := s.pathOf(r)
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
	path, err := s.pathOf(r)
	if err != nil {
		return err
	}
	mkdir, err := answer.Flag(r, "mkdir")
	if err != nil {
		return err
	}
	if mkdir {
		return s.makeDirectory(w, r, path)
	}
	if r.ContentLength > procapi.MaxFileBytes {
		return files.TooLarge(procapi.MaxFileBytes)
	}
	if err := s.tree.Write(path, r.Body, procapi.MaxFileBytes); err != nil {
		return err
	}
	return answer.Done(w, "written")
}

func (s *server) makeDirectory(w http.ResponseWriter, r *http.Request, path string) error {
	recursive, err := answer.Flag(r, "recursive")
	if err != nil {
		return err
	}
	if err := s.tree.Mkdir(path, recursive); err != nil {
		return err
	}
	answer.Write(w, http.StatusCreated, map[string]bool{"created": true})
	return nil
}

func (s *server) removeFile(w http.ResponseWriter, r *http.Request) error {
	path, err := s.pathOf(r)
	if err != nil {
		return err
	}
	if err := s.tree.Remove(path); err != nil {
		return err
	}
	return answer.Done(w, "deleted")
}

func (s *server) statFile(w http.ResponseWriter, r *http.Request) error {
	path, err := s.pathOf(r)
	if err != nil {
		return err
	}
	info, err := files.Stat(path)
	if err != nil {
		return err
	}
	return answer.OK(w, info)
}

func (s *server) listFiles(w http.ResponseWriter, r *http.Request) error {
	path, err := s.pathOf(r)
	if err != nil {
		return err
	}
	entries, err := files.List(path)
	if err != nil {
		return err
	}
	return answer.OK(w, procapi.FileList{Entries: entries})
}

func (s *server) moveFile(w http.ResponseWriter, r *http.Request) error {
	var in procapi.MoveRequest
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	source, err := s.tree.Resolve(in.Source)
	if err != nil {
		return err
	}
	destination, err := s.tree.Resolve(in.Destination)
	if err != nil {
		return err
	}
	if err := s.tree.Move(r.Context(), source, destination); err != nil {
		return err
	}
	return answer.Done(w, "moved")
}

// pathOf is the file that a request names.
func (s *server) pathOf(r *http.Request) (string, error) {
	path, err := answer.Query(r, "path")
	if err != nil {
		return "", err
	}
	return s.tree.Resolve(path)
}
