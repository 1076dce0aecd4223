package procevents

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
)

const (
	// A follower that lost its stream tries again after the first pause, then
	// longer ones; one that reads what makes no sense does not hurry either.
	firstPause, longestPause = 50 * time.Millisecond, 5 * time.Second

	// A sandbox may tell burst events at once, and one each pace on average.
	pace  = 50 * time.Millisecond
	burst = 200

	// ackTimeout bounds the acknowledgement to a procd that does not answer.
	ackTimeout = 5 * time.Second

	// timeSlack is how far from the node's clock a sandbox's may be.
	timeSlack = time.Hour
)

// follower reads one sandbox's events. It is for one goroutine.
type follower struct {
	relay *Relay
	box   *box
	log   *slog.Logger

	last  uint64    // procd's number of the last event that was read
	acked uint64    // procd knows that events up to here are stored
	due   time.Time // when the next event is, were they evenly paced
}

func (f *follower) run(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		before := f.last
		err := f.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if f.last != before {
			pause = firstPause
		}
		f.log.Debug("a sandbox's events broke off", "err", err, "retry_in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, longestPause)
	}
}

// stream follows one answer of procd's to its end.
func (f *follower) stream(ctx context.Context) error {
	proc, err := f.relay.cfg.Proc(f.box.id, f.box.gen)
	if err != nil {
		return err
	}
	if err := f.ack(ctx, proc); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://procd%s?after=%d", procapi.PathEvents, f.last), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := proc.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("procd answered %d", resp.StatusCode)
	}
	lines, failed := f.read(ctx, resp.Body)
	defer func() {
		stop() // which ends the answer, and with it the reader
		for range lines {
		}
	}()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return <-failed
			}
			if err := f.take(ctx, line); err != nil {
				return err
			}
		case <-f.box.room:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := f.ack(ctx, proc); err != nil {
			return err
		}
	}
}

// read gives an answer's lines, one at a time. It ends with ctx, which closes
// the answer's body.
func (f *follower) read(ctx context.Context, body io.Reader) (<-chan []byte, <-chan error) {
	lines, failed := make(chan []byte), make(chan error, 1)
	go func() {
		defer close(lines)
		s := bufio.NewScanner(body)
		s.Buffer(make([]byte, 0, 4<<10), procapi.MaxEventBytes+1)
		for s.Scan() {
			select {
			case lines <- bytes.Clone(s.Bytes()):
			case <-ctx.Done():
				failed <- ctx.Err()
				return
			}
		}
		failed <- cmp.Or(s.Err(), io.EOF)
	}()
	return lines, failed
}

// take checks a line and puts it into the box when there is room for it and its
// turn has come.
func (f *follower) take(ctx context.Context, line []byte) error {
	e, err := parse(line, time.Now())
	if err != nil {
		return err
	}
	if e.seq <= f.last {
		return fmt.Errorf("event %d after event %d", e.seq, f.last)
	}
	for f.relay.full(f.box) {
		select {
		case <-f.box.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := f.awaitTurn(ctx); err != nil {
		return err
	}
	f.last = e.seq
	f.relay.put(f.box, e)
	return nil
}

// awaitTurn paces a sandbox that has used up its burst.
func (f *follower) awaitTurn(ctx context.Context) error {
	now := time.Now()
	if earliest := now.Add(-burst * pace); f.due.Before(earliest) {
		f.due = earliest
	}
	f.due = f.due.Add(pace)
	if !f.due.After(now) {
		return nil
	}
	select {
	case <-time.After(f.due.Sub(now)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ack tells procd what is stored, if that is news.
func (f *follower) ack(ctx context.Context, proc http.RoundTripper) error {
	stored := f.relay.storedOf(f.box)
	if stored == f.acked {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	body := fmt.Sprintf(`{"through":%d}`, stored)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://procd"+procapi.PathEventsAck, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := proc.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("procd answered %d to an acknowledgement", resp.StatusCode)
	}
	f.acked = stored
	return nil
}

var (
	idPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

	// types are those that a sandbox may tell of itself.
	types = map[string]bool{
		procapi.EventProcessStarted: true, procapi.EventProcessExited: true, procapi.EventProcessCrashed: true,
		procapi.EventFileModified: true, procapi.EventAgent: true, procapi.EventsDropped: true,
	}
)

var errEvent = errors.New("an event that makes no sense")

// parse checks one line of procd's.
func parse(line []byte, now time.Time) (event, error) {
	var in struct {
		Seq     uint64          `json:"seq"`
		ID      string          `json:"id"`
		Type    string          `json:"type"`
		Time    time.Time       `json:"time"`
		Payload json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(line, &in); err != nil {
		return event{}, fmt.Errorf("%w: %w", errEvent, err)
	}
	if !idPattern.MatchString(in.ID) || !types[in.Type] || len(in.Payload) == 0 {
		return event{}, fmt.Errorf("%w: id %.40q, type %.40q", errEvent, in.ID, in.Type)
	}
	if d := now.Sub(in.Time); d < 0 || d > timeSlack {
		in.Time = now
	}
	return event{in.Seq, &nodeapi.SandboxEvent{
		Id: in.ID, Type: in.Type, UnixNano: in.Time.UnixNano(), Payload: bytes.ToValidUTF8(in.Payload, []byte("\uFFFD")),
	}}, nil
}
