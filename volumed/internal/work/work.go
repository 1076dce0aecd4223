// Package work is the working tier: volumes as sandboxes and callers write to them.
//
// A volume in use is an overlay on this node. Below are the layers of the version that it
// began with, above is a directory of this node, in which everything is written and read
// at the speed of the local disk. A commit turns what has changed above since the last one
// into a layer of the durable tier and makes it, with those below, the volume's next
// version: whole, or not at all. The overlay itself goes on as it is.
//
// What this node alone has lies in a directory for each volume: the upper layer, and a
// record of what it lies on and what was committed of it. After a crash that is taken up
// again; when another node has begun a later epoch meanwhile, it is put aside, never
// committed and never removed. The mounts are the kernel's and outlive this process.
//
// One turn for each volume: who changes it has it.
package work

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/tree"
)

const (
	// commitInterval is how long what was written is on this node alone; a volume whose
	// tree takes long to look at is looked at more seldom, so that it costs no more than
	// one part in lookShare of a CPU.
	commitInterval = 5 * time.Second
	lookShare      = 20
	// idleTime is how long a volume that nobody uses stays mounted, for the next claim.
	idleTime = 10 * time.Minute
	// maxRounds is how often a commit looks again for what was written meanwhile.
	maxRounds = 4
	// collectInterval is for layers that nobody names.
	collectInterval = time.Hour
	// maxEntries of a volume's upper layer.
	maxEntries = 4_000_000
	// mergeFrom is the number of layers from which some are made one.
	mergeFrom = 16
)

// Volume is what has to be known of one to work on it.
type Volume struct {
	ID    string
	Team  string
	Epoch uint64
	UID   uint32
	GID   uint32
	Limit int64 // bytes; 0: none
}

// Config wires a Manager. All fields are required.
type Config struct {
	Store   *store.Store
	Node    string       // tells this node's holds from others'
	DataDir string       // upper layers and their records
	RunDir  string       // mounts; on one file system with nothing
	Sync    func() error // returns when what was written to the durable tier is durable
	Log     *slog.Logger
}

// Manager is safe for concurrent use.
type Manager struct {
	cfg    Config
	layers *mounted

	mu      sync.Mutex
	volumes map[string]*volume
}

// volume is one in use. What is not below mu belongs to whoever has the turn.
type volume struct {
	id   string
	turn chan struct{}

	record  record
	open    bool
	head    store.Version // what is committed
	under   []store.Layer // what the next commit lies on
	whole   bool          // which is what the upper layer lies on: it is committed as a whole
	pending []store.Layer // made and not committed
	seen    tree.Tree     // what the last look saw
	hidden  map[string]hiddenSize
	lost    error // why nothing is committed any more
	looked  time.Time
	took    time.Duration // the last look

	readers map[uint64]*reader // by version

	mu    sync.Mutex
	uses  map[string]bool // by the id of a mount; true: for writing
	idle  time.Time       // since when there is none
	dirty bool            // something was written that is on this node alone
}

// reader is a read-only view of one version.
type reader struct {
	path string
	uses map[string]bool
	base []store.Layer
}

// New makes a manager that has nothing yet: Recover takes up what an earlier one left.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, volumes: map[string]*volume{}, layers: &mounted{dir: filepath.Join(cfg.RunDir, "l"), store: cfg.Store, refs: map[string]int{}}}
}

func (m *Manager) upperDir(id string) string { return filepath.Join(m.cfg.DataDir, id, "upper") }
func (m *Manager) workDir(id string) string  { return filepath.Join(m.cfg.DataDir, id, "work") }
func (m *Manager) merged(id string) string   { return filepath.Join(m.cfg.RunDir, "w", id) }
func (m *Manager) below(id string) string    { return filepath.Join(m.cfg.RunDir, "b", id) }

// get finds or makes what is known of a volume.
func (m *Manager) get(id string) *volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[id]
	if v == nil {
		v = &volume{id: id, turn: make(chan struct{}, 1), uses: map[string]bool{}, readers: map[uint64]*reader{}, idle: time.Now()}
		m.volumes[id] = v
	}
	return v
}

func (m *Manager) all() []*volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*volume, 0, len(m.volumes))
	for _, v := range m.volumes {
		all = append(all, v)
	}
	return all
}

