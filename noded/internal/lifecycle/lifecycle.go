// Package lifecycle owns every sandbox of the node, from the intent to warm a
// slot until the last trace of it is gone.
//
// It is the one place where a sandbox changes state, and the order is always the
// same: write the decision to the journal, act, tell. The intent to create is
// written before anything is acquired, so the record is the undo of every step:
// a creation that fails, a delete, an exit and a crash all end in the same
// teardown by id, which is idempotent and repeated until it has succeeded. A
// record outlives everything that it names.
//
//	           Create                Claim                  Delete
//	(nothing) ────────► slot ─────────────────► claimed ───────────► terminating ──► (nothing)
//	                     │ failed, drained, exited │ exited              ▲   ▲
//	                     │                         └───────► failed ─────┘   │
//	                     └───────────────────────────────────────────────────┘
//
//	           Pause                        Resume
//	claimed ──────────► pausing ──► paused ─────────► resuming ──► claimed, next generation
//	   ▲ failed            │          ▲ failed           │
//	   └───────────────────┘          └──────────────────┘
//
// A sandbox is paused when its image is complete, and not before; it runs again
// when its record says so, and until then the image is what it is.
//
// A claimed sandbox never becomes a slot again. A slot is free while its warm
// processes are healthy, which procd tells. Who changes a sandbox holds its
// turn ([instance]); the table of instances lives in memory and is rebuilt from
// the journal at start. The package starts no process itself and knows no wire.
package lifecycle

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/events"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/netns"
	"s0.run/noded/internal/snapshots"
	"s0.run/noded/internal/trust"
)

// The times that a sandbox's life is measured by, in one place.
const (
	// startTimeout bounds runtime and handshake of a start on a loaded machine.
	startTimeout = 60 * time.Second
	// warmUpTimeout bounds how long the warm processes of a slot may be unhealthy,
	// from its start or since they were healthy last.
	warmUpTimeout = 5 * time.Minute
	// envTimeout bounds procd's part of a claim; the slot is given up after it.
	envTimeout = 5 * time.Second
	// commitTimeout bounds the wait for the journal where no caller's deadline does.
	commitTimeout = 10 * time.Second
	// redialGrace is how long a sandbox may be without its procd: an exit is
	// reported well within it, and `failed` must show within 5 s of a loss.
	redialGrace = 3 * time.Second
	// adoptGrace is how long procd has to redial after noded itself restarted:
	// all sandboxes of the node redial at once.
	adoptGrace = 30 * time.Second
	// adoptRetry paces the attempts to put its record into force meanwhile.
	adoptRetry = 500 * time.Millisecond
	// settleTime is how long a start waits for adopted sandboxes before it serves.
	settleTime = 3 * time.Second
	// releaseTimeout bounds one attempt to tear a sandbox down.
	releaseTimeout = 60 * time.Second
	// releasesAtOnce bounds teardowns, for after a reboot, or when a template goes, there is
	// one for each of many sandboxes. One that fails makes way until it is tried again.
	releasesAtOnce = 16
	// Teardown is retried for ever, from the first pause to the longest.
	firstRetry, lastRetry = 200 * time.Millisecond, 30 * time.Second
	// imageTimeout bounds the writing and reading of an image: as much as a sandbox
	// may have in memory, on a slow disk.
	imageTimeout = 20 * time.Minute
	// stillTime is how long a sandbox may stand still for one instant of a volume.
	stillTime = time.Second
	// sweepInterval keeps what nobody owns below the promised 10 minutes;
	// sweepRetry is the pace until the first sweep after a start has succeeded.
	sweepInterval, sweepRetry = 2 * time.Minute, 2 * time.Second
	// maxLosses is how many losses wait for package slots.
	maxLosses = 256
	// coldRetryAfter is what a refused cold start is told to wait.
	coldRetryAfter = time.Second
)

// Container is what the runtime is asked to run.
type Container struct {
	ID         sandbox.ID
	Image      string
	Spec       sandbox.Spec
	SlotDir    string // bound read-only at procapi.Dir
	BinDir     string // bound read-only at procapi.Dir/bin
	NetNS      string
	CgroupPath string
	OverlayDir string // for the rootfs' upper layer
	PortalDir  string // bound at procapi.Portal; empty: none
	Checkpoint string // the image to start from; empty: none
	Group      string // containers of one group may share a shim
	Labels     map[string]string
	Hostname   string
}

