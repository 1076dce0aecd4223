package procd

import (
	"net"
	"sync"
	"time"
)

const (
	// headersWait is how long an answer's headers wait for its body. A handler that has
	// both gives them within a few microseconds.
	headersWait = 100 * time.Microsecond
	maxHeld     = 512

	// Of a frame: RFC 9113, sections 4.1 and 6.2.
	frameHeader   = 9
	typeHeaders   = 1
	flagEndStream = 1
)

// joiner sends an answer's headers and the first of its body in one piece. The server
// writes them one after the other, and noded would be woken for each.
type joiner struct {
	net.Conn

	mu   sync.Mutex
	held []byte      // headers that wait
	late *time.Timer // sends them alone; nil before the first
	err  error       // of that
}

// Write implements net.Conn. What was held fails with the write behind it.
func (j *joiner) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return 0, j.err
	}
	if len(j.held) == 0 && bodyFollows(b) {
		j.hold(b)
		return len(b), nil
	}
	if len(j.held) == 0 {
		return j.Conn.Write(b)
	}
	j.late.Stop()
	held := len(j.held)
	j.held = append(j.held, b...)
	n, err := j.Conn.Write(j.held)
	j.held = j.held[:0]
	return max(0, n-held), err
}

func (j *joiner) hold(b []byte) {
	j.held = append(j.held, b...)
	if j.late == nil {
		j.late = time.AfterFunc(headersWait, j.send)
		return
	}
	j.late.Reset(headersWait)
}

// send sends headers whose body is not there yet.
func (j *joiner) send() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.held) > 0 {
		_, j.err = j.Conn.Write(j.held)
		j.held = j.held[:0]
	}
}

// bodyFollows tells a write that is the headers of one answer and nothing else.
func bodyFollows(b []byte) bool {
	return frameHeader < len(b) && len(b) <= maxHeld &&
		int(b[0])<<16|int(b[1])<<8|int(b[2]) == len(b)-frameHeader && b[3] == typeHeaders && b[4]&flagEndStream == 0
}
