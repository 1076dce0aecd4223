package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"

	"s0.run/internal/procapi"
	"s0.run/vk-provider/internal/pods"
)

// maxLine bounds what a line without an end can make us hold.
const maxLine = 64 << 10

// A line is one that a process printed, with its end.
type line struct {
	at   time.Time
	text []byte
}

// logs is what a container printed. Of a pool's sandbox it is what all of its processes
// printed: everything in there is its tenant's.
func (s *Server) logs(ctx context.Context, namespace, pod, container string, opts api.ContainerLogOpts) (io.ReadCloser, error) {
	target, err := s.cfg.Pods.Find(namespace, pod, container)
	if err != nil {
		return nil, errdefs.NotFound(err.Error())
	}
	source := s.journalLogs
	if target.Session != "" {
		source = s.sessionLogs
	} else if opts.Previous {
		return nil, errdefs.NotFound("a sandbox of a pool has no previous container")
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	out := &logWriter{w: w, opts: opts, left: opts.LimitBytes}
	go func() { // ends with its reader, which VK closes, or with ctx
		defer cancel()
		w.CloseWithError(source(ctx, target, opts, out))
	}()
	return &logReader{r, cancel}, nil
}

type logReader struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (r *logReader) Close() error {
	r.cancel()
	return r.PipeReader.Close()
}

// logWriter writes lines as a client wants them.
type logWriter struct {
	w    io.Writer
	opts api.ContainerLogOpts
	left int // bytes, where the client wants no more than some
}

func (w *logWriter) since() time.Time {
	if w.opts.SinceSeconds > 0 {
		return time.Now().Add(-time.Duration(w.opts.SinceSeconds) * time.Second)
	}
	return w.opts.SinceTime
}

// history writes the last of what was printed before.
func (w *logWriter) history(lines []line) error {
	since := w.since()
	for len(lines) > 0 && lines[0].at.Before(since) {
		lines = lines[1:]
	}
	if tail := w.opts.Tail; tail > 0 && tail < len(lines) {
		lines = lines[len(lines)-tail:]
	}
	for _, l := range lines {
		if err := w.line(l); err != nil {
			return err
		}
	}
	return nil
}

func (w *logWriter) line(l line) error {
	text := l.text
	if w.opts.Timestamps {
		text = append([]byte(l.at.UTC().Format(time.RFC3339Nano)+" "), text...)
	}
	if w.opts.LimitBytes > 0 {
		if text = text[:min(len(text), w.left)]; len(text) == 0 {
			return io.EOF
		}
		w.left -= len(text)
	}
	_, err := w.w.Write(text)
	return err
}

// splitter makes lines of what a command's streams print in pieces.
type splitter map[string]*line

func (s splitter) add(stream string, at time.Time, data []byte, tell func(line)) {
	for len(data) > 0 {
		open := s[stream]
		if open == nil {
			open = &line{at: at}
			s[stream] = open
		}
		i := bytes.IndexByte(data, '\n') + 1
		if i == 0 {
			i = len(data)
		}
		open.text, data = append(open.text, data[:i]...), data[i:]
		if open.text[len(open.text)-1] == '\n' || len(open.text) >= maxLine {
			tell(*open)
			delete(s, stream)
		}
	}
}

func (s splitter) flush(tell func(line)) {
	for stream, open := range s {
		tell(*open)
		delete(s, stream)
	}
}

// sessionLogs writes what an attempt of a session printed, and prints.
func (s *Server) sessionLogs(ctx context.Context, t pods.Target, opts api.ContainerLogOpts, out *logWriter) error {
	now, err := s.cfg.Node.Session(ctx, t.Sandbox, t.Session)
	if err != nil {
		return err
	}
	attempts := map[string][]line{}
	var order []string
	pieces, after := map[string]splitter{}, uint64(0)
	keep := func(e procapi.SessionEvent) {
		id := e.AttemptID
		if id != "" && pieces[id] == nil {
			pieces[id], order = splitter{}, append(order, id)
		}
		if e.Type == procapi.SessionOutput {
			pieces[id].add(e.Stream, e.OccurredAt, e.Data, func(l line) { attempts[id] = append(attempts[id], l) })
		}
	}
	for after < now.Cursor.Latest {
		page, err := s.cfg.Node.SessionPage(ctx, t.Sandbox, t.Session, after)
		if err != nil {
			return err
		}
		if len(page.Events) == 0 {
			break
		}
		for _, e := range page.Events {
			after = e.Seq
			keep(e)
		}
	}
	id, err := wanted(order, opts.Previous)
	if err != nil || id == "" {
		return err
	}
	if !opts.Follow || opts.Previous || id != current(now) {
		pieces[id].flush(func(l line) { attempts[id] = append(attempts[id], l) })
	}
	if err := out.history(attempts[id]); err != nil || !opts.Follow || opts.Previous {
		return ignoreEOF(err)
	}
	return s.followLogs(ctx, t, id, after, pieces[id], out)
}

func current(s procapi.Session) string {
	if s.Attempt == nil || !s.Attempt.FinishedAt.IsZero() {
		return ""
	}
	return s.Attempt.ID
}

// wanted chooses the attempt whose lines are meant.
func wanted(order []string, previous bool) (string, error) {
	switch n := len(order); {
	case previous && n < 2:
		return "", errdefs.NotFound("there is no previous container")
	case previous:
		return order[n-2], nil
	case n == 0:
		return "", nil
	default:
		return order[n-1], nil
	}
}

func (s *Server) followLogs(ctx context.Context, t pods.Target, attempt string, after uint64, open splitter, out *logWriter) error {
	var failed error
	write := func(l line) {
		if failed == nil {
			failed = out.line(l)
		}
	}
	err := s.cfg.Node.FollowSession(ctx, t.Sandbox, t.Session, after, func(e procapi.SessionEvent) bool {
		if e.AttemptID == attempt && e.Type == procapi.SessionOutput {
			open.add(e.Stream, e.OccurredAt, e.Data, write)
		}
		ended := e.AttemptID == attempt && (e.Type == procapi.AttemptExited || e.Type == procapi.AttemptFailed)
		if ended {
			open.flush(write)
		}
		return failed == nil && !ended
	})
	if failed != nil {
		return ignoreEOF(failed)
	}
	return err
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// journalLogs writes what all processes of a sandbox printed, and print.
func (s *Server) journalLogs(ctx context.Context, t pods.Target, opts api.ContainerLogOpts, out *logWriter) error {
	var history []line
	cursor := ""
	for caughtUp := false; ; {
		page, err := s.cfg.Node.Logs(ctx, t.Sandbox, pageQuery(cursor, caughtUp))
		if err != nil {
			return err
		}
		cursor = page.Epoch + "." + strconv.FormatUint(page.Next, 10)
		for _, l := range page.Lines {
			text := line{l.Time, []byte(l.Message + "\n")}
			if !caughtUp {
				history = append(history, text)
			} else if err := out.line(text); err != nil {
				return ignoreEOF(err)
			}
		}
		if caughtUp || page.More {
			continue
		}
		if err := out.history(history); err != nil || !opts.Follow {
			return ignoreEOF(err)
		}
		history, caughtUp = nil, true
	}
}

func pageQuery(cursor string, wait bool) url.Values {
	q := url.Values{}
	if cursor != "" {
		q.Set(procapi.LogAfter, cursor)
	}
	if wait {
		q.Set(procapi.LogWait, fmt.Sprint(procapi.MaxLogWait.Milliseconds()))
	}
	return q
}