// Exit says that a sandbox's processes have ended by themselves.
type Exit struct {
	ID     sandbox.ID
	Reason string
	// Unseen: it was concluded, not seen. A connected procd proves it wrong, and
	// for a claimed sandbox it counts for nothing: its channel decides.
	Unseen bool
}

// NotRunning is the reason of an end that was found, not reported.
const NotRunning = "not running"

// Status is what the runtime knows of one container.
type Status struct {
	ID    sandbox.ID
	Ended bool // its processes have ended; false also where the runtime can't tell
	// Taskless: it has nobody who would look after processes. They have ended with him,
	// unless he is only slow to say that he is there.
	Taskless bool
}

// Runtime starts and ends a sandbox's processes.
type Runtime interface {
	// Start returns when the container's first process runs. After an error,
	// Remove clears away whatever was made.
	Start(ctx context.Context, c Container) error
	// Remove ends the sandbox's processes and forgets the container. What does
	// not exist is no error.
	Remove(ctx context.Context, id sandbox.ID) error
	// Checkpoint saves the sandbox's processes, memory and files into dir, which
	// exists and is empty, durably, and ends the sandbox. After an error it may be
	// frozen, and the image may still be completed.
	Checkpoint(ctx context.Context, id sandbox.ID, dir string) error
	// CheckpointFiles is Checkpoint without processes and memory.
	CheckpointFiles(ctx context.Context, id sandbox.ID, dir string) error
	// SaveFiles saves what the sandbox has written to its root filesystem into dir,
	// which exists and has no files yet, durably. The sandbox stands still for as long
	// as that takes and goes on in any case.
	SaveFiles(ctx context.Context, id sandbox.ID, dir string) error
	// Freeze stops the sandbox where it is, for Thaw to let it go on, and SaveFrozen
	// saves one that stands still, which it goes on doing, like Checkpoint; Seal makes that
	// durable and an image.
	Freeze(ctx context.Context, id sandbox.ID) error
	SaveFrozen(ctx context.Context, id sandbox.ID, dir string) error
	Seal(dir string) error
	// Thaw ends what a Checkpoint has left: after it no checkpoint is under way, and
	// the sandbox goes on unless it has ended. An error says that nobody knows yet.
	Thaw(ctx context.Context, id sandbox.ID) error
	// Origin is what an image of the running sandbox is bound to, and Target what one
	// must be bound to for c to start from it.
	Origin(ctx context.Context, id sandbox.ID) (snapshots.Origin, error)
	Target(ctx context.Context, c Container) (snapshots.Origin, error)
	// Saved reports whether dir holds a complete image.
	Saved(dir string) (bool, error)
	// List finds every container of this node.
	List(ctx context.Context) ([]Status, error)
	// Remains lists the sandboxes that the runtime has files of, which those whose shim
	// died may have left, and RemoveRemains removes them when all else of a sandbox is
	// gone; it fails while anything still works with them.
	Remains() ([]sandbox.ID, error)
	RemoveRemains(id sandbox.ID) error
	// Exits delivers exits for as long as the runtime runs.
	Exits() <-chan Exit
}

// Images resolves references.
type Images interface {
	// Ensure returns when the image is on the node, with the reference to start it by.
	Ensure(ctx context.Context, ref string) (string, error)
}

// Disk says whether there is room for more sandboxes and images; package disk has
// the contract.
type Disk interface{ Room() error }

// Network and Groups are the faces of packages netns and cgroup, where the
// contracts are.
type Network interface {
	Slot(id sandbox.ID, index uint32) netns.Slot
	MaxIndex() uint32
	Path(id sandbox.ID) string
	Add(s netns.Slot) error
	Remove(s netns.Slot) error
	List() ([]netns.Slot, error)
}

// Groups: see [Network].
type Groups interface {
	Path(id sandbox.ID) string
	Create(id sandbox.ID, want cgroup.Limits) error
	Set(id sandbox.ID, from, to cgroup.Limits) error
	Hurry(id sandbox.ID) error
	Calm(id sandbox.ID) error
	Stats(id sandbox.ID) (cgroup.Stats, error)
	Remove(ctx context.Context, id sandbox.ID) error
	List() ([]sandbox.ID, error)
}

