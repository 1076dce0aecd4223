package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
	"s0.run/procd/internal/contexts"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/repl"
)

const (
	// batchBytes of frames go out in one write: several of the largest chunks of a
	// log, or many small ones.
	batchBytes = 256 << 10
	// maxChunk is more than a log's largest chunk as a frame.
	maxChunk = 65 << 10

	// maxTurns bounds the inputs of one client whose prompts are still awaited; it
	// is not read from beyond them.
	maxTurns = 64
)

// batches are shared by all clients, so that an idle one holds no memory.
var batches = sync.Pool{New: func() any { return new([batchBytes]byte) }}

// attachment is one client that follows a context.
type attachment struct {
	live   *contexts.Live
	reader *proc.Reader
	w      http.ResponseWriter
	flush  func() error
	batch  []byte // within space
	space  *[batchBytes]byte

	turns   chan turn   // inputs whose end is awaited
	prompts chan prompt // ends to report
	due     []prompt    // of which the output has not been sent yet
}

// turn is an input that a prompt will answer.
type turn struct {
	requestID string
	repl.Turn
}

// prompt says that a REPL waits again, once the output up to offset was sent.
type prompt struct {
	requestID string
	offset    uint64
}

func (s *server) attachContext(w http.ResponseWriter, r *http.Request) error {
	offset, err := offsetOf(r)
	if err != nil {
		return err
	}
	live, detach, err := s.cfg.Contexts.Attach(r.PathValue("id"))
	if err != nil {
		return err
	}
	defer detach()
	control := http.NewResponseController(w)
	a := &attachment{
		live: live, reader: live.Process.Log().Attach(offset), w: w, flush: control.Flush,
		turns: make(chan turn, maxTurns), prompts: make(chan prompt),
	}
	defer a.reader.Close()
	defer a.giveBack()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)

	ctx, cancel := context.WithCancelCause(r.Context())
	var workers sync.WaitGroup
	workers.Go(func() {
		if err := a.receive(ctx, r.Body); err != nil {
			cancel(err)
		}
	})
	workers.Go(func() { a.awaitPrompts(ctx) })
	err = a.send(ctx)
	cancel(nil)
	_ = control.SetReadDeadline(time.Unix(1, 0)) // receive may wait for a frame
	workers.Wait()
	if err != nil {
		panic(http.ErrAbortHandler) // the client sees that this is not the end
	}
	return nil
}

func offsetOf(r *http.Request) (uint64, error) {
	v, err := answer.Query(r, "offset")
	if err != nil || v == "" {
		return 0, err
	}
	offset, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, answer.Invalid("offset: want a number of bytes")
	}
	return offset, nil
}

// send follows the log to its end. It alone writes to the client; while that is
// slow, the process waits or the log runs ahead, as package proc says.
func (a *attachment) send(ctx context.Context) error {
	for {
		ended, err := a.sendAvailable()
		if err != nil || ended {
			return err
		}
		select {
		case <-a.reader.Ready():
		case p := <-a.prompts:
			a.due = append(a.due, p)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// sendAvailable sends what there is and tells whether that was the end.
func (a *attachment) sendAvailable() (ended bool, err error) {
	for {
		a.appendPrompts()
		c, err := a.reader.Next()
		switch {
		case errors.Is(err, io.EOF):
			if err := a.appendExit(); err != nil {
				return false, err
			}
			return true, a.writeBatch(true)
		case errors.Is(err, proc.ErrNothing):
			return false, a.writeBatch(true)
		}
		a.appendChunk(c)
		if len(a.batch) > batchBytes-maxChunk {
			if err := a.writeBatch(false); err != nil {
				return false, err
			}
		}
	}
}

func (a *attachment) appendChunk(c proc.Chunk) {
	if a.space == nil {
		a.space = batches.Get().(*[batchBytes]byte)
		a.batch = a.space[:0]
	}
	if c.Lost > 0 {
		a.batch = procapi.AppendFrame(a.batch, procapi.FrameGap, binary.BigEndian.AppendUint64(nil, c.Lost))
		return
	}
	a.batch = procapi.AppendFrame(a.batch, byte(c.Source), binary.BigEndian.AppendUint64(nil, c.Offset), c.Data)
}

func (a *attachment) appendPrompts() {
	for len(a.due) > 0 && a.due[0].offset <= a.reader.Offset() {
		a.batch = procapi.AppendFrame(a.batch, procapi.FramePrompt, []byte(a.due[0].requestID))
		a.due = a.due[1:]
	}
}

func (a *attachment) appendExit() error {
	<-a.live.Process.Done() // right behind the end of the log
	exit, err := json.Marshal(a.live.Process.Exit())
	if err != nil {
		return err
	}
	a.batch = procapi.AppendFrame(a.batch, procapi.FrameExit, exit)
	return nil
}

func (a *attachment) writeBatch(flush bool) error {
	if len(a.batch) > 0 {
		if _, err := a.w.Write(a.batch); err != nil {
			return err
		}
		a.batch = a.batch[:0]
	}
	if !flush {
		return nil
	}
	a.giveBack()
	return a.flush()
}

func (a *attachment) giveBack() {
	if a.space != nil {
		batches.Put(a.space)
	}
	a.batch, a.space = nil, nil
}

// receive reads the client's frames until it has no more, which is fine.
func (a *attachment) receive(ctx context.Context, body io.Reader) error {
	defer close(a.turns)
	var buf []byte
	for {
		typ, payload, err := procapi.ReadFrame(body, buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		buf = payload
		if err := a.act(ctx, typ, payload); err != nil {
			return err
		}
	}
}

// act does what one frame says. What the context can't do is not the stream's
// end: a client learns from the output, or from the calls that answer.
func (a *attachment) act(ctx context.Context, typ byte, payload []byte) error {
	switch typ {
	case procapi.FrameInput:
		id, data, err := procapi.Input(payload)
		if err != nil {
			return err
		}
		return a.input(ctx, id, data)
	case procapi.FrameResize:
		var size procapi.PTYSize
		if err := answer.Unmarshal(payload, &size); err != nil {
			return err
		}
		_ = a.live.Resize(size)
	case procapi.FrameSignal:
		var sig procapi.SignalRequest
		if err := answer.Unmarshal(payload, &sig); err != nil {
			return err
		}
		_ = a.live.Signal(sig.Signal)
	case procapi.FrameEOF:
		_ = a.live.Process.CloseInput()
	default:
		return procapi.ErrFrame
	}
	return nil
}

// input writes data, waiting for room: a client that is faster than the process
// is not read from meanwhile.
func (a *attachment) input(ctx context.Context, id string, data []byte) error {
	for {
		t, err := a.live.Input(ctx, data)
		if errors.Is(err, proc.ErrInputFull) && len(data) <= procapi.MaxInputBytes {
			select {
			case <-a.live.Process.InputRoom():
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil || a.live.Session == nil || id == "" && !bytes.ContainsAny(data, "\r\n") {
			return nil
		}
		select {
		case a.turns <- turn{id, t}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitPrompts reports in order when the REPL has dealt with each input.
func (a *attachment) awaitPrompts(ctx context.Context) {
	for t := range a.turns {
		if a.live.Session.Await(ctx, t.Turn) != nil {
			continue // ended, or nobody listens: the rest drains
		}
		select {
		case a.prompts <- prompt{t.requestID, a.live.Process.Log().End()}:
		case <-ctx.Done():
		}
	}
}
