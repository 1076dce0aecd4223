// Package bucketfs shows a bucket as a file system, to read.
//
// A key is a path, its slashes between directories; a directory is there while some key
// goes through it. An inode is one content of one object: what was replaced has another
// inode once its name is looked up anew, and whoever reads on from the older one has its
// content or ESTALE, never a mixture. Names that no path can have (empty, `.`, `..`, more
// than 255 bytes) are not shown, nor is an object that is called like a directory.
//
// The package owns what it keeps of the bucket, and the goroutines that fetch it. So many
// blocks and pages of lists are kept; and an inode for each name that the kernel knows, which
// is not bounded here: whoever runs it bounds the process. It writes nothing, and knows neither where the bucket is nor what opens it.
package bucketfs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"s0.run/volumed/internal/s3"
)

const (
	// fresh is how long a name is what it was when it was looked up, and a page of a list
	// what is in the bucket: a change shows within twice that.
	fresh = 3 * time.Second
	// forever is for what never changes: an inode's attributes.
	forever = time.Hour
	// callTimeout bounds what one system call waits for the store.
	callTimeout = 40 * time.Second
	// quietTime is between two lines of the log that say why calls fail.
	quietTime = 10 * time.Second

	maxName  = 255
	blockLen = 512 // of st_blocks

	dirMode  = syscall.S_IFDIR | 0o555
	fileMode = syscall.S_IFREG | 0o444
)

// A Store has the objects; package s3 has the contract.
type Store interface {
	List(ctx context.Context, prefix, after string, most int) (s3.Page, error)
	Head(ctx context.Context, key string) (s3.Object, error)
	Read(ctx context.Context, o s3.Object, p []byte, off int64) error
}

// Config says what to show. All fields but Prefix, UID and GID are required.
type Config struct {
	Store  Store
	Prefix string // of all keys: "" or ends with a slash
	UID    uint32 // whose the files are
	GID    uint32
	Log    *slog.Logger
}

// A Server answers the kernel for one mount.
type Server struct {
	tree *tree
	fuse *fuse.Server
}

// tree is what all inodes of a mount share.
type tree struct {
	cfg    Config
	blocks *blocks
	lists  lists
	begun  time.Time    // the time of directories, which have none
	logged atomic.Int64 // when the log was last told of a failure
}

// New takes up a mount by its descriptor, which becomes the Server's: the kernel's first
// question is answered.
func New(cfg Config, device *os.File) (*Server, error) {
	t := &tree{cfg: cfg, blocks: newBlocks(cfg.Store.Read), begun: time.Now()}
	known, lasting := fresh, forever
	opts := &fs.Options{
		EntryTimeout: &known, NegativeTimeout: &known, AttrTimeout: &lasting,
		RootStableAttr: &fs.StableAttr{Ino: 1},
		MountOptions:   fuse.MountOptions{DisableXAttrs: true, DisableSplice: true, Name: "s0-bucket"}, // splicing wants a /dev/null
	}
	raw := fs.NewNodeFS(&dir{tree: t, prefix: cfg.Prefix}, opts)
	// The descriptor is the server's from here on, and must not be closed as a file.
	fd, err := syscall.Dup(int(device.Fd()))
	if err != nil {
		return nil, err
	}
	server, err := fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), &opts.MountOptions)
	if err != nil {
		return nil, err
	}
	return &Server{t, server}, device.Close()
}

// Serve answers until the mount is gone.
func (s *Server) Serve() {
	s.fuse.Serve()
	s.tree.blocks.close()
}

// ownTime is what a call has. A signal that meets whoever waits does not end it: no program
// expects EINTR of a file.
func ownTime(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
}

// errno says what a caller is told, and the log why.
func (t *tree) errno(doing, key string, err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, s3.ErrChanged):
		return syscall.ESTALE
	case errors.Is(err, s3.ErrNotFound):
		return syscall.ENOENT
	}
	now, last := time.Now().UnixNano(), t.logged.Load()
	if now-last > int64(quietTime) && t.logged.CompareAndSwap(last, now) {
		t.cfg.Log.Warn("a call fails", "doing", doing, "key", key, "error", err)
	}
	if errors.Is(err, s3.ErrDenied) {
		return syscall.EACCES
	}
	return syscall.EIO
}

// inode numbers what parts name, as long as that is the same.
func inode(parts ...string) uint64 {
	sum := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(sum, "%d:%s", len(p), p)
	}
	return binary.BigEndian.Uint64(sum.Sum(nil)) | 1<<63 // never a small number, which the root has
}

func (t *tree) attrs(out *fuse.Attr, mode uint32, size int64, at time.Time) {
	out.Mode, out.Size, out.Nlink = mode, uint64(size), 1
	out.Blocks = (out.Size + blockLen - 1) / blockLen
	out.Uid, out.Gid = t.cfg.UID, t.cfg.GID
	out.SetTimes(&at, &at, &at)
}
