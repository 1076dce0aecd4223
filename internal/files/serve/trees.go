package serve

import (
	"net/http"
	"time"

	"s0.run/internal/files/archive"
	"s0.run/internal/files/search"
	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

// flushEvery is how long matches may wait for more of them.
const flushEvery = 50 * time.Millisecond

// packFiles streams an archive. Memory does not grow with it.
func (s *server) packFiles(w http.ResponseWriter, r *http.Request) error {
	path, err := s.pathOf(r)
	if err != nil {
		return err
	}
	src, err := archive.Open(r.Context(), path, archive.ContractLimits)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", procapi.ArchiveType)
	w.WriteHeader(http.StatusOK)
	if err := src.Pack(r.Context(), w); err != nil {
		panic(http.ErrAbortHandler) // the reader must see that it is not whole
	}
	return nil
}

func (s *server) unpackFiles(w http.ResponseWriter, r *http.Request) error {
	path, err := s.pathOf(r)
	if err != nil {
		return err
	}
	result, err := archive.Unpack(s.tree, r.Body, path, archive.ContractLimits)
	if err != nil {
		return err
	}
	return answer.OK(w, result)
}

// searchFiles streams matches as they are found.
func (s *server) searchFiles(w http.ResponseWriter, r *http.Request) error {
	var in procapi.Search
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	query, err := search.Compile(s.tree, in)
	if err == nil {
		err = query.Check()
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", answer.NDJSON)
	w.WriteHeader(http.StatusOK)
	flush, flushed := http.NewResponseController(w).Flush, time.Now()
	summary, err := query.Run(r.Context(), func(m procapi.SearchMatch) error {
		err := answer.Line(w, procapi.SearchLine{Match: &m})
		if err != nil || time.Since(flushed) < flushEvery {
			return err
		}
		flushed = time.Now()
		return flush()
	})
	if err == nil {
		err = answer.Line(w, procapi.SearchLine{Summary: &summary})
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}
