package images

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"

	"s0.run/internal/nodeapi"
)

const (
	// collectInterval is how often the node looks for images that nothing uses.
	collectInterval = 10 * time.Minute
	// collectTimeout bounds one look, removeTimeout one removal.
	collectTimeout, removeTimeout = 5 * time.Minute, time.Minute
	// maxShare is how many of the images, one at least, one look removes: 1/n. What
	// looks unused by a mistake is not all gone at once.
	maxShare = 10
)

// unusedLabel on an image says since when nothing has used it; it outlives us.
const unusedLabel = "run.s0.noded/unused-since"

// uses knows which images were asked for lately, and keeps a removal and a use of
// the same image apart.
type uses struct {
	mu       *sync.Mutex
	now      func() time.Time
	last     map[string]time.Time     // by name
	current  map[string]int           // by name: calls of Ensure under way
	removing map[string]chan struct{} // by name: closed when it is removed
}

func newUses() uses {
	return uses{mu: new(sync.Mutex), now: time.Now, last: map[string]time.Time{}, current: map[string]int{}, removing: map[string]chan struct{}{}}
}

// begin notes a use, after a removal that is under way.
func (u *uses) begin(ctx context.Context, name string) (end func(), err error) {
	for {
		u.mu.Lock()
		gone := u.removing[name]
		if gone == nil {
			break
		}
		u.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer u.mu.Unlock()
	u.current[name]++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.current[name]--; u.current[name] == 0 {
			delete(u.current, name)
		}
		u.last[name] = u.now()
	}, nil
}

// recent says whether an image is in use or has been for less than d.
func (u *uses) recent(name string, d time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.recentLocked(name, d)
}

func (u *uses) recentLocked(name string, d time.Duration) bool {
	last, ok := u.last[name]
	return u.current[name] > 0 || ok && u.now().Sub(last) < d
}

// forget drops what was used longer than d ago: names that were only asked for are
// never removed, and tenants choose them.
func (u *uses) forget(d time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.last, func(_ string, last time.Time) bool { return u.now().Sub(last) >= d })
}

// remove runs f, while nobody begins to use the image, unless somebody has.
func (u *uses) remove(name string, d time.Duration, f func() error) (removed bool, err error) {
	u.mu.Lock()
	if u.recentLocked(name, d) || u.removing[name] != nil {
		u.mu.Unlock()
		return false, nil
	}
	gone := make(chan struct{})
	u.removing[name] = gone
	u.mu.Unlock()
	err = f()
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.removing, name)
	if err == nil {
		delete(u.last, name)
	}
	close(gone)
	return err == nil, err
}

// Run removes images that nothing has used for KeepFor, until ctx ends. wanted
// lists the images that pools keep slots of, by the references that were given to
// Ensure; ok is false while nobody knows: then nothing is removed.
func (i *Images) Run(ctx context.Context, wanted func() (refs []string, ok bool)) error {
	tick := time.NewTicker(collectInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if removed, err := i.Collect(ctx, wanted); err != nil && ctx.Err() == nil {
			i.cfg.Log.Warn("collecting images", "removed", removed, "error", err)
		}
	}
}

// Collect looks once. An image is removed when no pool wants it, no container was
// made from it, no pull and no start has asked for it within KeepFor, and an
// earlier look, KeepFor ago, has found the same. The last may have been a former
// process's. What sandboxes run from containerd keeps in any case: their snapshots
// stand on the image's.
func (i *Images) Collect(ctx context.Context, wanted func() (refs []string, ok bool)) (removed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	i.uses.forget(i.cfg.KeepFor)
	all, err := i.cfg.Client.ImageService().List(ctx)
	if err != nil {
		return 0, err
	}
	refs, ok := wanted()
	if !ok {
		return 0, nil
	}
	used, err := i.used(ctx, all, refs)
	if err != nil {
		return 0, err
	}
	most := max(1, len(all)/maxShare)
	for _, img := range all {
		due, err := i.mark(ctx, img, used[img.Name])
		if err != nil || !due || removed == most {
			if err != nil {
				i.cfg.Log.Warn("marking an image", "image", img.Name, "error", err)
			}
			continue
		}
		gone, err := i.uses.remove(img.Name, i.cfg.KeepFor, func() error { return i.remove(ctx, img) })
		if err != nil {
			return removed, fmt.Errorf("image %s: %w", img.Name, err)
		}
		if gone {
			removed++
			i.cfg.Log.Info("image removed: nothing has used it", "image", img.Name, "digest", img.Target.Digest)
		}
	}
	return removed, nil
}

// used is every image, by name, that something on the node needs: with a tag, the
// image that it names, and the other way round.
func (i *Images) used(ctx context.Context, all []images.Image, wanted []string) (map[string]bool, error) {
	names := map[string]bool{}
	for _, ref := range wanted {
		if name, err := normalize(ref); err == nil {
			names[name] = true
		}
	}
	containers, err := i.cfg.Client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("which images containers have: %w", err)
	}
	for _, c := range containers {
		names[c.Image] = true
	}
	digests := map[string]bool{}
	for _, img := range all {
		if names[img.Name] || i.uses.recent(img.Name, i.cfg.KeepFor) {
			digests[img.Target.Digest.String()] = true
		}
	}
	used := map[string]bool{}
	for _, img := range all {
		used[img.Name] = digests[img.Target.Digest.String()]
	}
	return used, nil
}

// mark notes since when an image is unused, and says whether that is long enough.
func (i *Images) mark(ctx context.Context, img images.Image, used bool) (due bool, err error) {
	since, marked := img.Labels[unusedLabel]
	switch {
	case used && !marked:
		return false, nil
	case used:
		since = ""
	case marked:
		at, err := time.Parse(time.RFC3339, since)
		if now := i.uses.now(); err == nil && !at.After(now) {
			return now.Sub(at) >= i.cfg.KeepFor, nil
		}
		fallthrough // of a clock that was wrong
	default:
		since = i.uses.now().UTC().Format(time.RFC3339)
	}
	labels := map[string]string{unusedLabel: since} // an empty one is removed
	_, err = i.cfg.Client.ImageService().Update(ctx, images.Image{Name: img.Name, Target: img.Target, Labels: labels}, "labels."+unusedLabel)
	if cerrdefs.IsNotFound(err) {
		err = nil
	}
	return false, err
}

// remove forgets a name of an image. What only it needed containerd's collector
// takes; a container that was made in this moment holds its own.
func (i *Images) remove(ctx context.Context, img images.Image) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	err := i.cfg.Client.ImageService().Delete(ctx, img.Name, images.DeleteTarget(&img.Target))
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Usage is what images take on the node.
func (i *Images) Usage(ctx context.Context) (*nodeapi.ImageUsage, error) {
	all, err := i.cfg.Client.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	u := &nodeapi.ImageUsage{}
	digests := map[string]bool{}
	for _, img := range all {
		if _, unused := img.Labels[unusedLabel]; unused && !digests[img.Target.Digest.String()] {
			u.Collectable++
		}
		digests[img.Target.Digest.String()] = true
	}
	u.Images = uint32(len(digests))
	err = i.cfg.Client.ContentStore().Walk(ctx, func(info content.Info) error {
		u.ContentBytes += info.Size
		return nil
	})
	if err != nil {
		return nil, err
	}
	sn := i.cfg.Client.SnapshotService(i.cfg.Snapshotter)
	err = sn.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		usage, err := sn.Usage(ctx, info.Name)
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		u.SnapshotBytes += usage.Size
		return err
	})
	return u, err
}
