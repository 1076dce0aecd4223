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
// One turn for each volume: who changes it has it. What is asked of a volume waits for no
// turn, and no volume waits for another.
package work

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/room"
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
	// maxEntries of a volume's upper layer: two looks at it are in memory, of some 200
	// bytes an entry. A room has fewer files, and some have several names.
	maxEntries = 5 << 18
	// mergeFrom is the number of layers from which some are made one.
	mergeFrom = 16
	// spareRoom is the part of a volume's limit that may be written to change what is there,
	// which is on the disk twice until it is committed; it is never less than minRoom.
	spareRoom, minRoom = 8, 16 << 20
	// workers commit volumes beside each other; one that is slow has one of them.
	workers = 8
	// writerWait is how long the next writer waits for the one before, whose sandbox may be
	// ending; leaveAfter is when he is to ask again after that.
	writerWait, leaveAfter = 8 * time.Second, time.Second
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
	at      string // where it is mounted
	base    stack  // what the upper layer lies on
	head    store.Version
	under   []store.Layer // what the next commit lies on
	whole   bool          // which is what the upper layer lies on: it is committed as a whole
	pending []store.Layer // made and not committed
	seen    tree.Tree     // what the last look saw
	refused map[string]error
	hidden  map[string]hiddenSize
	lost    error // why nothing of what is here is committed any more

	captured *capture // what is the next version, before anything else; nil: nothing
	moments  []moment // that were captured and are versions, the latest last

	looked time.Time
	took   time.Duration // the last look

	released uint64 // the latest epoch that was let go: nobody has the volume at it any more

	readers map[string]*reader // by path

	mu    sync.Mutex
	uses  map[string]bool // by the id of a mount; true: for writing
	share func()          // takes back what works on the volume without a sandbox; nil: nothing does
	left  chan struct{}   // closed when a use ends; nil while nobody waits
	idle  time.Time       // since when there is none
	dirty bool            // something was written that is on this node alone
	shown *State          // as of the last turn, where there is something to show
}

// New makes a manager that has nothing yet: Recover takes up what an earlier one left.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, volumes: map[string]*volume{}, layers: &mounted{
		dir: filepath.Join(cfg.RunDir, "l"), store: cfg.Store, refs: map[string]*layerRef{}, flight: map[string]int{},
	}}
}

func (m *Manager) dir(id string) string      { return filepath.Join(m.cfg.DataDir, id) }
func (m *Manager) upperDir(id string) string { return filepath.Join(room.Path(m.dir(id)), "upper") }
func (m *Manager) workDir(id string) string  { return filepath.Join(room.Path(m.dir(id)), "work") }

// Views of a volume are mounted by name and by the mounting of the store that they lie on.
func (m *Manager) mergedDir() string       { return filepath.Join(m.cfg.RunDir, "w") }
func (m *Manager) belowDir() string        { return filepath.Join(m.cfg.RunDir, "b") }
func (m *Manager) readersDir() string      { return filepath.Join(m.cfg.RunDir, "r") }
func (m *Manager) below(v *volume) string  { return view(m.belowDir(), v.base.store, v.id) }
func view(dir, mounting, id string) string { return filepath.Join(dir, mounting+"."+id) }

// get finds or makes what is known of a volume.
func (m *Manager) get(id string) *volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[id]
	if v == nil {
		v = &volume{id: id, turn: make(chan struct{}, 1), uses: map[string]bool{}, readers: map[string]*reader{}, idle: time.Now()}
		m.volumes[id] = v
	}
	return v
}

func (m *Manager) find(id string) *volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.volumes[id]
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
		return v, func() { m.endTurn(v) }, nil
	case <-ctx.Done():
		return nil, nil, errdefs.New(errdefs.Unavailable, "volume %s is busy", id).WithCause(ctx.Err())
	}
}

// endTurn shows what a turn has made of a volume, and ends it.
func (m *Manager) endTurn(v *volume) {
	var shown *State
	if v.open {
		shown = &State{Version: v.head, Lost: v.lost}
		shown.Version.Epoch = v.epoch()
	}
	v.mu.Lock()
	v.shown = shown
	v.mu.Unlock()
	<-v.turn
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
	return v.head, m.ensureOpen(ctx, v, spec)
}

func (m *Manager) create(spec Volume, from *store.Version) error {
	if _, err := m.cfg.Store.Head(spec.ID); !errdefs.Is(err, errdefs.NotFound) {
		return err // or it is repeated
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
		defer m.layers.land(layer)
		begin.Layers = []store.Layer{layer}
	}
	begin.Epoch = spec.Epoch
	if _, err := m.cfg.Store.Create(spec.ID, begin); err != nil {
		return err
	}
	return m.cfg.Sync()
}

