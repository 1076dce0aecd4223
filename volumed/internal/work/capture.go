package work

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/tree"
)

// A volume that is written to all the time is no instant by looking at it: what two files
// say together is torn between two looks. So whoever can have its writers stand still does,
// after a commit, and has it captured meanwhile: what has changed since that commit becomes
// a layer in a file of this node's disk, as fast as that is. The durable tier has time when
// everybody writes again: the layer becomes a version before anything else is committed.
//
// The token of a capture is who asked for it saying that nobody has written meanwhile. A
// capture that nobody says so of is a version as any other.

const (
	// maxMoments are versions that were captured and not asked for yet: a caller asks at
	// once, or never.
	maxMoments = 16
	// askAgain is when who was refused an instant is to ask again.
	askAgain = time.Second
)

// capture is what was captured and is no version yet. Its file is gone with it.
type capture struct {
	token   string
	changes []tree.Change
	now     tree.Tree // what the look at that instant saw
	info    layers.Info
	skipped layers.Skipped
	layered bool // it is in the layers that are pending, or has nothing new
}

// moment is a version that was captured.
type moment struct {
	token   string
	version store.Version
	refused error // why it is not all of the volume
}

func (m *Manager) captureFile(id string) string { return filepath.Join(m.dir(id), "captured") }

// Capture takes a volume as it is now, for [Manager.Snapshot] and [Manager.Fork]: no user of
// it may write until Capture returns, and no token of one that failed or was given up means
// anything. A share may write, and is found out. It touches nothing but this node's disk.
func (m *Manager) Capture(ctx context.Context, spec Volume) (token string, err error) {
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return "", err
	}
	defer done()
	switch {
	case v.lost != nil:
		return "", v.lost
	case !v.open:
		return "", errdefs.New(errdefs.Unavailable, "volume %s is not mounted", spec.ID).WithRetryAfter(askAgain)
	case spec.Team != v.record.Spec.Team:
		return "", errdefs.New(errdefs.NotFound, "volume %s not found", spec.ID)
	case spec.Epoch < v.epoch():
		return "", stale(spec, v.epoch())
	}
	c, err := m.capture(ctx, v)
	if err != nil {
		return "", fmt.Errorf("capturing volume %s: %w", spec.ID, err)
	}
	v.captured = c
	return c.token, nil
}

// capture looks and copies once. What it copies is not written back: see [layers.Capture].
// Nobody has a share stand still, so with one there is another look: whatever was written
// since a while before the first, it sees.
func (m *Manager) capture(ctx context.Context, v *volume) (*capture, error) {
	m.dropCapture(v)
	root, err := os.Open(m.upperDir(v.id))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if !v.isShared() {
		return m.captureOnce(ctx, v, root)
	}
	if err := wait(ctx, tree.Racy); err != nil {
		return nil, err
	}
	before := v.seen
	c, err := m.captureOnce(ctx, v, root)
	if err != nil {
		return nil, err
	}
	again, err := tree.Scan(ctx, root, maxEntries)
	if err == nil && matters(c.now, tree.Diff(c.now, again)) {
		err = errWritten(v.id)
	}
	if err != nil {
		v.seen = before
		return nil, errors.Join(err, m.removeCaptured(v))
	}
	return c, nil
}

func (v *volume) isShared() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.share != nil
}

func errWritten(id string) error {
	return errdefs.WithCode(errdefs.Unavailable, volumeapi.CodeWritten, "volume %s is being written to", id).WithRetryAfter(askAgain)
}

func (m *Manager) captureOnce(ctx context.Context, v *volume, root *os.File) (c *capture, err error) {
	c = &capture{token: rand.Text()}
	if c.now, err = tree.Scan(ctx, root, maxEntries); err != nil {
		return nil, err
	}
	c.changes = tree.Diff(v.seen, c.now)
	if !matters(v.seen, c.changes) {
		c.layered = true
		v.seen = c.now
		return c, nil
	}
	f, err := os.OpenFile(m.captureFile(v.id), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	c.info, c.skipped, err = layers.Capture(ctx, f, root, c.changes)
	if err = errors.Join(err, f.Close()); err == nil && len(c.skipped.Missed) > 0 {
		err = errors.Join(errWritten(v.id), fmt.Errorf("%d paths are not what they were, among them %.200q", len(c.skipped.Missed), c.skipped.Missed[0]))
	}
	if err != nil {
		return nil, errors.Join(err, m.removeCaptured(v))
	}
	v.mu.Lock()
	v.dirty = true
	v.mu.Unlock()
	return c, nil
}

// land makes a version of what was captured. The caller has the turn, and no intent is left.
func (m *Manager) land(ctx context.Context, v *volume) error {
	c := v.captured
	if c == nil {
		return nil
	}
	if !c.layered {
		if err := m.layer(ctx, v, c); err != nil {
			m.dropCapture(v) // nothing is lost with it but the instant
			return fmt.Errorf("committing what was captured of volume %s: %w", v.id, err)
		}
	}
	if len(v.pending) > 0 {
		if err := m.advance(v, v.next()); err != nil {
			return err
		}
	}
	v.moments = append(v.moments, moment{c.token, v.head, v.refusal()})
	v.moments = v.moments[max(len(v.moments)-maxMoments, 0):]
	m.dropCapture(v)
	return nil
}

// layer copies what was captured to the durable tier.
func (m *Manager) layer(ctx context.Context, v *volume, c *capture) error {
	layer, err := m.newLayer(func(to *os.File) (layers.Info, error) {
		from, err := os.Open(m.captureFile(v.id))
		if err != nil {
			return layers.Info{}, err
		}
		defer from.Close()
		_, err = io.Copy(to, layers.Until(ctx, from))
		return c.info, err
	})
	if err != nil {
		return err
	}
	for _, change := range c.changes { // what is mapped may be written to without a word
		if change.Entry.Kind == tree.File {
			c.now[change.Path] = unseen(c.now[change.Path])
		}
	}
	c.layered = true
	v.pending, v.seen = append([]store.Layer{layer}, v.pending...), c.now
	v.refuse(c.changes, c.skipped.Refused)
	return m.count(v, c.changes)
}

// dropCapture gives up what was captured.
func (m *Manager) dropCapture(v *volume) {
	_ = m.removeCaptured(v) // or the next one replaces it
	v.captured = nil
}

func (m *Manager) removeCaptured(v *volume) error {
	if err := os.Remove(m.captureFile(v.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// momentOf is the version that a volume is, or was when it was captured. Nobody hears of one
// that is no instant. The caller has the turn.
func (m *Manager) momentOf(ctx context.Context, v *volume, epoch uint64, token string) (store.Version, error) {
	if token == "" {
		head, clean, err := m.commitVersion(ctx, v, epoch)
		if err == nil && !clean {
			err = errWritten(v.id)
		}
		return head, err
	}
	if err := m.reopen(v, epoch); err != nil {
		return store.Version{}, err
	}
	if v.captured != nil && v.captured.token == token {
		if err := m.settle(v); err != nil {
			return store.Version{}, err
		}
		if err := m.land(ctx, v); err != nil {
			return store.Version{}, err
		}
	}
	for i := range v.moments {
		if v.moments[i].token == token {
			return v.moments[i].version, v.moments[i].refused
		}
	}
	return store.Version{}, errdefs.New(errdefs.Unavailable, "what was captured of volume %s is gone", v.id).WithRetryAfter(askAgain)
}
