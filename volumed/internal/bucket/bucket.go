// Package bucket has volumes that are a tenant's buckets mounted.
//
// Each has a process of its own, which shows it (package bucketfs): what the store says is
// parsed there. It is nobody's, in empty namespaces for processes and the network and with
// an empty root, and knows one credential, which it is told over a socket. Whenever it
// wants a connection it asks for one, through a socket in its root, and gets the one that
// it can have: to its bucket's store, if that is of the public internet. So neither what a
// tenant says nor who takes the process over reaches anything else.
//
// A process outlives volumed, which finds it again by its directory:
//
//	<volume>/at      the mount
//	<volume>/jail    the root of its process, with the socket
//	<volume>/uses    a file for each use; without one it is unmounted
//	<volume>/record  whose it is and where to
//
// The directory goes with the machine's mounts, and nothing in it is secret. Who may use a
// volume is decided before.
package bucket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/jfs"
)

const (
	// A process holds some 50 MiB when it is busy, and ends when it wants maxData more than it
	// begins with; a team has a part of them.
	maxMounts, maxOfTeam = 64, 16
	// filesUse is the use of who serves files without a sandbox. No mount has such an id.
	filesUse = ".files"
	// checkUse is the use of who looks whether a bucket can be opened.
	checkUse = "check"
	// again is when one that finds no room is to come back.
	again = time.Second
)