// Use mounts a volume for writing, or what is committed of it for reading, and says where.
// It stays so until Leave of the same use. It may be repeated. Who wants to write while
// another does waits until he has left, for writerWait, whatever the epoch: what is written
// with two overlays, or by two who do not know of each other, is nobody's volume.
func (m *Manager) Use(ctx context.Context, spec Volume, use string, readOnly bool) (string, error) {
	late := time.NewTimer(writerWait)
	defer late.Stop()
	for {
		at, left, err := m.use(ctx, spec, use, readOnly)
		if left == nil {
			return at, err
		}
		select {
		case <-left:
			continue
		case <-late.C:
		case <-ctx.Done():
		}
		return "", errdefs.New(errdefs.Unavailable, "volume %s is still mounted for writing elsewhere on its node", spec.ID).WithRetryAfter(leaveAfter)
	}
}

// use is Use at once; left is closed when a use ends that is in the way.
func (m *Manager) use(ctx context.Context, spec Volume, use string, readOnly bool) (at string, left <-chan struct{}, err error) {
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return "", nil, err
	}
	defer done()
	if readOnly {
		at, err = m.read(v, spec, use)
		return at, nil, err
	}
	switch {
	case v.open && spec.Epoch < v.epoch():
		return "", nil, stale(spec, v.epoch())
	case v.open && spec.Epoch == v.epoch() && spec.Team == v.record.Spec.Team && v.writes(use):
		return v.at, nil, nil // it is repeated, and waits for no store
	}
	if left := v.otherWriter(use); left != nil {
		return "", left, nil
	}
	if err := m.ensureOpen(ctx, v, spec); err != nil {
		return "", nil, err
	}
	return v.at, nil, m.addUse(v, use, 0)
}

func stale(spec Volume, latest uint64) error {
	return errdefs.WithCode(errdefs.Conflict, store.CodeFenced, "volume %s is at epoch %d, not %d", spec.ID, latest, spec.Epoch)
}

// Leave ends a use, when what was written is committed; one that is not there has ended
// already. That a commit failed is told, and what was written stays on this node.
func (m *Manager) Leave(ctx context.Context, id, use string) error {
	v, done, err := m.take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if v.writes(use) {
		if _, err = m.commitHere(ctx, v, 0); err != nil {
			m.cfg.Log.Warn("committing what an ended use has written", "volume", id, "error", err)
		}
		if err != nil && ctx.Err() != nil { // nobody hears of it: the use ends when it is asked for again
			return err
		}
	}
	return errors.Join(err, m.endUse(v, use))
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
	return m.commitVersion(ctx, v, 0)
}

// commitVersion is Commit for who has the turn.
func (m *Manager) commitVersion(ctx context.Context, v *volume, epoch uint64) (head store.Version, clean bool, err error) {
	if clean, err = m.commitHere(ctx, v, epoch); err != nil {
		return store.Version{}, false, err
	}
	if !v.open {
		head, err = m.cfg.Store.Head(v.id)
		return head, true, err
	}
	return v.head, clean, nil
}

// commitHere commits what this node has of a volume: also where it has to be taken up
// first, and never less than all of it.
func (m *Manager) commitHere(ctx context.Context, v *volume, epoch uint64) (clean bool, err error) {
	if err := m.reopen(v, epoch); err != nil || !v.open {
		return err == nil, err
	}
	if clean, err = m.commit(ctx, v); err != nil {
		return false, err
	}
	return clean, v.refusal()
}

// refusal says that a file of the volume is in no version.
func (v *volume) refusal() error {
	for path, why := range v.refused {
		return errdefs.New(errdefs.TooLarge, "%d files of volume %s can't be kept, among them %.200q: %s", len(v.refused), v.id, path, errdefs.From(why).Message)
	}
	return nil
}

// State is what this node knows of a volume.
type State struct {
	Version     store.Version
	Uncommitted bool
	Lost        error
}

// State tells it as of the end of the last turn, and waits for none.
func (m *Manager) State(id string) (State, error) {
	if err := store.CheckID("volume", id); err != nil {
		return State{}, err
	}
	if v := m.find(id); v != nil {
		v.mu.Lock()
		shown, dirty := v.shown, v.dirty
		v.mu.Unlock()
		if shown != nil {
			return State{Version: shown.Version, Uncommitted: dirty, Lost: shown.Lost}, nil
		}
	}
	head, err := m.cfg.Store.Head(id)
	if err != nil {
		return State{}, err
	}
	st := State{Version: head, Uncommitted: m.hasTree(id)}
	if note, err := m.wasLost(id); err == nil {
		st.Lost = lostError(note.Why)
	}
	return st, nil
}

// empties are two empty directories, for an overlay has at least two layers.
func (m *Manager) empties() []string {
	return []string{filepath.Join(m.cfg.RunDir, "e1"), filepath.Join(m.cfg.RunDir, "e2")}
}

func (m *Manager) overlay(at string, base stack, upper, work string) error {
	return layers.Overlay(at, append(slices.Clone(base.dirs), m.empties()...), upper, work)
}