// take takes a volume's turn.
func (m *Manager) take(ctx context.Context, id string) (*volume, func(), error) {
	if err := store.CheckID("volume", id); err != nil {
		return nil, nil, err
	}
	v := m.get(id)
	select {
	case v.turn <- struct{}{}:
		return v, func() { <-v.turn }, nil
	case <-ctx.Done():
		return nil, nil, errdefs.New(errdefs.Unavailable, "volume %s is busy", id).WithCause(ctx.Err())
	}
}

// Create makes a volume that is empty, or what a snapshot is. It stays mounted for a
// while, so that its first claim finds it so.
func (m *Manager) Create(ctx context.Context, spec Volume, from *store.Version) (store.Version, error) {
	if err := m.create(spec, from); err != nil {
		return store.Version{}, err
	}
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return store.Version{}, err
	}
	defer done()
	return v.head, m.ensureOpen(v, spec)
}

func (m *Manager) create(spec Volume, from *store.Version) error {
	if _, err := m.cfg.Store.Head(spec.ID); err == nil {
		return nil // it is repeated
	}
	begin := store.Version{Team: spec.Team}
	if from != nil {
		if from.Team != spec.Team {
			return errdefs.New(errdefs.NotFound, "snapshot not found")
		}
		begin = *from
	} else {
		layer, err := m.newLayer(func(f *os.File) (layers.Info, error) { return layers.Empty(f, spec.UID, spec.GID) })
		if err != nil {
			return err
		}
		begin.Layers = []store.Layer{layer}
	}
	begin.Epoch = spec.Epoch
	if _, err := m.cfg.Store.Create(spec.ID, begin); err != nil {
		return err
	}
	return m.cfg.Sync()
}

// Use mounts a volume for writing, or what is committed of it for reading, and says where.
// It stays so until Release of the same use. It may be repeated.
func (m *Manager) Use(ctx context.Context, spec Volume, use string, readOnly bool) (string, error) {
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return "", err
	}
	defer done()
	if readOnly {
		return m.read(v, spec, use)
	}
	if err := m.ensureOpen(v, spec); err != nil {
		return "", err
	}
	return m.merged(v.id), m.addUse(v, use, 0)
}

// Leave ends a use, when what was written is committed; one that is not there has ended
// already. That a commit failed is told, and what was written stays on this node.
func (m *Manager) Leave(ctx context.Context, id, use string) error {
	v, done, err := m.take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if v.open && v.writes(use) {
		if _, err = m.commit(ctx, v); err != nil {
			m.cfg.Log.Warn("committing what an ended use has written", "volume", id, "error", err)
		}
	}
	return errors.Join(err, m.leaveReader(v, use), m.endUse(v, use, 0))
}

func (v *volume) writes(use string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.uses[use]
}

// Commit makes what was written to a volume durable. clean says that the version is what
// the volume was at one instant; else something was written all the time.
func (m *Manager) Commit(ctx context.Context, id string) (head store.Version, clean bool, err error) {
	v, done, err := m.take(ctx, id)
	if err != nil {
		return store.Version{}, false, err
	}
	defer done()
	if !v.open {
		head, err = m.cfg.Store.Head(id)
		return head, true, err
	}
	clean, err = m.commit(ctx, v)
	return v.head, clean, err
}

// State is what this node knows of a volume.
type State struct {
	Version     store.Version
	Uncommitted bool
	Lost        error
}

// State: see [State].
func (m *Manager) State(ctx context.Context, id string) (State, error) {
	v, done, err := m.take(ctx, id)
	if err != nil {
		return State{}, err
	}
	defer done()
	if !v.open {
		head, err := m.cfg.Store.Head(id)
		return State{Version: head}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return State{Version: v.head, Uncommitted: v.dirty, Lost: v.lost}, nil
}

// empties are two empty directories, for an overlay has at least two layers.
func (m *Manager) empties() []string {
	return []string{filepath.Join(m.cfg.RunDir, "e1"), filepath.Join(m.cfg.RunDir, "e2")}
}

func (m *Manager) overlay(at string, base []store.Layer, upper, work string) error {
	dirs := make([]string, 0, len(base)+2)
	for _, l := range base {
		dirs = append(dirs, m.layers.path(l.ID))
	}
	return layers.Overlay(at, append(dirs, m.empties()...), upper, work)
}
