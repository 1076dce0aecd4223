package bucketfs

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"s0.run/volumed/internal/s3"
)

// maxAhead are the blocks that are fetched before somebody who reads one after the other
// comes to them.
const maxAhead = 8

// file is one content of an object.
type file struct {
	fs.Inode
	tree   *tree
	object s3.Object
}

var (
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
)

// Getattr implements [fs.NodeGetattrer].
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.tree.attrs(&out.Attr, fileMode, f.object.Size, f.object.Modified)
	return 0
}

// Open implements [fs.NodeOpener]. What the kernel has read of this content stays good.
func (f *file) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return &handle{expected: -1}, fuse.FOPEN_KEEP_CACHE, 0
}

// handle is one opening of a file.
type handle struct {
	mu       sync.Mutex
	expected int64 // the block that who reads on comes to next
	ahead    int64 // blocks to fetch before
}

// moved says how many blocks behind this one to fetch.
func (h *handle) moved(block int64) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch block {
	case h.expected - 1: // still there
	case h.expected:
		h.ahead = min(max(2*h.ahead, 1), maxAhead)
	default:
		h.ahead = 0
	}
	h.expected = block + 1
	return h.ahead
}

// Read implements [fs.NodeReader].
func (f *file) Read(ctx context.Context, fh fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	ctx, cancel := ownTime(ctx)
	defer cancel()
	dest = dest[:max(min(int64(len(dest)), f.object.Size-off), 0)]
	for done := 0; done < len(dest); {
		at := off + int64(done)
		block := at / blockSize
		if h, ok := fh.(*handle); ok {
			f.tree.blocks.prefetch(f.object, block+1, h.moved(block))
		}
		data, err := f.tree.blocks.get(ctx, f.object, block)
		if err != nil {
			return nil, f.tree.errno("reading", f.object.Key, err)
		}
		done += copy(dest[done:], data[at%blockSize:])
	}
	return fuse.ReadResultData(dest), 0
}
