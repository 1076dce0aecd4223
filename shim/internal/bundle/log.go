package bundle

import (
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Logger logs through the FIFO that containerd made for this container. A shim
// that serves a group has many such FIFOs, and the one of its first container
// goes away with that container; so each container's lines take its own way.
// Close the file when the container is gone.
func (b *Bundle) Logger(id string) (*slog.Logger, *os.File) {
	// O_RDWR, because the shim must neither wait for containerd to read nor lose
	// the FIFO when containerd restarts.
	fd, err := unix.Open(filepath.Join(b.Dir, logFIFO), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return slog.New(slog.DiscardHandler), nil
	}
	f := os.NewFile(uintptr(fd), logFIFO)
	return slog.New(slog.NewJSONHandler(dropWriter{f}, nil)).With("sandbox", id), f
}

// dropWriter drops what does not fit: nobody reads while containerd is down, and
// the shim must not wait for it.
type dropWriter struct{ f *os.File }

func (w dropWriter) Write(p []byte) (int, error) {
	if rc, err := w.f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _, _ = unix.Write(int(fd), p) })
	}
	return len(p), nil
}
