package bucketfs

import (
	"container/list"
	"context"
	"sync"

	"s0.run/volumed/internal/s3"
)

const (
	// blockSize is what is asked of the store at once, maxBlocks what is kept.
	blockSize = 1 << 20
	maxBlocks = 32
	// maxFetches run at the same time, fewer than a client has connections.
	maxFetches = 12
)

// blocks are pieces of objects, the last used first. Those who want the same one wait for
// one fetch of it.
type blocks struct {
	read  func(ctx context.Context, o s3.Object, p []byte, off int64) error
	slots chan struct{}

	ctx     context.Context // of all fetches
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	held  map[blockID]*list.Element
	order *list.List // of *block
}

type blockID struct {
	key, etag string
	index     int64
}

type block struct {
	id    blockID
	ready chan struct{} // closed when the rest is set
	data  []byte
	err   error
}

func newBlocks(read func(context.Context, s3.Object, []byte, int64) error) *blocks {
	b := &blocks{read: read, slots: make(chan struct{}, maxFetches), held: map[blockID]*list.Element{}, order: list.New()}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// close ends what is being fetched; nobody gets anything any more.
func (b *blocks) close() {
	b.cancel()
	b.running.Wait()
}

// get waits for a block, which must not be changed.
func (b *blocks) get(ctx context.Context, o s3.Object, index int64) ([]byte, error) {
	one := b.want(o, index)
	select {
	case <-one.ready:
		return one.data, one.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// prefetch has blocks fetched that somebody will come to.
func (b *blocks) prefetch(o s3.Object, from, count int64) {
	for i := from; i < from+count && i*blockSize < o.Size; i++ {
		b.want(o, i)
	}
}

// want finds a block, or has it fetched.
func (b *blocks) want(o s3.Object, index int64) *block {
	id := blockID{o.Key, o.ETag, index}
	b.mu.Lock()
	defer b.mu.Unlock()
	if at := b.held[id]; at != nil {
		b.order.MoveToFront(at)
		return at.Value.(*block)
	}
	one := &block{id: id, ready: make(chan struct{})}
	b.held[id] = b.order.PushFront(one)
	for b.order.Len() > maxBlocks {
		b.drop(b.order.Back())
	}
	b.running.Go(func() { b.fetch(one, o) })
	return one
}

// drop is called with mu held.
func (b *blocks) drop(at *list.Element) {
	b.order.Remove(at)
	delete(b.held, at.Value.(*block).id)
}

// fetch reads a block. One that could not be read is tried again by who wants it next.
func (b *blocks) fetch(one *block, o s3.Object) {
	defer close(one.ready)
	ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
	defer cancel()
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
		off := one.id.index * blockSize
		data := make([]byte, min(blockSize, o.Size-off))
		if one.err = b.read(ctx, o, data, off); one.err == nil {
			one.data = data
			return
		}
	case <-ctx.Done():
		one.err = ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if at := b.held[one.id]; at != nil && at.Value.(*block) == one {
		b.drop(at)
	}
}
