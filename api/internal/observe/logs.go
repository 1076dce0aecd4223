package observe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/ndjson"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

var (
	contextPattern = regexp.MustCompile(`^(ctx-[0-9a-f]{8}|sess-[0-9a-f]{12})$`) // of a session too
	epochPattern   = regexp.MustCompile(`^[0-9a-f]{16}$`)
	cursorPattern  = regexp.MustCompile(`^[0-9a-f]{16}\.[0-9]{1,19}$`)
)

// maxMessageBytes: what was no UTF-8 has grown when procd replaced it.
const maxMessageBytes = 3 * procapi.MaxLogLineBytes

// LogQuery says which lines are wanted. Zero fields ask for all; Limit is set.
type LogQuery struct {
	Range
	Limit     int
	Cursor    string
	ContextID string
	Stream    openapi.SandboxLogStream
}

func (q LogQuery) check() error {
	switch {
	case q.Cursor != "" && !cursorPattern.MatchString(q.Cursor):
		return errCursor
	case q.ContextID != "" && !contextPattern.MatchString(q.ContextID):
		return errdefs.New(errdefs.InvalidArgument, "context_id is invalid")
	case q.Stream != "" && !q.Stream.Valid():
		return errdefs.New(errdefs.InvalidArgument, "stream must be stdout, stderr or pty")
	}
	return errors.Join(checkLimit(q.Limit), q.Range.check())
}

// values is the query as procd has it. wait is how long it may keep back an
// answer without lines.
func (q LogQuery) values(wait time.Duration) url.Values {
	v := url.Values{procapi.LogLimit: {strconv.Itoa(q.Limit)}}
	for name, value := range map[string]string{procapi.LogAfter: q.Cursor, procapi.LogContext: q.ContextID, procapi.LogStream: string(q.Stream)} {
		if value != "" {
			v.Set(name, value)
		}
	}
	for name, t := range map[string]time.Time{procapi.LogSince: q.Start, procapi.LogUntil: q.End} {
		if !t.IsZero() {
			v.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if wait > 0 {
		v.Set(procapi.LogWait, strconv.FormatInt(wait.Milliseconds(), 10))
	}
	return v
}

// Logs lists lines, oldest first.
func (o *Observer) Logs(ctx context.Context, to dataplane.Target, q LogQuery) (openapi.SandboxLogList, error) {
	return o.logs(ctx, to, q, 0)
}

func (o *Observer) logs(ctx context.Context, to dataplane.Target, q LogQuery, wait time.Duration) (openapi.SandboxLogList, error) {
	list := openapi.SandboxLogList{Logs: []openapi.SandboxLogEntry{}}
	if err := q.check(); err != nil {
		return list, err
	}
	var page procapi.LogPage
	err := o.cfg.Plane.Call(ctx, to, dataplane.Request{
		Method: http.MethodGet, Path: procapi.PathLogs, Query: q.values(wait), Timeout: wait + dataplane.CallTimeout,
	}, nil, &page, func() error { return checkPage(page, q.Limit) })
	if err != nil {
		return list, err
	}
	mark := cursor(page.Epoch, page.Next)
	list.Watermark = &mark
	if page.More {
		list.NextCursor = &mark
	}
	who, now := o.identity(to), o.now()
	for i, l := range page.Lines {
		e := who.entry(l, now)
		e.Cursor = cursor(page.Epoch, l.Seq)
		if i == 0 && page.Dropped > 0 {
			e.Attributes = with(e.Attributes, "dropped_lines", page.Dropped)
		}
		list.Logs = append(list.Logs, e)
	}
	return list, nil
}

func cursor(epoch string, seq uint64) string { return epoch + "." + strconv.FormatUint(seq, 10) }

// checkPage lets through what a procd of ours says.
func checkPage(p procapi.LogPage, limit int) error {
	if !epochPattern.MatchString(p.Epoch) || len(p.Lines) > limit {
		return fmt.Errorf("a page of epoch %.20q with %d lines", p.Epoch, len(p.Lines))
	}
	before := uint64(0)
	for _, l := range p.Lines {
		if l.Seq <= before || l.Seq > p.Next || !contextPattern.MatchString(l.ContextID) || len(l.Message) > maxMessageBytes ||
			!openapi.SandboxLogStream(l.Stream).Valid() || l.PID < 0 {
			return fmt.Errorf("line %d after %d: %d bytes of context %.20q", l.Seq, before, len(l.Message), l.ContextID)
		}
		before = l.Seq
	}
	if p.Next > maxSeq {
		return fmt.Errorf("line %d", p.Next)
	}
	return nil
}

// maxSeq bounds a line's number, so that every cursor has the form of one.
const maxSeq = 1<<63 - 1

// entry writes onto a line whose it is. No line is from the future.
func (who identity) entry(l procapi.LogLine, now time.Time) openapi.SandboxLogEntry {
	at := l.Time.UTC()
	if at.After(now) {
		at = now.UTC()
	}
	pid, stream := strconv.Itoa(l.PID), openapi.SandboxLogStream(l.Stream)
	e := openapi.SandboxLogEntry{
		TeamID: who.team, SandboxID: who.sandbox, RegionID: who.region, ClusterID: who.cluster,
		ContextID: &l.ContextID, ProcessID: &pid, OccurredAt: at, IngestedAt: at, Stream: &stream, Message: l.Message,
	}
	if l.Truncated {
		e.Attributes = with(e.Attributes, "truncated", true)
	}
	if l.LostBytes > 0 {
		e.Attributes = with(e.Attributes, "lost_bytes", l.LostBytes)
	}
	return e
}

func with(attributes map[string]any, name string, value any) map[string]any {
	if attributes == nil {
		attributes = map[string]any{}
	}
	attributes[name] = value
	return attributes
}

// WatchLogs answers the first batch of a watch, and the source of those that follow.
func (o *Observer) WatchLogs(ctx context.Context, to dataplane.Target, q LogQuery) ([]ndjson.Line, ndjson.Source, error) {
	if !q.End.IsZero() {
		return nil, nil, errdefs.New(errdefs.InvalidArgument, "end_time does not go with watch")
	}
	if err := q.check(); err != nil {
		return nil, nil, err
	}
	q.Limit = MaxPage // of a batch, which is nobody's matter
	batch := func(ctx context.Context, wait time.Duration) ([]ndjson.Line, error) {
		list, err := o.logs(ctx, to, q, wait)
		if err != nil {
			return nil, err
		}
		if q.Cursor = *list.Watermark; len(list.Logs) == 0 {
			return nil, nil
		}
		lines := make([]ndjson.Line, 0, len(list.Logs)+1)
		for _, e := range list.Logs {
			lines = append(lines, ndjson.Line{Type: "log", Data: e})
		}
		return append(lines, ndjson.Watermark(q.Cursor)), nil
	}
	first, err := batch(ctx, 0)
	return first, func(ctx context.Context) ([]ndjson.Line, error) { return batch(ctx, ndjson.Heartbeat) }, err
}
