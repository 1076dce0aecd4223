package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"s0.run/api/client"
)

const (
	// mendTime is for how long a broken connection is made again: longer than a
	// server's restart, shorter than a person waits.
	mendTime = time.Minute
	// mendPause is what passes between two tries.
	mendPause = 300 * time.Millisecond
)

// ctrlC is what a raw terminal makes of it.
const ctrlC = 3

var errBroken = errors.New("the connection is lost")

// wire is the connection to a command. Where it breaks it is made again, and goes
// on behind the last byte that came: one goroutine copies and mends, others send.
type wire struct {
	// attach connects, from an offset of the output on; without a client with a new one.
	attach func(ctx context.Context, c *client.Client, offset uint64) (*client.Stream, error)
	greet  func(*client.Stream) // says what every connection is told first
	broken func()               // tells the user, if it takes a while
	mends  bool                 // whether what was under way towards the command may be lost
	limit  time.Duration        // for how long it is mended; defaults to mendTime

	// Of the copying goroutine alone.
	opened  time.Time // when the connection was made
	failing time.Time // since when connections break before anything came over them

	mu     sync.Mutex
	stream *client.Stream // nil while it is broken
}

func (w *wire) open(ctx context.Context, c *client.Client) error {
	s, err := w.attach(ctx, c, 0)
	if err == nil {
		w.use(s)
	}
	return err
}

func (w *wire) use(s *client.Stream) {
	w.greet(s)
	w.opened = time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stream = s
}

func (w *wire) live() *client.Stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stream
}

func (w *wire) close() {
	w.mu.Lock()
	s := w.stream
	w.stream = nil
	w.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// tell sends something over the connection, if there is one.
func (w *wire) tell(send func(*client.Stream) error) error {
	if s := w.live(); s != nil {
		return send(s)
	}
	return errBroken
}

// copy writes the command's output until its end, over as many connections as it
// takes. With a [client.OutputLostError] the exit is known all the same.
func (w *wire) copy(ctx context.Context, stdout, stderr io.Writer) (client.Exit, error) {
	var missing int64
	for {
		s := w.live()
		e, err := s.Next()
		if err != nil {
			if err = w.mend(ctx, s, err); err != nil {
				return client.Exit{}, err
			}
			continue
		}
		w.failing = time.Time{}
		switch e := e.(type) {
		case client.Exit:
			if missing > 0 {
				err = &client.OutputLostError{Bytes: missing}
			}
			return e, err
		case client.Gap:
			missing += e.LostBytes
		case client.Output:
			out := stdout
			if e.Source == client.ContextServerMessageSourceStderr {
				out = stderr
			}
			if _, err := io.WriteString(out, e.Data); err != nil {
				return client.Exit{}, err
			}
		}
	}
}

// mend connects again behind what s has read. Its error is why it can't be, for what
// ended s or for what came of trying.
func (w *wire) mend(ctx context.Context, s *client.Stream, err error) error {
	w.close()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the server has not said how the command ended
	}
	limit := w.limit
	if limit == 0 {
		limit = mendTime
	}
	if w.failing.IsZero() || time.Since(w.opened) > limit {
		w.failing = time.Now()
	}
	for tries := 0; w.mends && client.CanReattach(err) && time.Since(w.failing) < limit; tries++ {
		if tries == 1 {
			w.broken()
		}
		select {
		case <-time.After(mendPause):
		case <-ctx.Done():
			return err
		}
		var again *client.Stream
		if again, err = w.attach(ctx, nil, s.Offset()); err == nil {
			w.use(again)
			return nil
		}
	}
	return err
}

// readFrom sends all of r. What a person types while the connection is broken is
// dropped, but for Ctrl-C, which gives up.
func (w *wire) readFrom(r io.Reader, giveUp context.CancelCauseFunc) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			failed := w.tell(func(s *client.Stream) error {
				_, err := s.Write(buf[:n])
				return err
			})
			switch {
			case failed != nil && !w.mends:
				return // whoever copies tells why
			case errors.Is(failed, errBroken) && bytes.IndexByte(buf[:n], ctrlC) >= 0:
				giveUp(errBroken)
				return
			}
		}
		if err != nil {
			w.tell((*client.Stream).CloseInput)
			return
		}
	}
}
