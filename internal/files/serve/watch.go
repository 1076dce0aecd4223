package serve

import (
	"net/http"

	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

// watchFiles streams a watch's lines. A client that reads slowly makes events
// gather in the subscription, which is bounded.
func (s *server) watchFiles(w http.ResponseWriter, r *http.Request) error {
	path, err := s.pathOf(r)
	if err != nil {
		return err
	}
	recursive, err := answer.Flag(r, "recursive")
	if err != nil {
		return err
	}
	sub, err := s.watches.Subscribe(path, recursive)
	if err != nil {
		return err
	}
	defer sub.Close()
	w.Header().Set("Content-Type", answer.NDJSON)
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	send := func(lines []procapi.WatchLine) error {
		for _, line := range lines {
			if err := answer.Line(w, line); err != nil {
				return err
			}
		}
		return flush()
	}
	err = send([]procapi.WatchLine{{Path: sub.Path()}})
	if err == nil {
		err = sub.Run(r.Context(), send)
	}
	if err != nil {
		panic(http.ErrAbortHandler) // a clean end would say that the directory has gone
	}
	return nil
}
