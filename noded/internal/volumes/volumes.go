// Package volumes puts volumes where sandboxes find them.
//
// Every sandbox has a portal: a directory of the host that is bound into it when it is
// warmed, and below which what is mounted later shows inside at once. volumed says where a
// volume is mounted; this package binds that into the portal, under a name that tells
// volume and mount. So what a sandbox holds can be told from the node alone, whatever
// noded remembers: that is what a teardown goes by.
//
// The portal itself is read-only for its sandbox, on the host: it shows a directory, the
// base, that only this package writes to, and what is mounted there. No path of a mount
// comes from a sandbox, and nothing that one has made is walked into. Who may have which
// volume is for others to know, and so is the sandbox's own half, which procd does.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
)

const (
	// useTimeout bounds a mount, which fetches what describes the volume's files.
	useTimeout = 30 * time.Second
	// commitTimeout bounds a commit: as much as a sandbox can write on a slow disk.
	commitTimeout = 10 * time.Minute
	separator     = "~"
	// looks bounds how often a volume is taken for busy that nobody uses: somebody inside
	// may look at the portal just then.
	looks = 3
)

// names are those that ids of volumes and mounts may have.
var names = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$`)

// Mount is one of a sandbox's.
type Mount struct {
	ID       string
	Volume   volumeapi.Volume
	ReadOnly bool
}

// Name is the mount's in the portal.
func (m Mount) Name() string { return m.Volume.ID + separator + m.ID }

// parse is what a name tells.
func parse(name string) (volume, use string, ok bool) {
	volume, use, ok = strings.Cut(name, separator)
	return volume, use, ok && names.MatchString(volume) && names.MatchString(use)
}

func (m Mount) validate() error {
	if _, _, ok := parse(m.Name()); !ok {
		return errdefs.New(errdefs.InvalidArgument, "mount %.64q of volume %.64q", m.ID, m.Volume.ID)
	}
	return nil
}

// Agent is safe for concurrent use, but for one sandbox by one caller at a time.
type Agent struct {
	portals
	*volumeapi.Client
}

// Open makes dir the place of portals; volumed listens on a socket.
func Open(dir, socket string) (*Agent, error) {
	p, err := openPortals(dir)
	if err != nil {
		return nil, err
	}
	return &Agent{p, volumeapi.NewClient(socket)}, nil
}

// Dir is a sandbox's portal.
func (a *Agent) Dir(id sandbox.ID) string { return a.shown(id) }

// Prepare makes a sandbox's portal.
func (a *Agent) Prepare(id sandbox.ID) error { return a.show(id) }

// StandIn has an empty directory be in a sandbox's portal where a mount was.
func (a *Agent) StandIn(id sandbox.ID, m Mount) error {
	if err := m.validate(); err != nil {
		return err
	}
	in, err := a.open(id)
	if err != nil {
		return err
	}
	defer in.close()
	return in.add(m.Name())
}

// Has tells whether a sandbox has, or had begun to get, a mount; what nobody can tell counts.
func (a *Agent) Has(id sandbox.ID) bool {
	all, err := place{dir: a.base(id)}.names()
	return len(all) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// Attach shows a volume in a sandbox's portal, under the mount's name. It may be repeated,
// and is when volumed or noded have restarted, or the volume is at a later epoch.
func (a *Agent) Attach(ctx context.Context, id sandbox.ID, m Mount) error {
	return a.AttachWhen(ctx, id, m, func() error { return nil })
}

// AttachWhen is Attach that has the volume mounted on the node at once, and shows it when
// enter agrees. [Agent.Has] tells of it from the first.
func (a *Agent) AttachWhen(ctx context.Context, id sandbox.ID, m Mount, enter func() error) error {
	if err := m.validate(); err != nil {
		return err
	}
	in, err := a.open(id)
	if err != nil {
		return fmt.Errorf("volume %s: %w", m.Volume.ID, err)
	}
	defer in.close()
	if err := in.add(m.Name()); err != nil { // before the use: see DetachAll
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, useTimeout)
	defer cancel()
	mounted, err := a.Use(ctx, volumeapi.Use{Volume: m.Volume, Use: m.ID, ReadOnly: m.ReadOnly})
	if err != nil {
		return fmt.Errorf("volume %s: %w", m.Volume.ID, err)
	}
	if err := failpoint.Hit("attach.after-use"); err != nil {
		return err
	}
	if err := enter(); err != nil {
		return err
	}
	if err := in.bind(mounted.Path, m.Name(), m.ReadOnly); err != nil {
		return fmt.Errorf("volume %s: %w", m.Volume.ID, err)
	}
	return nil
}

// ErrBusy is why a mount is not taken away: somebody has files of the volume open.
var ErrBusy = errors.New("files of the volume are open")

// Detach takes a mount out of the portal of a sandbox that lives and ends its use. It
// returns when what was written is durable; ErrBusy says that somebody still writes, or
// could. After an error the mount may be there or not: Attach brings it back.
//
// The sandbox's kernel remembers what it has looked at, and holds that open. So something
// else is mounted over the volume, look has the kernel see it, and what is held open then
// is what a process has opened.
func (a *Agent) Detach(ctx context.Context, id sandbox.ID, m Mount, look func(context.Context) error) error {
	if err := m.validate(); err != nil {
		return err
	}
	in, err := a.open(id)
	if err != nil {
		return err
	}
	defer in.close()
	for try := 1; ; try++ {
		err := a.release(ctx, in, m.Name(), look)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrBusy) || try == looks {
			return err
		}
	}
	if err := a.CommitAll(ctx, []Mount{m}); err != nil { // Leave ends the use whatever becomes of its commit
		return err
	}
	_, err = a.end(ctx, in, m.Name())
	return err
}

// release takes away a mount of which no file is open.
func (a *Agent) release(ctx context.Context, in place, name string, look func(context.Context) error) error {
	if err := in.cover(name, a.empty()); err != nil {
		return err
	}
	seen := look(ctx)
	return errors.Join(seen, in.uncover(name, seen == nil))
}

// end ends the use of a mount that is not there any more, and reports whether it has.
func (a *Agent) end(ctx context.Context, in place, name string) (ended bool, err error) {
	volume, use, ok := parse(name)
	if !ok {
		return false, fmt.Errorf("%.200q is no mount", name)
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err = a.Leave(ctx, volumeapi.Leave{ID: volume, Use: use})
	if errors.Is(err, volumeapi.ErrDown) {
		return false, err // it has to be told
	}
	if err := in.remove(name); err != nil { // which says that there is a use, so it goes last
		return false, err
	}
	return true, err
}

// DetachAll takes away whatever a sandbox that has ended has in its portal, and the portal.
// That what was written could not be committed now does not hold it up: volumed has it.
func (a *Agent) DetachAll(ctx context.Context, id sandbox.ID) error {
	in, err := a.open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return a.hide(id)
	}
	if err != nil {
		return err
	}
	defer in.close()
	all, err := in.names()
	if err != nil {
		return err
	}
	for _, name := range all {
		if err := unmount(in.at(name)); err != nil {
			return err
		}
		if ended, err := a.end(ctx, in, name); !ended {
			return err
		}
	}
	return a.hide(id)
}

// CommitAll makes what was written through mounts durable.
func (a *Agent) CommitAll(ctx context.Context, mounts []Mount) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	var failed []error
	for _, m := range mounts {
		if m.ReadOnly {
			continue
		}
		if _, err := a.Commit(ctx, m.Volume.ID); err != nil {
			failed = append(failed, fmt.Errorf("volume %s: %w", m.Volume.ID, err))
		}
	}
	return errors.Join(failed...)
}

// List finds the sandboxes that have a portal.
func (a *Agent) List() ([]sandbox.ID, error) { return a.list() }
