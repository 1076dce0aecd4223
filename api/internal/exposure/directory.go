package exposure

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/services"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	// freshFor bounds how long another replica's change of a config is not seen.
	freshFor = time.Second
	// usableFor bounds how long exposed services go on while the database is away.
	usableFor   = time.Minute
	readTimeout = 3 * time.Second
	maxEntries  = 10_000
)

// Store is where configs are kept.
type Store interface {
	// ExposedSandbox fails with NotFound for an id that no sandbox has.
	ExposedSandbox(ctx context.Context, id sandbox.ID) (store.ExposedSandbox, error)
}

// entry is what is remembered of one sandbox. It does not change.
type entry struct {
	to      dataplane.Target
	status  sandbox.State
	gen     sandbox.Generation
	resumes bool
	routes  map[int32][]*route // by port; longer prefixes first
	read    time.Time          // from the store
	tried   time.Time          // to read again, in vain
}

// directory remembers what sandboxes expose.
type directory struct {
	store Store
	reads singleflight.Group

	mu      sync.Mutex
	entries map[sandbox.ID]*entry
	epoch   uint64 // counts forget: what was read before is not remembered after
}

func newDirectory(s Store) *directory { return &directory{store: s, entries: map[sandbox.ID]*entry{}} }

// known is an entry that needs no reading now, nil when there is none. Without the
// database not every request shall wait for it.
func (d *directory) known(id sandbox.ID) *entry {
	e := d.usable(id)
	if e == nil || time.Since(e.read) >= freshFor && time.Since(e.tried) >= freshFor {
		return nil
	}
	return e
}

// usable is an entry that will do when there is no other.
func (d *directory) usable(id sandbox.ID) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.entries[id]; e != nil && time.Since(e.read) < usableFor {
		return e
	}
	return nil
}

func (d *directory) forget(id sandbox.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.entries, id)
	d.epoch++
	d.reads.Forget(string(id)) // who asks after a change shares no older read
}

// read asks the store, once for all who ask at the same time.
func (d *directory) read(ctx context.Context, id sandbox.ID) (*entry, error) {
	found := d.reads.DoChan(string(id), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
		defer cancel()
		return d.load(ctx, id)
	})
	select {
	case r := <-found:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*entry), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *directory) load(ctx context.Context, id sandbox.ID) (*entry, error) {
	d.mu.Lock()
	epoch := d.epoch
	d.mu.Unlock()
	row, err := d.store.ExposedSandbox(ctx, id)
	if errdefs.Is(err, errdefs.Unavailable) {
		if old := d.usable(id); old != nil {
			again := *old
			again.tried = time.Now()
			d.remember(&again, epoch)
			return &again, nil
		}
	}
	if err != nil {
		return nil, err
	}
	c, err := services.Stored(row.Config)
	if err != nil {
		return nil, err
	}
	e := &entry{
		to: dataplane.Target{Team: row.TeamID, ID: id}, status: row.Status, gen: row.Generation,
		resumes: c.Resumes(), routes: compile(c), read: time.Now(),
	}
	d.remember(e, epoch)
	return e, nil
}

func (d *directory) remember(e *entry, epoch uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.epoch != epoch {
		return
	}
	if len(d.entries) >= maxEntries {
		for id, old := range d.entries {
			if time.Since(old.read) > usableFor {
				delete(d.entries, id)
			}
		}
	}
	if len(d.entries) >= maxEntries {
		clear(d.entries)
	}
	d.entries[e.to.ID] = e
}
