package rpc

import (
	"net/http"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/archive"
	"s0.run/procd/internal/search"
)

// flushEvery is how long matches may wait for more of them.
const flushEvery = 50 * time.Millisecond

// packFiles streams an archive. Memory does not grow with it.
func (s *server) packFiles(w http.ResponseWriter, r *http.Request) error {
	path, err := pathOf(r)
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
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	result, err := archive.Unpack(r.Body, path, archive.ContractLimits)
	if err != nil {
		return err
	}
	return ok(w, result)
}

// searchFiles streams matches as they are found.
func (s *server) searchFiles(w http.ResponseWriter, r *http.Request) error {
	var in procapi.Search
	if err := decode(w, r, &in); err != nil {
		return err
	}
	query, err := search.Compile(in)
	if err == nil {
		err = query.Check()
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", ndjson)
	w.WriteHeader(http.StatusOK)
	flush, flushed := http.NewResponseController(w).Flush, time.Now()
	summary, err := query.Run(r.Context(), func(m procapi.SearchMatch) error {
		err := writeLine(w, procapi.SearchLine{Match: &m})
		if err != nil || time.Since(flushed) < flushEvery {
			return err
		}
		flushed = time.Now()
		return flush()
	})
	if err == nil {
		err = writeLine(w, procapi.SearchLine{Summary: &summary})
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}
