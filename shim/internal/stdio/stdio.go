// Package stdio connects a process in a sandbox to what containerd named as its
// standard files: FIFOs, file:// URIs, or nothing.
//
// Files and FIFOs are handed to runsc as they are, so that no byte passes through
// the shim and output keeps flowing while the shim is busy. Only a terminal is
// copied, for its master must be held by somebody. The package owns the files it
// opened until [Stdio.Close].
package stdio

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// Paths names the standard files of one process; an empty one is /dev/null. With
// Terminal, In and Out are joined to a terminal and Err is ignored.
type Paths struct {
	In, Out, Err string
	Terminal     bool
}

// Stdio is the opened standard files. In, Out and Err are for the process; nil
// is /dev/null.
type Stdio struct {
	In, Out, Err *os.File

	mu     sync.Mutex
	hold   []*os.File // ends kept open so that the peer's absence is not EOF or EPIPE
	stdin  *os.File   // the kept write end of In, until CloseStdin
	master console.Console

	inputs, outputs sync.WaitGroup // copies to and from the terminal
}

// drainTimeout bounds the wait for a terminal's last output: a background child
// may keep the terminal, and a client may have stopped reading.
const drainTimeout = 2 * time.Second

// ErrTerminal is returned for a resize of what is no terminal.
var ErrTerminal = errors.New("process has no terminal")

// Open opens the files. It never waits for the peer of a FIFO.
func Open(p Paths) (*Stdio, error) {
	s := &Stdio{}
	if err := s.open(p); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stdio) open(p Paths) (err error) {
	if p.Terminal {
		return s.openTerminal(p)
	}
	if s.In, err = s.openIn(p.In, blocking); err != nil {
		return fmt.Errorf("opening stdin: %w", err)
	}
	if s.Out, err = s.openOut(p.Out, blocking); err != nil {
		return fmt.Errorf("opening stdout: %w", err)
	}
	if p.Err != "" && p.Err == p.Out {
		s.Err = s.Out
		return nil
	}
	if s.Err, err = s.openOut(p.Err, blocking); err != nil {
		return fmt.Errorf("opening stderr: %w", err)
	}
	return nil
}

func (s *Stdio) openIn(path string, use fifoUse) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	// The shim holds a write end: a client that has not come yet, or comes again
	// after containerd's restart, is not the end of the input. CloseStdin is.
	hold, err := openFIFO(path, unix.O_RDWR, blocking)
	if err != nil {
		return nil, err
	}
	s.stdin = hold
	return openFIFO(path, unix.O_RDONLY, use)
}

func (s *Stdio) openOut(uri string, use fifoUse) (*os.File, error) {
	if uri == "" {
		return nil, nil
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "", "fifo":
		hold, err := openFIFO(u.Path, unix.O_RDWR, blocking) // a reader that went away must not kill the process
		if err != nil {
			return nil, err
		}
		s.hold = append(s.hold, hold)
		return openFIFO(u.Path, unix.O_WRONLY, use)
	case "file":
		if err := os.MkdirAll(filepath.Dir(u.Path), 0o755); err != nil {
			return nil, err
		}
		return os.OpenFile(u.Path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	}
	return nil, fmt.Errorf("%s: only FIFOs and file:// are supported", uri)
}

// fifoUse says who reads or writes a FIFO's file.
type fifoUse bool

const (
	blocking fifoUse = false // another process, which expects a file that blocks
	pollable fifoUse = true  // this process, which must be able to give up
)

// openFIFO opens a FIFO without waiting for its other end.
func openFIFO(path string, mode int, use fifoUse) (*os.File, error) {
	fd, err := unix.Open(path, mode|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if use == blocking {
		if err := unix.SetNonblock(fd, false); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openTerminal puts a terminal between the process and the named files.
func (s *Stdio) openTerminal(p Paths) error {
	in, err := s.openIn(p.In, pollable)
	if err != nil {
		return fmt.Errorf("opening stdin: %w", err)
	}
	out, err := s.openOut(p.Out, pollable)
	if err != nil {
		if in != nil {
			in.Close()
		}
		return fmt.Errorf("opening stdout: %w", err)
	}
	for _, f := range []*os.File{in, out} {
		if f != nil {
			s.hold = append(s.hold, f)
		}
	}
	master, slave, err := openPTY()
	if err != nil {
		return fmt.Errorf("opening a terminal: %w", err)
	}
	s.In, s.Out, s.Err, s.master = slave, slave, slave, master
	if in != nil {
		s.inputs.Go(func() { _, _ = io.Copy(master, in) }) // ends when Close closes in
	}
	if out != nil {
		s.outputs.Go(func() { _, _ = io.Copy(out, master) }) // ends when the last slave is closed
	}
	return nil
}

func openPTY() (console.Console, *os.File, error) {
	master, name, err := console.NewPty()
	if err != nil {
		return nil, nil, err
	}
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

// Started closes what only the process needs, now that it has it.
func (s *Stdio) Started() {
	for _, f := range []*os.File{s.In, s.Out, s.Err} {
		if f != nil {
			f.Close() // a shared one twice, which is harmless
		}
	}
}

// CloseStdin lets the process see the end of its input once the client's end is
// closed, too.
func (s *Stdio) CloseStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdin != nil {
		s.stdin.Close()
		s.stdin = nil
	}
}

// Resize changes the terminal's size.
func (s *Stdio) Resize(rows, cols uint16) error {
	if s.master == nil {
		return ErrTerminal
	}
	return s.master.Resize(console.WinSize{Height: rows, Width: cols})
}

// Close lets go of everything. The process has ended: what it wrote to a terminal
// is delivered first, to a client that reads it within drainTimeout.
func (s *Stdio) Close() {
	s.Started()
	s.drain()
	s.CloseStdin()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.hold {
		f.Close()
	}
	s.hold = nil
	if s.master != nil {
		s.master.Close()
	}
	s.inputs.Wait()
	s.outputs.Wait()
}

func (s *Stdio) drain() {
	drained := make(chan struct{})
	go func() { defer close(drained); s.outputs.Wait() }() // Close waits for it, too
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
	}
}
