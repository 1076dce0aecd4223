package proc

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/rawio"
)

// Errors of [Process.Write].
var (
	ErrInputFull = errors.New("input buffer is full")
	ErrNoInput   = errors.New("process has no input")
)

// input feeds a process through a bounded queue. Its goroutine exists only while
// there is something to write; done counts it.
type input struct {
	file   *os.File        // in non-blocking mode
	conn   syscall.RawConn // the file's
	done   *sync.WaitGroup
	before func([]byte) // optional: called with what is about to be written

	mu      sync.Mutex
	queue   []byte
	queued  int // queue and what is being written
	writing bool
	closed  bool
	ending  bool          // the file is to be closed behind what is queued
	room    chan struct{} // closed when the queue gets shorter; nil while nobody waits
}

func newInput(file *os.File, done *sync.WaitGroup, before func([]byte)) (*input, error) {
	conn, err := file.SyscallConn()
	return &input{file: file, conn: conn, done: done, before: before}, err
}

// write queues a copy of data, all of it or nothing.
func (in *input) write(data []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed || in.ending {
		return ErrNoInput
	}
	if in.queued+len(data) > procapi.MaxInputBytes {
		return ErrInputFull
	}
	in.queue = append(in.queue, data...)
	in.queued += len(data)
	if !in.writing {
		in.writing = true
		in.done.Go(in.flush)
	}
	return nil
}

func (in *input) flush() {
	for {
		data := in.take()
		if data == nil {
			return
		}
		if in.before != nil {
			in.before(data)
		}
		if _, err := rawio.WriteAll(in.conn, data); err != nil {
			in.close()
		}
	}
}

// take returns what to write next; nil ends the goroutine.
func (in *input) take() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	data := in.queue
	in.queue, in.queued = nil, len(data)
	in.wakeLocked()
	if len(data) == 0 || in.closed {
		in.writing = false
		in.endLocked()
		return nil
	}
	return data
}

// pending is how much is not written yet.
func (in *input) pending() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.queued
}

// end closes the file once everything queued is written.
func (in *input) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ending = true
	if !in.writing {
		in.endLocked()
	}
}

func (in *input) endLocked() {
	if in.ending && !in.closed {
		in.closed = true
		in.file.Close()
	}
}

// close refuses further input and drops what is queued.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.wakeLocked()
}

func (in *input) wakeLocked() {
	if in.room != nil {
		close(in.room)
		in.room = nil
	}
}

// awaitRoom returns a channel that is closed once a write may have a chance again.
func (in *input) awaitRoom() <-chan struct{} {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.room == nil {
		in.room = make(chan struct{})
	}
	room := in.room
	if in.closed || !in.writing {
		in.wakeLocked()
	}
	return room
}
