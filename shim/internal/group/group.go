// Package group is how the shim processes of one containerd find each other: all
// containers of a namespace and group are served by the process that listens on
// the group's socket.
//
// A container joins a living process, which from then on expects it and does not
// end before it came; or it founds a new process. A process retires its socket
// before it stops listening. Founding and retiring hold a lock on the socket
// directory, so that neither takes the other's socket away. The sockets are the
// only state.
package group

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// joinTimeout bounds the wait for a process to answer: a new one loads first, on
// a machine that may be busy refilling a pool.
const joinTimeout = 10 * time.Second

// dyingGrace is how long a process that was killed may still seem to listen.
const dyingGrace, dyingPoll = 500 * time.Millisecond, 20 * time.Millisecond

// prefix tells our sockets from those of other shims in the directory.
const prefix = "s0-"

// Key names a group.
type Key struct {
	Containerd string // containerd's address, so that two of them never share
	Namespace  string
	Group      string
}

// Socket is a group's socket.
type Socket struct{ path string }

// SocketIn is the group's socket in a directory that all of containerd's shims
// use. The name is a digest: a group's name may be long and is nobody's path.
func SocketIn(dir string, k Key) Socket {
	sum := sha256.Sum256([]byte(strings.Join([]string{"s0", k.Containerd, k.Namespace, k.Group}, "\x00")))
	return Socket{path: filepath.Join(dir, fmt.Sprintf("%s%x", prefix, sum[:16]))}
}

// SocketAt is the socket of an [Socket.Address].
func SocketAt(address string) Socket { return Socket{path: strings.TrimPrefix(address, "unix://")} }

// Inherited is the socket of an inherited listener.
func Inherited(fd int) (Socket, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return Socket{}, fmt.Errorf("socket of file descriptor %d: %w", fd, err)
	}
	u, ok := sa.(*unix.SockaddrUnix)
	if !ok || !filepath.IsAbs(u.Name) {
		return Socket{}, fmt.Errorf("file descriptor %d is no named unix socket", fd)
	}
	return Socket{path: u.Name}, nil
}

// Address is the socket in containerd's notation.
func (s Socket) Address() string { return "unix://" + s.path }

// announcement tells the id of a container to come from that of one whose pid containerd
// asks for with the same call, perhaps just after it has gone. No id has a slash.
const announcement = "expect/"

// Announced is the container that a process is asked to expect; ok is false for any other
// request.
func Announced(r *taskapi.ConnectRequest) (id string, ok bool) {
	return strings.CutPrefix(r.ID, announcement)
}

// Announce is the request that Announced reads.
func Announce(id string) *taskapi.ConnectRequest {
	return &taskapi.ConnectRequest{ID: announcement + id}
}

// Join asks the listening process to expect a container. After it returned nil
// the process lives until the container came or a grace has passed.
func (s Socket) Join(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.path)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	_, err = taskapi.NewTTRPCTaskClient(client).Connect(ctx, Announce(id))
	return err
}

// Found makes the socket anew and gives its listener to start, which starts a
// process with it. If a living process is found by then, it is joined instead.
func (s Socket) Found(ctx context.Context, id string, start func(listener *os.File) error) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if s.Join(ctx, id) == nil {
		return nil // somebody founded it while we waited for the lock
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a dead shim's socket: %w", err)
	}
	s.buryOthers()
	l, err := s.listen()
	if err != nil {
		return err
	}
	defer l.Close()
	if err := start(l); err != nil {
		return errors.Join(err, os.Remove(s.path))
	}
	return nil
}

// listen makes the socket. The file stays when the listener is closed: another
// process has it by then.
func (s Socket) listen() (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for a group: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(s.path, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

// Mark identifies the file behind a socket's path.
type Mark struct{ dev, ino uint64 }

// Mark identifies the file that is there now.
func (s Socket) Mark() (Mark, error) {
	var st unix.Stat_t
	if err := unix.Stat(s.path, &st); err != nil {
		return Mark{}, err
	}
	return Mark{dev: uint64(st.Dev), ino: st.Ino}, nil
}

// Retire removes the socket if it still is the marked one. The caller listens
// until it returned, so that the inode can't have been used again.
func (s Socket) Retire(m Mark) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	now, err := s.Mark()
	if errors.Is(err, fs.ErrNotExist) || (err == nil && now != m) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(s.path)
}

// Served reports whether a process listens, even one that does not answer. One
// that is dying may take a moment to stop.
func (s Socket) Served(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, dyingGrace)
	defer cancel()
	tick := time.NewTicker(dyingPoll)
	defer tick.Stop()
	for {
		conn, err := net.DialTimeout("unix", s.path, dyingGrace)
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
			return false
		}
		if err == nil {
			conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return true
		}
	}
}

// Bury removes the socket if nobody listens on it.
func (s Socket) Bury() error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return s.bury()
}

// bury is called with the lock held: nobody is about to listen.
func (s Socket) bury() error {
	conn, err := net.DialTimeout("unix", s.path, joinTimeout)
	if err == nil {
		return conn.Close()
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(s.path)
	}
	return nil
}

// buryOthers removes the sockets of all groups whose process was killed together
// with whoever should have noticed. It is called with the lock held.
func (s Socket) buryOthers() {
	all, _ := filepath.Glob(filepath.Join(filepath.Dir(s.path), prefix+"*"))
	for _, path := range all {
		_ = Socket{path: path}.bury() // best effort: the next founder tries again
	}
}

// lock excludes every other founder and retiree of the directory; a dead holder
// holds nothing.
func (s Socket) lock() (unlock func(), err error) {
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
