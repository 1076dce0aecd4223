package rpc

import (
	"net/http"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

// warmLineTimeout ends a stream whose reader takes nothing any more.
const warmLineTimeout = 30 * time.Second

// streamWarm sends how the warm processes are, until the host goes or they have
// failed.
func (s *server) streamWarm(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/x-answer.NDJSON")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	_ = s.cfg.Warm.Watch(r.Context(), func(status procapi.WarmStatus) error {
		line, err := answer.Encode(status)
		if err != nil {
			return err
		}
		_ = rc.SetWriteDeadline(time.Now().Add(warmLineTimeout))
		if _, err := w.Write(line); err != nil {
			return err
		}
		return rc.Flush()
	})
	return nil
}
