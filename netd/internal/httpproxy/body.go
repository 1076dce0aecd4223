package httpproxy

import (
	"io"
	"sync/atomic"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/share"
)

// body is a request's, of which somebody may read all to look into it. What he keeps
// then is the sandbox's memory until the request has been answered.
type body struct {
	io.ReadCloser
	memory *share.Pool[sandbox.ID]
	id     sandbox.ID
	kept   bool // what is read now
	taken  int
	ended  atomic.Bool // all of it was read
}

var errNoMemory = errdefs.New(errdefs.Exhausted, "the sandbox has too many bodies looked into at once")

func (b *body) Read(p []byte) (int, error) {
	if !b.kept {
		n, err := b.ReadCloser.Read(p)
		b.end(err)
		return n, err
	}
	if !b.memory.Take(b.id, len(p)) {
		return 0, errNoMemory
	}
	n, err := b.ReadCloser.Read(p)
	b.memory.Give(b.id, len(p)-n)
	b.taken += n
	b.end(err)
	return n, err
}

func (b *body) end(err error) {
	if err == io.EOF {
		b.ended.Store(true)
	}
}

// whileKept has f read what it keeps.
func (b *body) whileKept(f func() error) error {
	b.kept = true
	defer func() { b.kept = false }()
	return f()
}

func (b *body) release() {
	b.memory.Give(b.id, b.taken)
	b.taken = 0
}
