package rpc

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
	"s0.run/procd/internal/logbook"
)

// readLogs answers lines of the journal, at once or when there are some.
func (s *server) readLogs(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return answer.Invalid("the query is malformed")
	}
	q, wait, err := logQuery(query, s.cfg.Logs.Epoch())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	return answer.OK(w, s.cfg.Logs.Await(ctx, q))
}

func logQuery(query url.Values, epoch string) (q logbook.Query, wait time.Duration, err error) {
	q = logbook.Query{Limit: procapi.MaxLogLines, Context: query.Get(procapi.LogContext)}
	if v := query.Get(procapi.LogAfter); v != "" {
		if q.After, err = logPosition(v, epoch); err != nil {
			return q, 0, err
		}
	}
	if v := query.Get(procapi.LogLimit); v != "" {
		if q.Limit, err = strconv.Atoi(v); err != nil || q.Limit < 1 || q.Limit > procapi.MaxLogLines {
			return q, 0, answer.Invalid("%s: want 1 to %d", procapi.LogLimit, procapi.MaxLogLines)
		}
	}
	if v := query.Get(procapi.LogStream); v != "" {
		known := false
		if q.Stream, known = logbook.Stream(v); !known {
			return q, 0, answer.Invalid("%s: want stdout, stderr or pty", procapi.LogStream)
		}
	}
	for name, at := range map[string]*time.Time{procapi.LogSince: &q.Since, procapi.LogUntil: &q.Until} {
		if v := query.Get(name); v != "" {
			if *at, err = time.Parse(time.RFC3339Nano, v); err != nil {
				return q, 0, answer.Invalid("%s: want a time", name)
			}
		}
	}
	if v := query.Get(procapi.LogWait); v != "" {
		ms, err := strconv.ParseInt(v, 10, 64)
		if err != nil || ms < 0 || ms > procapi.MaxLogWait.Milliseconds() {
			return q, 0, answer.Invalid("%s: want milliseconds from 0 to %d", procapi.LogWait, procapi.MaxLogWait.Milliseconds())
		}
		wait = time.Duration(ms) * time.Millisecond
	}
	return q, wait, nil
}

// logPosition is the line that a cursor stands behind: none, if the cursor is
// another journal's.
func logPosition(cursor, epoch string) (uint64, error) {
	of, number, _ := strings.Cut(cursor, ".")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0, answer.Invalid("%s: want a cursor", procapi.LogAfter)
	}
	if of != epoch {
		return 0, nil
	}
	return n, nil
}
