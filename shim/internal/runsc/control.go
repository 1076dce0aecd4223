package runsc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// The sentry's control server answers calls in JSON, one after the other, on the socket that
// runsc's commands use. What happens while a sandbox stands still is called without a command,
// whose start alone takes longer than a freeze; runsc's state of the container does not learn
// of it, and no other command depends on it. gVisor's names are stable while its version is
// pinned: a sentry that does not know one says so.
const (
	pauseMethod     = "containerManager.Pause"
	resumeMethod    = "containerManager.Resume"
	saveMethod      = "containerManager.Checkpoint"
	saveFilesMethod = "containerManager.FSSave"
)

// maxAnswer bounds what is read of an answer, which says no more than that it is done.
const maxAnswer = 64 << 10

type controlCall struct {
	Method string `json:"method"`
	Arg    any    `json:"arg"`
}

type controlAnswer struct {
	Success bool   `json:"success"`
	Err     string `json:"err"`
}

// Pause freezes all processes in place. If nobody waits for it any more it is undone when it
// has happened after all: a kernel counts its pauses.
func (r *Runsc) Pause(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	conn, err := r.dialControl(ctx)
	if err != nil {
		return fmt.Errorf("pausing %s: %w", r.id, err)
	}
	answered := make(chan error, 1)
	go func() { answered <- call(conn, controlCall{Method: pauseMethod}) }() // ends with the sentry at the latest
	select {
	case err := <-answered:
		conn.Close()
		if err != nil {
			return fmt.Errorf("pausing %s: %w", r.id, err)
		}
		return nil
	case <-ctx.Done():
		go func() { // so does this
			defer conn.Close()
			if err := <-answered; err == nil {
				_ = call(conn, controlCall{Method: resumeMethod})
			}
		}()
		return fmt.Errorf("pausing %s: %w", r.id, ctx.Err())
	}
}

// resumption is a call that a sentry may have got.
type resumption struct {
	done chan struct{}
	err  error // once it is done
}

// Resume ends a pause. A sentry panics when it is resumed more often than it was paused, so
// none is asked again until a caller has heard that it was: who comes before waits for the
// first answer, however late it is, and a failure stays one.
func (r *Runsc) Resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	r.mu.Lock()
	c := r.resuming
	if c == nil {
		c = &resumption{done: make(chan struct{})}
		r.resuming = c
		go r.resume(c) // ends with the sentry at the latest
	}
	r.mu.Unlock()
	var err error
	select {
	case <-c.done:
		err = c.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("resuming %s: %w", r.id, err)
	}
	r.heard(c)
	return nil
}

// resume makes the call, for everybody who waits for it.
func (r *Runsc) resume(c *resumption) {
	defer close(c.done)
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	conn, err := r.dialControl(ctx)
	if err != nil {
		c.err = err
		r.heard(c) // it was never asked
		return
	}
	defer conn.Close()
	c.err = call(conn, controlCall{Method: resumeMethod})
}

// heard has the next Resume ask again.
func (r *Runsc) heard(c *resumption) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resuming == c {
		r.resuming = nil
	}
}

// call asks the sentry, which gets files beside it, and waits for its answer.
func call(conn *net.UnixConn, what controlCall, files ...*os.File) error {
	if err := send(conn, what, files); err != nil {
		return err
	}
	var answer controlAnswer
	if err := json.NewDecoder(&limited{conn, maxAnswer}).Decode(&answer); err != nil {
		return fmt.Errorf("its answer: %w", err)
	}
	if !answer.Success {
		return fmt.Errorf("the sentry refuses: %.200s", answer.Err)
	}
	return nil
}

// send puts the files beside the first byte, where the sentry looks for them.
func send(conn *net.UnixConn, what controlCall, files []*os.File) error {
	line, err := json.Marshal(what)
	if err != nil {
		return err
	}
	var beside []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		beside = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(line, beside, nil)
	runtime.KeepAlive(files)
	if err == nil && n < len(line) {
		_, err = conn.Write(line[n:])
	}
	return err
}

// limited is a reader of at most so many bytes.
type limited struct {
	conn net.Conn
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, errors.New("too long")
	}
	n, err := l.conn.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// dialControl connects by a descriptor of the socket, for its path may be longer than a
// socket's address.
func (r *Runsc) dialControl(ctx context.Context) (*net.UnixConn, error) {
	path, err := r.controlSocket()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotFound, path, err)
	}
	defer unix.Close(fd)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join("/proc/self/fd", fmt.Sprint(fd)))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// controlSocket reads its place from runsc's state.
func (r *Runsc) controlSocket() (string, error) {
	raw, err := os.ReadFile(r.statePath())
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return "", err
	}
	var state struct {
		Sandbox struct {
			ControlSocketPath string `json:"controlSocketPath"`
		} `json:"sandbox"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return "", fmt.Errorf("reading runsc's state of %s: %w", r.id, err)
	}
	if !filepath.IsAbs(state.Sandbox.ControlSocketPath) {
		return "", fmt.Errorf("reading runsc's state of %s: no control socket in it", r.id)
	}
	return state.Sandbox.ControlSocketPath, nil
}
