// Package jail serves the file calls of a volume from a process whose root is the volume.
//
// The calls are those that procd has inside a sandbox, by the same code (internal/files):
// it opens paths as it finds them, whatever symlinks a tenant has made. What keeps it in
// the volume is the kernel: the process has nothing else below its root, a mount without
// devices, setuid and exec. Its user is the volume's, with those capabilities alone that
// let it reach what other users have left there. It starts no process, and ends with its
// connection, so it never outlives whoever started it.
//
// A [Process] is the one side, for volumed; [Main] the other.
package jail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/cage"
)

const (
	// closeGrace is what running calls get to take back what is half done.
	closeGrace = 5 * time.Second
	// writeTimeout ends a process that has stopped reading.
	writeTimeout = time.Minute

	maxHeaderBytes = 64 << 10
	maxFrameBytes  = 256 << 10
	// streamWindow is of one unread body, connWindow of all: a slow reader must not stop
	// the others.
	streamWindow, connWindow = 512 << 10, 1 << 30
)

// The descriptors that a process begins with, behind the standard ones.
const treeFD, connFD = 3, 4

// kept are the capabilities that a process has over its tree: its files may be anybody's.
var kept = []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER}

// environment: nothing is looked up in a tenant's tree, not even a time zone.
var environment = []string{"TZ=UTC", "GOMAXPROCS=4", "GOMEMLIMIT=128MiB", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}

// Config of a process. All fields but Full are required.
type Config struct {
	Command []string // runs Main
	Dir     string   // the tree; no symlink leads to it
	UID     uint32
	GID     uint32
	Full    string // the code of answers for want of room
}

// Process is safe for concurrent use. It implements [http.RoundTripper].
type Process struct {
	cmd    *exec.Cmd
	conn   net.Conn
	client *http.ClientConn
	ended  chan struct{} // closed when the process has ended
}

// Start starts a process, which the caller closes.
func Start(cfg Config) (*Process, error) {
	tree, err := detached(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", cfg.Dir, err)
	}
	defer tree.Close()
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p := &Process{conn: ours, ended: make(chan struct{})}
	if p.client, err = transport.NewClientConn(context.WithValue(context.Background(), connKey{}, ours), "http", "volume:80"); err != nil {
		ours.Close()
		return nil, err
	}
	if p.cmd, err = spawn(cfg, tree, theirs); err != nil {
		p.client.Close()
		return nil, fmt.Errorf("starting what serves %s: %w", cfg.Dir, err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // how it ended is in its log
	}()
	return p, nil
}

// RoundTrip implements [http.RoundTripper].
func (p *Process) RoundTrip(r *http.Request) (*http.Response, error) { return p.client.RoundTrip(r) }

// Pid is the process's.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended, by whatever.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Close ends the process. Nothing of the tree is in its hands when it returns.
func (p *Process) Close() {
	p.client.Close()
	p.conn.Close()
	late := time.NewTimer(closeGrace)
	defer late.Stop()
	select {
	case <-p.ended:
	case <-late.C:
		_ = p.cmd.Process.Kill() // it has ended otherwise
		<-p.ended
	}
}

// detached is a mount of the tree that is nowhere but in a descriptor, and shows no mount
// below it.
func detached(dir string) (*os.File, error) {
	at, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cloning: %w", err)
	}
	tree := os.NewFile(uintptr(fd), dir)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("flags: %w", err), tree.Close())
	}
	return tree, nil
}

func pair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	our, theirs := os.NewFile(uintptr(fds[0]), "files"), os.NewFile(uintptr(fds[1]), "files")
	defer our.Close()
	if ours, err = net.FileConn(our); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

func spawn(cfg Config, tree, conn *os.File) (*exec.Cmd, error) {
	cmd := exec.Command(cfg.Command[0], append(cfg.Command[1:len(cfg.Command):len(cfg.Command)], cfg.Full)...)
	cmd.Dir, cmd.Env, cmd.Stderr, cmd.ExtraFiles = "/", environment, os.Stderr, []*os.File{tree, conn}
	return cmd, cage.Start(cmd, cfg.UID, cfg.GID, kept...)
}

type connKey struct{}

var transport = func() *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(connKey{}).(net.Conn), nil
		},
		Protocols: new(http.Protocols), DisableCompression: true, MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxReadFrameSize: maxFrameBytes, MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow,
			WriteByteTimeout: writeTimeout,
		},
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}()
