package work

import (
	"context"
	"time"

	"s0.run/internal/errdefs"
)

// A share is somebody who works on a volume without a sandbox: through the overlay that it
// has on this node, the same one that a sandbox which writes to it works on, so that each
// sees what the other does. It keeps nobody from the volume: whoever writes next, moves or
// restores it, or mounts it anew has the share taken back first.

// Share has a volume mounted for writing and tells open where. open answers how that is
// taken back, which is to return when nothing of the mount is used any more. Share may be
// repeated: open then finds what it has opened, or opens it anew.
func (m *Manager) Share(ctx context.Context, spec Volume, open func(at string) (takeBack func(), err error)) error {
	late := time.NewTimer(writerWait)
	defer late.Stop()
	for {
		left, err := m.share(ctx, spec, open)
		if left == nil {
			return err
		}
		select {
		case <-left:
			continue
		case <-late.C:
		case <-ctx.Done():
		}
		return errdefs.New(errdefs.Unavailable, "volume %s is still mounted for writing by a former owner", spec.ID).WithRetryAfter(leaveAfter)
	}
}

// share is Share at once; left is closed when a use ends that is in the way.
func (m *Manager) share(ctx context.Context, spec Volume, open func(at string) (func(), error)) (left <-chan struct{}, err error) {
	v, done, err := m.take(ctx, spec.ID)
	if err != nil {
		return nil, err
	}
	defer done()
	switch {
	case spec.Epoch <= v.released:
		return nil, stale(spec, v.released)
	case v.open && spec.Epoch < v.epoch():
		return nil, stale(spec, v.epoch())
	case v.open && spec.Epoch == v.epoch() && spec.Team == v.record.Spec.Team && v.writers():
		// It waits for no store, as who writes does not.
	default:
		if left := v.otherWriter(""); left != nil && (!v.open || spec.Epoch > v.epoch()) {
			return left, nil
		}
		if err := m.ensureOpen(ctx, v, spec); err != nil {
			return nil, err
		}
	}
	takeBack, err := open(v.at)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	v.share = takeBack
	v.mu.Unlock()
	return nil, nil
}

// Unshare takes a share back. What was written stays, and is committed as what a sandbox
// has written is.
func (m *Manager) Unshare(ctx context.Context, id string) error {
	v, done, err := m.take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	v.takeBack()
	return nil
}

// takeBack ends a share. The caller has the turn.
func (v *volume) takeBack() {
	v.mu.Lock()
	share := v.share
	if share != nil {
		v.share, v.idle = nil, time.Now()
	}
	v.mu.Unlock()
	if share != nil {
		share()
	}
}