// names are those that ids of volumes and uses may have.
var names = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$`)

// Config wires a Manager. All fields but AllowPrivate are required.
type Config struct {
	Dir     string   // of nothing else, on a file system that goes with the mounts
	Command []string // runs Main
	Keys    string   // directory of the keys that open credentials; see package sealed
	Log     *slog.Logger

	AllowPrivate bool // stores may be on loopback and private networks
}

// Manager is safe for concurrent use.
type Manager struct {
	cfg Config

	mu      sync.Mutex
	turns   map[string]*turn
	mounted map[string]*mounted
}

// mounted is a volume that is. The turn's holder alone changes it.
type mounted struct {
	record
	dials    *dials // nil before there is a process; Manager.mu guards it, too
	takeBack func() // ends who serves its files; nil: nobody does
}

// record is what has to be known of a mount by whoever finds it.
type record struct {
	Team string `json:"team"`
	To   string `json:"to"` // the store's host and port
}

// New makes a Manager; Recover comes next.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, turns: map[string]*turn{}, mounted: map[string]*mounted{}}
}

// Recover takes up what an earlier process has mounted, and clears away what died.
func (m *Manager) Recover() error {
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := m.place(e.Name())
		if err := m.takeUp(e.Name(), p); err == nil {
			continue
		} else {
			m.cfg.Log.Warn("a bucket is not mounted any more", "volume", e.Name(), "error", err)
		}
		if err := p.clear(); err != nil {
			m.cfg.Log.Error("what is left of a bucket's mount stays", "volume", e.Name(), "error", err)
		}
	}
	return nil
}

func (m *Manager) takeUp(id string, p place) error {
	var r record
	b, err := os.ReadFile(p.record())
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return err
	}
	if jfs.Look(p.at()) == jfs.Gone {
		return errors.New("its process has ended")
	}
	d, err := m.serveDials(p, r.To)
	if err != nil {
		return err
	}
	// These uses ended with the process that we follow.
	err = errors.Join(p.leave(filesUse), p.leave(checkUse))
	if used, unknown := p.used(); !used && err == nil {
		err = errors.Join(unknown, errors.New("nobody uses it"))
	}
	if err != nil {
		d.close()
		return err
	}
	m.mounted[id] = &mounted{record: r, dials: d}
	return nil
}

// Has reports whether a volume is mounted, or was not taken away whole.
func (m *Manager) Has(id string) bool {
	if !names.MatchString(id) {
		return false
	}
	_, err := os.Lstat(m.place(id).dir)
	return err == nil
}

// Check mounts a bucket and takes it away again: InvalidArgument says why it can't be.
func (m *Manager) Check(ctx context.Context, v volumeapi.Volume) error {
	if _, err := m.Use(ctx, v, checkUse); err != nil {
		return err
	}
	return m.Leave(context.WithoutCancel(ctx), v.ID, checkUse)
}

// Use has a volume mounted until every use has left, and says where.
func (m *Manager) Use(ctx context.Context, v volumeapi.Volume, use string) (string, error) {
	if !names.MatchString(v.ID) || !names.MatchString(use) {
		return "", errdefs.New(errdefs.InvalidArgument, "use %.64q of volume %.64q", use, v.ID)
	}
	done, err := m.turn(ctx, v.ID)
	if err != nil {
		return "", err
	}
	defer done()
	if _, err := m.ensure(ctx, v); err != nil {
		return "", err
	}
	p := m.place(v.ID)
	if err := p.use(use); err != nil {
		return "", errors.Join(err, m.endUnused(v.ID))
	}
	return p.at(), nil
}

// Leave ends a use.
func (m *Manager) Leave(ctx context.Context, id, use string) error {
	if !names.MatchString(id) || !names.MatchString(use) {
		return errdefs.New(errdefs.InvalidArgument, "use %.64q of volume %.64q", use, id)
	}
	done, err := m.turn(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if err := m.place(id).leave(use); err != nil {
		return err
	}
	return m.endUnused(id)
}

// Share has who serves files without a sandbox open a volume, until Unshare or whoever
// takes the volume away calls what open answers.
func (m *Manager) Share(ctx context.Context, v volumeapi.Volume, open func(at string) (takeBack func(), err error)) error {
	if !names.MatchString(v.ID) {
		return errdefs.New(errdefs.NotFound, "volume %.64q not found", v.ID)
	}
	done, err := m.turn(ctx, v.ID)
	if err != nil {
		return err
	}
	defer done()
	one, err := m.ensure(ctx, v)
	if err != nil {
		return err
	}
	p := m.place(v.ID)
	err = p.use(filesUse)
	var takeBack func()
	if err == nil {
		takeBack, err = open(p.at())
	}
	if err != nil {
		if one.takeBack == nil {
			err = errors.Join(err, p.leave(filesUse))
		}
		return errors.Join(err, m.endUnused(v.ID))
	}
	one.takeBack = takeBack
	return nil
}

// Unshare takes a share back.
func (m *Manager) Unshare(ctx context.Context, id string) error {
	done, err := m.turn(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if one := m.find(id); one != nil {
		one.unshare()
	}
	if err := m.place(id).leave(filesUse); err != nil {
		return err
	}
	return m.endUnused(id)
}

func (o *mounted) unshare() {
	if o.takeBack != nil {
		o.takeBack()
		o.takeBack = nil
	}
}

// Remove takes a volume away, whoever uses it.
func (m *Manager) Remove(ctx context.Context, id string) error {
	if !names.MatchString(id) {
		return errdefs.New(errdefs.InvalidArgument, "volume %.64q", id)
	}
	done, err := m.turn(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	return m.end(id)
}

// Close ends what this process has to do with its mounts, which stay.
func (m *Manager) Close() {
	m.mu.Lock()
	all := m.mounted
	m.mounted = map[string]*mounted{}
	m.mu.Unlock()
	for _, one := range all {
		if one.dials != nil { // it is not being mounted
			one.dials.close()
		}
	}
}

// ensure has a volume mounted. The caller has its turn.
func (m *Manager) ensure(ctx context.Context, v volumeapi.Volume) (*mounted, error) {
	if one := m.find(v.ID); one != nil {
		if one.Team != v.Team {
			return nil, errdefs.New(errdefs.NotFound, "volume %s not found", v.ID)
		}
		if jfs.Look(m.place(v.ID).at()) != jfs.Gone { // what hangs comes back: its process waits for nobody
			return one, nil
		}
		m.cfg.Log.Warn("a bucket's process has died, and is started anew", "volume", v.ID, "team", v.Team)
		if err := m.end(v.ID); err != nil {
			return nil, err
		}
	}
	to, err := bucketOf(v).Authority()
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "%v", err)
	}
	one := &mounted{record: record{Team: v.Team, To: to}}
	if err := m.reserve(v.ID, one); err != nil {
		return nil, err
	}
	if err := m.start(ctx, v, one); err != nil {
		m.forget(v.ID)
		return nil, err
	}
	m.cfg.Log.Info("mounted a bucket", "volume", v.ID, "team", v.Team)
	return one, nil
}

// endUnused takes away what nobody uses. The caller has the turn.
func (m *Manager) endUnused(id string) error {
	used, err := m.place(id).used()
	if err != nil || used {
		return err
	}
	return m.end(id)
}

// end takes a mount away, with its process. What is not gone then is known still.
func (m *Manager) end(id string) error {
	one := m.find(id)
	if one != nil {
		one.unshare()
	}
	if err := m.place(id).clear(); err != nil {
		return fmt.Errorf("unmounting the bucket of volume %s: %w", id, err)
	}
	if one != nil {
		one.dials.close()
		m.forget(id)
	}
	return nil
}

func (m *Manager) find(id string) *mounted {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mounted[id]
}

func (m *Manager) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.mounted, id)
}

// reserve takes a place for a mount.
func (m *Manager) reserve(id string, one *mounted) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ofTeam := 0
	for _, other := range m.mounted {
		if other.Team == one.Team {
			ofTeam++
		}
	}
	if len(m.mounted) == maxMounts || ofTeam == maxOfTeam {
		return errdefs.New(errdefs.Unavailable, "too many buckets are mounted on this node").WithRetryAfter(again)
	}
	m.mounted[id] = one
	return nil
}

// connect has a mount own what gives its process connections, unless the Manager was closed
// meanwhile.
func (m *Manager) connect(id string, one *mounted, d *dials) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mounted[id] != one {
		return false
	}
	one.dials = d
	return true
}

// turn is one volume's, for one caller at a time.
type turn struct {
	free    chan struct{} // has an element while nobody has it
	waiting int           // callers that have it or want it; Manager.mu guards it
}

func (m *Manager) turn(ctx context.Context, id string) (done func(), err error) {
	m.mu.Lock()
	t := m.turns[id]
	if t == nil {
		t = &turn{free: make(chan struct{}, 1)}
		t.free <- struct{}{}
		m.turns[id] = t
	}
	t.waiting++
	m.mu.Unlock()
	gone := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if t.waiting--; t.waiting == 0 {
			delete(m.turns, id)
		}
	}
	select {
	case <-t.free:
		return func() { t.free <- struct{}{}; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, errdefs.New(errdefs.Unavailable, "volume %s is busy", id).WithRetryAfter(again).WithCause(ctx.Err())
	}
}

// place is a volume's directory.
type place struct{ dir string }

func (m *Manager) place(id string) place { return place{filepath.Join(m.cfg.Dir, id)} }

func (p place) at() string             { return filepath.Join(p.dir, "at") }
func (p place) jail() string           { return filepath.Join(p.dir, "jail") }
func (p place) uses(use string) string { return filepath.Join(p.dir, "uses", use) }
func (p place) record() string         { return filepath.Join(p.dir, "record") }
func (p place) socket() string         { return filepath.Join(p.jail(), socketName) }
func (p place) use(use string) error   { return os.WriteFile(p.uses(use), nil, 0o600) }
func (p place) leave(use string) error { return gone(os.Remove(p.uses(use))) }
func (p place) make() error {
	for dir, mode := range map[string]fs.FileMode{p.jail(): 0o755, p.at(): 0o700, p.uses(""): 0o700} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	return nil
}

func (p place) used() (bool, error) {
	entries, err := os.ReadDir(p.uses(""))
	return len(entries) > 0, gone(err)
}

// clear takes away the mount, which ends its process, and then the directory: by name, for
// what is below a mount that is still there is a tenant's.
func (p place) clear() error {
	if err := unmount(p.at()); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.uses(""))
	if gone(err) != nil {
		return err
	}
	for _, e := range entries {
		if err := p.leave(e.Name()); err != nil {
			return err
		}
	}
	for _, name := range []string{p.at(), p.uses(""), p.socket(), p.jail(), p.record(), p.dir} {
		if err := gone(os.Remove(name)); err != nil {
			return err
		}
	}
	return nil
}

// unmount ends every call that waits for the mount, and the process.
func unmount(at string) error {
	for {
		err := unix.Unmount(at, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return &fs.PathError{Op: "unmount", Path: at, Err: err}
		}
	}
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
