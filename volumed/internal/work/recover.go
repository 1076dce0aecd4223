package work

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
)

// Recover takes up what an earlier process had open, and what a reboot left. It comes
// before any other method. A volume that can't be taken up now is tried again, and has
// what it has until then.
func (m *Manager) Recover(ctx context.Context) error {
	for _, dir := range append(m.empties(), m.cfg.DataDir, filepath.Join(m.cfg.DataDir, asideDir), filepath.Join(m.cfg.DataDir, goneDir),
		m.mergedDir(), m.belowDir(), m.readersDir(), m.usesDir(), m.layers.dir) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if n := len(m.layers.dir) + maxMounting; n > layers.MaxDir {
		return fmt.Errorf("%s: a path of more than %d bytes", m.layers.dir, layers.MaxDir-maxMounting)
	}
	if err := m.recoverUses(); err != nil {
		return err
	}
	entries, err := os.ReadDir(m.cfg.DataDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if store.CheckID("volume", e.Name()) != nil {
			continue
		}
		if err := m.recoverOne(ctx, e.Name()); err != nil {
			m.cfg.Log.Error("a volume could not be taken up again", "volume", e.Name(), "error", err)
		}
	}
	return nil
}

func (m *Manager) recoverOne(ctx context.Context, id string) error {
	v, done, err := m.take(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if _, err := m.readRecord(id); errors.Is(err, fs.ErrNotExist) {
		return m.clear(v) // it was being begun
	}
	return m.reopen(v, 0)
}

// Run commits, merges and collects until ctx ends; then it commits what it can. Mounts stay.
func (m *Manager) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { m.keepCollecting(ctx) })
	running.Go(func() { m.keepSweeping(ctx) })
	m.keepCommitting(ctx)
	running.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitInterval)
	defer cancel()
	m.forAll(func(v *volume) {
		if _, _, err := m.Commit(ctx, v.id); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			m.cfg.Log.Warn("a volume was not committed at the end", "volume", v.id, "error", err)
		}
	})
	return nil
}

// forAll does something for every volume, for some beside each other, and waits.
func (m *Manager) forAll(do func(*volume)) {
	var running sync.WaitGroup
	free := make(chan struct{}, workers)
	for _, v := range m.all() {
		free <- struct{}{}
		running.Go(func() {
			defer func() { <-free }()
			do(v)
		})
	}
	running.Wait()
}

// keepCommitting commits what was written, until ctx ends and everybody is done. A volume
// that takes long has one of the workers, and the others go round.
func (m *Manager) keepCommitting(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	c := newCrew(workers)
	tick := time.NewTicker(commitInterval / 5)
	defer tick.Stop()
	for {
		for _, v := range m.all() {
			m.fly(ctx, v, c, &running)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// crew are workers, and for which teams some are at work.
type crew struct {
	mu   sync.Mutex
	free int
	busy map[string]int
}

func newCrew(n int) *crew { return &crew{free: n, busy: map[string]int{}} }

// take takes a worker for a team, if more are free than it has: so however long its volumes
// take, some are left to others.
func (c *crew) take(team string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[team] >= c.free {
		return false
	}
	c.busy[team]++
	c.free--
	return true
}

func (c *crew) give(team string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free++
	if c.busy[team]--; c.busy[team] == 0 {
		delete(c.busy, team)
	}
}

// fly attends to a volume that is due, if nobody has its turn and a worker is free.
func (m *Manager) fly(ctx context.Context, v *volume, c *crew, running *sync.WaitGroup) {
	select {
	case v.turn <- struct{}{}:
	default:
		return
	}
	team := v.record.Spec.Team
	if !m.due(v) || !c.take(team) {
		<-v.turn
		return
	}
	running.Go(func() {
		defer c.give(team)
		defer m.endTurn(v)
		m.attend(ctx, v)
	})
}

// due tells whether a volume is to be looked at. The caller has the turn.
func (m *Manager) due(v *volume) bool {
	return time.Since(v.looked) >= max(commitInterval, lookShare*v.took) && (v.open || m.hasTree(v.id))
}

// attend does what is due for one volume, of which the caller has the turn.
func (m *Manager) attend(ctx context.Context, v *volume) {
	clean, err := false, m.reopen(v, 0)
	if err == nil && v.open {
		clean, err = m.commitIn(ctx, v, 2)
	}
	if err != nil { // the next time is soon
		v.looked = time.Now()
		m.cfg.Log.Warn("committing a volume will be tried again", "volume", v.id, "error", err)
		return
	}
	if err := m.mergeSome(ctx, v); err != nil {
		m.cfg.Log.Warn("merging layers will be tried again", "volume", v.id, "error", err)
		return
	}
	if !clean || !v.open || !v.isIdle() {
		return
	}
	if err := m.letGo(v); err != nil {
		m.cfg.Log.Warn("closing an idle volume", "volume", v.id, "error", err)
	}
}

// isIdle: nobody has used it for long, and nothing of it is on this node alone.
func (v *volume) isIdle() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.uses) == 0 && v.share == nil && !v.dirty && time.Since(v.idle) > idleTime
}

func (m *Manager) keepCollecting(ctx context.Context) {
	tick := time.NewTicker(collectInterval)
	defer tick.Stop()
	for {
		if n, err := m.cfg.Store.Collect(m.layers.held); err != nil {
			m.cfg.Log.Warn("collecting layers", "error", err)
		} else if n > 0 {
			m.cfg.Log.Info("layers that no version names are gone", "layers", n)
		}
		m.layers.dropOrphans()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keepSweeping frees the disk of what is committed: nobody waits for that.
func (m *Manager) keepSweeping(ctx context.Context) {
	tick := time.NewTicker(commitInterval)
	defer tick.Stop()
	for {
		m.sweep()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
