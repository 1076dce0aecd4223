package mirror

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strconv"

	"s0.run/internal/files"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

// Routes are procapi's calls for a tree, by their patterns.
func Routes(tree files.Tree) map[string]answer.Handler {
	m := New(tree)
	return map[string]answer.Handler{
		"POST " + procapi.PathFiles + "/tree":    m.serveTree,
		"POST " + procapi.PathFiles + "/digests": m.serveDigests,
		"POST " + procapi.PathFiles + "/put":     m.servePut,
		"POST " + procapi.PathFiles + "/alter":   m.serveAlter,
	}
}

// maxQuestion is more than a question that says nothing takes.
const maxQuestion = 4 << 10

// begin answers before anything is read, which may take long: who waits for the answer's
// head must see that there is one.
func begin(w http.ResponseWriter) {
	w.Header().Set("Content-Type", answer.NDJSON)
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // a writer that can't is slower, and no worse
}

func (m Mirror) serveTree(w http.ResponseWriter, r *http.Request) error {
	// Whoever passes the question on over HTTP/1 must be done with it before there is an
	// answer. It says nothing.
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, maxQuestion))
	begin(w)
	sum, err := m.Walk(r.Context(), func(e procapi.TreeEntry) error { return answer.Line(w, procapi.TreeLine{Entry: &e}) })
	if err == nil {
		err = answer.Line(w, procapi.TreeLine{Summary: &sum})
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the reader must see that it is not whole
	}
	return nil
}

func (m Mirror) serveDigests(w http.ResponseWriter, r *http.Request) error {
	var in procapi.DigestRequest
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if len(in.Paths) > procapi.MaxDigests {
		return answer.Invalid("paths: at most %d", procapi.MaxDigests)
	}
	begin(w)
	err := func() error {
		for _, name := range in.Paths {
			e, err := m.Digest(r.Context(), name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = answer.Line(w, procapi.TreeLine{Entry: &e})
			}
			if err != nil {
				return err
			}
		}
		return answer.Line(w, procapi.TreeLine{Summary: &procapi.TreeSummary{}})
	}()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (m Mirror) servePut(w http.ResponseWriter, r *http.Request) error {
	name, err := answer.Query(r, "path")
	if err != nil {
		return err
	}
	want, err := answer.Query(r, "expect")
	if err != nil {
		return err
	}
	given, err := answer.Query(r, "mode")
	if err != nil {
		return err
	}
	mode, err := strconv.ParseUint(given, 8, 32)
	if err != nil {
		return answer.Invalid("mode: want octal digits")
	}
	e, err := m.Put(name, uint32(mode), want, r.Body, procapi.MaxFileBytes)
	if err != nil {
		return err
	}
	return answer.OK(w, e)
}

func (m Mirror) serveAlter(w http.ResponseWriter, r *http.Request) error {
	var in procapi.AlterRequest
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if len(in.Alterations) > procapi.MaxAlterations {
		return answer.Invalid("alterations: at most %d", procapi.MaxAlterations)
	}
	result, err := m.Alter(r.Context(), in.Alterations)
	if err != nil {
		return err
	}
	return answer.OK(w, result)
}
