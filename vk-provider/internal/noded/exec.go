package noded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"s0.run/internal/procapi"
)

// endTimeout bounds the clearing away of a command whose caller has gone.
const endTimeout = 10 * time.Second

// inputChunk is what is read of a caller's input at once.
const inputChunk = 32 << 10

// Streams are a caller's ends of a command.
type Streams struct {
	Stdin          io.Reader // nil: none
	Stdout, Stderr io.Writer // nil: dropped
	Resize         <-chan procapi.PTYSize
}

// Exec runs a command in a sandbox and returns how it ended. When ctx ends first, the
// command is killed.
func (c *Client) Exec(ctx context.Context, sb Sandbox, cmd procapi.CreateContext, s Streams) (procapi.Exit, error) {
	var made procapi.Context
	if err := c.Call(ctx, sb, Request{Method: http.MethodPost, Path: procapi.PathContexts, JSON: cmd}, &made); err != nil {
		return procapi.Exit{}, err
	}
	path := procapi.PathContexts + "/" + url.PathEscape(made.ID)
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		if err := c.Call(ctx, sb, Request{Method: http.MethodDelete, Path: path}, nil); err != nil {
			c.log.Warn("a command's context stays", "sandbox", sb.ID, "context", made.ID, "error", err)
		}
	}()
	return c.attach(ctx, sb, path, s)
}

// attach connects a caller with a context until that has ended.
func (c *Client) attach(ctx context.Context, sb Sandbox, path string, s Streams) (procapi.Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, out := io.Pipe()
	var input sync.WaitGroup
	frames := &frameWriter{w: out}
	if s.Stdin == nil {
		input.Go(func() { _ = frames.write(procapi.FrameEOF) })
	} else {
		// Not waited for: a caller's Read ends when its connection does, which is after us.
		go func() { _ = frames.copyInput(s.Stdin) }()
	}
	input.Go(func() { frames.copySizes(ctx, s.Resize) })
	defer input.Wait()
	defer cancel()
	defer in.CloseWithError(io.ErrClosedPipe)
	body, err := c.Stream(ctx, sb, Request{Method: http.MethodPost, Path: path + "/attach", Body: in})
	if err != nil {
		return procapi.Exit{}, err
	}
	defer body.Close()
	return copyOutput(body, s)
}

// frameWriter writes whole frames of several goroutines.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func (f *frameWriter) write(typ byte, parts ...[]byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf = procapi.AppendFrame(f.buf[:0], typ, parts...)
	_, err := f.w.Write(f.buf)
	return err
}

func (f *frameWriter) copyInput(r io.Reader) error {
	buf := make([]byte, inputChunk)
	noID := []byte{0}
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := f.write(procapi.FrameInput, noID, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return f.write(procapi.FrameEOF)
		}
		if err != nil {
			return err
		}
	}
}

func (f *frameWriter) copySizes(ctx context.Context, sizes <-chan procapi.PTYSize) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			b, err := json.Marshal(size)
			if err != nil || f.write(procapi.FrameResize, b) != nil {
				return
			}
		}
	}
}

// copyOutput passes on what a command prints until it has ended.
func copyOutput(r io.Reader, s Streams) (exit procapi.Exit, err error) {
	var buf []byte
	for {
		typ, payload, err := procapi.ReadFrame(r, buf)
		if err != nil {
			return exit, fmt.Errorf("the command's output broke off: %w", err)
		}
		buf = payload
		switch typ {
		case procapi.FrameStdout, procapi.FramePTY:
			err = writeOutput(s.Stdout, payload)
		case procapi.FrameStderr:
			err = writeOutput(s.Stderr, payload)
		case procapi.FrameExit:
			return exit, json.Unmarshal(payload, &exit)
		}
		if err != nil {
			return exit, err
		}
	}
}

func writeOutput(w io.Writer, payload []byte) error {
	_, data, err := procapi.Output(payload)
	if err != nil || w == nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// Forward connects a caller with a port inside a sandbox until either end closes.
func (c *Client) Forward(ctx context.Context, sb Sandbox, port int32, stream io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, out := io.Pipe()
	defer in.CloseWithError(io.ErrClosedPipe)
	body, err := c.Stream(ctx, sb, Request{
		Method: http.MethodPost, Path: procapi.PathTunnel, Query: url.Values{procapi.TunnelPort: {strconv.Itoa(int(port))}}, Body: in,
	})
	if err != nil {
		return err
	}
	defer body.Close()
	go func() { // ends with stream, which the caller closes when we have returned
		_, err := io.Copy(out, stream)
		out.CloseWithError(err)
	}()
	_, err = io.Copy(stream, body)
	return err
}