// Guests leads to procd where it can't dial.
type Guests interface {
	// Dial connects to procd in a sandbox that is a virtual machine. It ends within
	// seconds, also when the machine is not there yet.
	Dial(ctx context.Context, id sandbox.ID) (net.Conn, error)
}

// Config wires a Manager. Every field but Archive, Volumes, Guests and Ending is required.
type Config struct {
	Cluster    string // prefixes new ids
	Scope      string // tells this noded's shims from another's on the same containerd
	DataDir    string // holds a directory per sandbox for its upper layer
	ImageDir   string // holds a directory per sandbox for its image
	Snapshots  *snapshots.Store
	RunDir     string // holds a directory per sandbox for its socket
	BinDir     string // holds procd
	Max        int    // sandboxes of the node, slots included
	ColdStarts int    // cold starts at a time
	Journal    *journal.Journal
	Runtime    Runtime
	Images     Images
	Disk       Disk
	Archive    Archive // nil: there is no object store
	Network    Network
	Egress     Egress
	Volumes    Volumes // nil: there are none
	Guests     Guests  // nil: no sandbox is a virtual machine
	Groups     Groups
	Hub        *events.Hub
	Metrics    *Metrics
	Log        *slog.Logger
	Ending     func(Running) // told of each claimed sandbox whose link is about to go; nil: nobody
}

// Manager is safe for concurrent use.
type Manager struct {
	cfg     Config
	tasks   chan func(context.Context) // what Run shall run in the background
	stopped chan struct{}              // closed when Run takes no more tasks
	changed chan struct{}              // holds a value when pools should look
	images  chan struct{}              // holds a value when images came or went
	cold    *coldStarts
	losses  chan Loss

	releases chan struct{} // holds a value for each teardown that is at work

	adoptGrace, warmUpTimeout time.Duration // the constants, but in tests

	mu        sync.Mutex
	instances map[sandbox.ID]*instance
	claims    map[string]*claimed      // by claim id
	pods      map[string]chan struct{} // whose slots are being asked for, by UID; closed when that is over
	indexes   indexes
}

// New makes a manager that knows nothing yet; Load reads the journal.
func New(cfg Config) *Manager {
	m := &Manager{
		cfg:       cfg,
		tasks:     make(chan func(context.Context)),
		stopped:   make(chan struct{}),
		changed:   make(chan struct{}, 1),
		images:    make(chan struct{}, 1),
		losses:    make(chan Loss, maxLosses),
		releases:  make(chan struct{}, releasesAtOnce),
		instances: map[sandbox.ID]*instance{},
		claims:    map[string]*claimed{},
		pods:      map[string]chan struct{}{},
		indexes:   newIndexes(cfg.Network.MaxIndex()),

		adoptGrace: adoptGrace, warmUpTimeout: warmUpTimeout,
	}
	m.cold = newColdStarts(cfg.ColdStarts, m.tenants)
	return m
}

// Run handles exits, teardowns and sweeps until ctx ends, and returns when
// everything that it started has ended. Sandboxes go on living.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(m.stopped)
	wg.Go(func() { m.keepSweeping(ctx) })
	exits := m.cfg.Runtime.Exits()
	for {
		select {
		case <-ctx.Done():
			return nil
		case task := <-m.tasks:
			wg.Go(func() { task(ctx) })
		case exit, ok := <-exits:
			if !ok {
				exits = nil // the runtime has ended before us
				continue
			}
			if inst := m.find(exit.ID); inst != nil {
				life := m.lifeOf(inst) // now: whoever handles it may be late
				wg.Go(func() { m.exited(ctx, inst, life, exit) })
			}
		}
	}
}

// background runs a task under Run's care. After Run has ended it does not, and
// says so: the journal tells the next noded what was left to do.
func (m *Manager) background(task func(context.Context)) bool {
	select {
	case m.tasks <- task:
		return true
	case <-m.stopped:
		return false
	}
}

