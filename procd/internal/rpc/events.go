package rpc

import (
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
)

// eventLineTimeout ends a stream whose reader takes nothing any more.
const eventLineTimeout = 30 * time.Second

// configureEvents turns the keeping of events on.
func (s *server) configureEvents(w http.ResponseWriter, r *http.Request) error {
	var in procapi.EventsConfig
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	if len(in.WatchDir) > procapi.MaxWatchDir || strings.ContainsRune(in.WatchDir, 0) {
		return answer.Invalid("watch_dir: want a path of at most %d bytes", procapi.MaxWatchDir)
	}
	s.cfg.Events.Enable()
	if in.WatchDir != "" && !filepath.IsAbs(in.WatchDir) {
		in.WatchDir = filepath.Join(procapi.Workspace, in.WatchDir)
	}
	s.cfg.WatchDir(in.WatchDir)
	return answer.OK(w, struct{}{})
}

// ackEvents forgets what is stored elsewhere.
func (s *server) ackEvents(w http.ResponseWriter, r *http.Request) error {
	var in procapi.EventsAck
	if err := answer.Decode(w, r, &in); err != nil {
		return err
	}
	s.cfg.Events.Ack(in.Through)
	return answer.OK(w, struct{}{})
}

// streamEvents sends the events behind a number, and then those that happen.
func (s *server) streamEvents(w http.ResponseWriter, r *http.Request) error {
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		return answer.Invalid("after: want a number")
	}
	w.Header().Set("Content-Type", "application/x-answer.NDJSON")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	for {
		lines, last, changed := s.cfg.Events.After(after)
		after = last
		_ = rc.SetWriteDeadline(time.Now().Add(eventLineTimeout))
		for _, l := range lines {
			if _, err := w.Write(l); err != nil {
				return nil
			}
		}
		if rc.Flush() != nil {
			return nil
		}
		_ = rc.SetWriteDeadline(time.Time{})
		if len(lines) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return nil
		}
	}
}
