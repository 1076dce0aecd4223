// Package runtime runs a sandbox's processes: one containerd container each,
// named by the sandbox's id, by the containerd runtime of its class.
//
// Beside package images it is all that noded knows of containerd. It owns the
// connection and everything in its containerd namespace: containers, tasks and
// snapshots, all under the sandbox's id, so that a leftover of any of them can be
// attributed and [Runtime.Remove] needs nothing but the id. What a container may
// do is in one place, spec.go, and nothing of it comes from an image or a tenant
// but what is listed there. It decides nothing about a sandbox's life: it does
// what it is told and tells what happened.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	cerrdefs "github.com/containerd/errdefs"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/images"
)

const (
	// redialDelay bounds the pauses between attempts to reach a containerd that
	// is away: sandboxes wait for what only it can do.
	redialDelay = time.Second
	// undoTimeout bounds the undoing of a start that failed; it goes on when the
	// caller has given up.
	undoTimeout = 30 * time.Second
	// readyTimeout bounds the question whether containerd answers.
	readyTimeout = 2 * time.Second
	// exitQueue is how many exits may wait for their reader before the event
	// stream does.
	exitQueue = 256
)

// Config is what a Runtime needs.
type Config struct {
	Socket      string // containerd's
	Namespace   string // all of it belongs to this Runtime
	Snapshotter string // such as overlayfs
	Runsc       string // absolute path of the runsc binary
	RunscRoot   string // runsc's state directory
	AllowRunc   bool   // runtime class runc, which shares the host's kernel
	Kata        bool   // runtime class kata: its shim is installed
	Log         *slog.Logger
}

func (c Config) validate() error {
	if c.Socket == "" || c.Namespace == "" || c.Snapshotter == "" || c.Runsc == "" || c.RunscRoot == "" || c.Log == nil {
		return errors.New("runtime: socket, namespace, snapshotter, runsc, its root and a log are required")
	}
	return nil
}

// Container is what to run.
type Container struct {
	ID         sandbox.ID
	Image      string       // an images.Image's Ref; it is on the node
	Spec       sandbox.Spec // limits and class; Spec.Image is not looked at
	SlotDir    string       // host directory, bound read-only at procapi.Dir; has a directory bin
	BinDir     string       // host directory with procd, bound read-only in its bin
	NetNS      string       // path of the network namespace
	CgroupPath string       // as in an OCI spec; made if it is not there
	OverlayDir string       // host directory for the rootfs' upper layer; gvisor only
	PortalDir  string       // host directory of a shared mount, bound at procapi.Portal; empty: none
	Checkpoint string       // host directory with the image to start from; empty: none; gvisor only
	Group      string       // containers of one group may share a shim
	Labels     map[string]string
	Hostname   string
}

// Exit is the end of a container's first process, and so of its sandbox.
type Exit struct {
	ID     sandbox.ID
	Status uint32 // the process's; 128 + signal when a signal ended it
	At     time.Time
	Reason string // one of the reasons below

	pid uint32 // of the sandbox on the host; 0: not known
}

// The reasons of an exit.
const (
	exited      = "exited"
	outOfMemory = "oom"
	lost        = "lost" // containerd lists no task of it; nobody saw it end
)

// Status is what containerd has under one id.
type Status struct {
	ID     sandbox.ID
	Ended  bool // its first process has ended: said by its shim, not concluded
	Task   bool // containerd has a task of it
	PID    int  // of the sandbox on the host; 0 when there is none, or nobody says
	Labels map[string]string
}

// Runtime runs containers. Its methods are safe for concurrent use on different
// sandboxes; calls for one sandbox come one after the other. They fail while
// containerd is away, which ends no sandbox.
type Runtime struct {
	cfg    Config
	client *containerd.Client
	exits  chan Exit

	version version // of runsc

	mu     sync.Mutex
	images map[string]images.Image // by Ref; immutable, so never stale
	seen   sightings
}

// New makes a Runtime. It connects when it first needs to.
func New(cfg Config) (*Runtime, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	client, err := containerd.New(cfg.Socket, containerd.WithDefaultNamespace(cfg.Namespace), containerd.WithTimeout(redialDelay))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", cfg.Socket, err)
	}
	return &Runtime{
		cfg:    cfg,
		client: client,
		exits:  make(chan Exit, exitQueue),
		images: map[string]images.Image{},
		seen:   newSightings(),
	}, nil
}

// Client is the connection, for package images to share.
func (r *Runtime) Client() *containerd.Client { return r.client }

// Close ends the connection, after Run and every other call have ended.
func (r *Runtime) Close() error { return r.client.Close() }

// Exits delivers every exit of a container that was not asked for by Remove, also
// those that happened while containerd or the connection was away. An exit may be
// delivered twice across a restart of this process. It is closed when Run ends.
func (r *Runtime) Exits() <-chan Exit { return r.exits }

// Ready returns nil when containerd answers.
func (r *Runtime) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ok, err := r.client.IsServing(ctx)
	if err != nil || !ok {
		return errdefs.New(errdefs.Unavailable, "the node's container runtime does not answer").WithCause(err)
	}
	return nil
}

// image reads what the image says of a container, once per image.
func (r *Runtime) image(ctx context.Context, ref string) (images.Image, error) {
	r.mu.Lock()
	img, ok := r.images[ref]
	r.mu.Unlock()
	if ok {
		return img, nil
	}
	img, err := images.Load(ctx, r.client, ref)
	if cerrdefs.IsNotFound(err) {
		return images.Image{}, errdefs.New(errdefs.NotFound, "image %s is not on the node", ref).WithCause(err)
	}
	if err != nil {
		return images.Image{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.images) >= maxImages {
		clear(r.images) // cheap to read again
	}
	r.images[ref] = img
	return img, nil
}

// maxImages bounds the images that are remembered.
const maxImages = 1024