// Changed delivers a value when slots or sandboxes may have changed since the
// last one was taken. It has one reader: package slots.
func (m *Manager) Changed() <-chan struct{} { return m.changed }

func (m *Manager) slotDir(id sandbox.ID) string    { return filepath.Join(m.cfg.RunDir, string(id)) }
func (m *Manager) believed() trust.Dir             { return trust.Dir(m.cfg.RunDir) }
func (m *Manager) overlayDir(id sandbox.ID) string { return filepath.Join(m.cfg.DataDir, string(id)) }

func (m *Manager) log(rec journal.Record) *slog.Logger {
	return m.cfg.Log.With("sandbox", rec.ID, "gen", rec.Generation)
}

// Get is what the journal says of a claimed sandbox.
func (m *Manager) Get(id sandbox.ID) (Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	inst := m.instances[id]
	if inst == nil || inst.rec.Claim == nil {
		return Sandbox{}, notFound(id)
	}
	return inst.sandbox(), nil
}

// SlotState is what a pool counts.
type SlotState int

// A slot is warming, then free, then somebody's; what has ended is not counted.
const (
	Warming SlotState = iota
	Free
	Taken
)

// Slot is one of a pool's sandboxes.
type Slot struct {
	ID       sandbox.ID
	PoolKey  string
	Pod      string // that stands for it, and decides about it; empty: none
	SpecHash string
	State    SlotState
	Reason   string // why it still warms, as its warm processes tell it
}

// Slots lists what pools count.
func (m *Manager) Slots() []Slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Slot, 0, len(m.instances))
	for id, inst := range m.instances {
		s := Slot{ID: id, PoolKey: inst.rec.PoolKey, Pod: inst.rec.Pod, SpecHash: inst.specHash, Reason: inst.unhealthy}
		switch {
		case inst.rec.State == journal.Claimed || inst.rec.State == journal.Slot && inst.binding:
			s.State = Taken
		case inst.rec.State == journal.Slot && inst.ready:
			s.State = Free
		case inst.rec.State == journal.Slot:
			s.State = Warming
		default:
			continue
		}
		all = append(all, s)
	}
	return all
}

// Images are those that sandboxes and snapshots need, as their specs name them: what is
// paused or kept has no container that would say so.
func (m *Manager) Images() []string {
	kept, err := m.cfg.Snapshots.All()
	if err != nil {
		m.cfg.Log.Warn("looking for snapshots' images", "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	refs := map[string]bool{}
	for _, inst := range m.instances {
		if !ended(inst.rec) {
			refs[inst.rec.Spec.Image] = true
		}
	}
	for _, ref := range kept {
		refs[ref.Image] = true
	}
	return slices.Collect(maps.Keys(refs))
}

// Holding counts everything that is somewhere between its intent and its last
// trace; what is none any more needs nothing from this node but, if it is paused,
// its disk.
func (m *Manager) Holding() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, inst := range m.instances {
		if inst.rec.State != journal.Paused || inst.disposing {
			n++
		}
	}
	return n
}

func notFound(id sandbox.ID) error {
	return errdefs.New(errdefs.NotFound, "sandbox %s not found", id)
}

// Codes of errors that callers tell apart beyond their kind.
const (
	// CodeSlotTaken: the slot is not free; another one may be.
	CodeSlotTaken = "slot_taken"
	// CodePaused: the sandbox has to be resumed first.
	CodePaused = nodeapi.CodePaused
	// CodeStaleGeneration: the caller knows an older instance of the sandbox.
	CodeStaleGeneration = nodeapi.CodeStaleGeneration
)

func checkGeneration(rec journal.Record, want sandbox.Generation) error {
	got := known(rec)
	if want == 0 || want == got || got == 0 { // of what is swept nobody knows which it was
		return nil
	}
	return errdefs.WithCode(errdefs.Conflict, CodeStaleGeneration, "sandbox %s has generation %d, not %d", rec.ID, got, want)
}

// known is the generation that others know: one that a resume has begun is nobody's
// until it runs, for it may never. It is not that of the image where the sandbox was to go
// on elsewhere in between.
func known(rec journal.Record) sandbox.Generation {
	if rec.State == journal.Resuming {
		return rec.Generation - 1
	}
	return rec.Generation
}
