package work

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/tree"
)

// asideDir holds what another epoch has overtaken: "<volume>.<time>".
const asideDir = ".aside"

// Recover takes up what an earlier process had open, and what a reboot left. It comes
// before any other method. A volume that can't be taken up now is when somebody wants it.
func (m *Manager) Recover() error {
	for _, dir := range append(m.empties(), m.cfg.DataDir, filepath.Join(m.cfg.DataDir, asideDir),
		filepath.Join(m.cfg.RunDir, "w"), filepath.Join(m.cfg.RunDir, "b"), filepath.Join(m.cfg.RunDir, "r"), m.usesDir(), m.layers.dir) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if len(m.layers.dir) > layers.MaxDir {
		return fmt.Errorf("%s: a path of more than %d bytes", m.layers.dir, layers.MaxDir)
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
		if err := m.recoverOne(e.Name()); err != nil {
			m.cfg.Log.Error("a volume could not be taken up again", "volume", e.Name(), "error", err)
		}
	}
	return nil
}

func (m *Manager) recoverOne(id string) error {
	v, done, err := m.take(context.Background(), id)
	if err != nil {
		return err
	}
	defer done()
	rec, err := m.readRecord(id)
	if errors.Is(err, fs.ErrNotExist) { // it was being begun, or removed
		return m.close(v)
	}
	if err != nil {
		return err
	}
	return m.resume(v, rec)
}

// resume takes a working tree up as its record says, if nobody else has written since.
// After it the volume is open, or nothing is left of it but what was put aside.
func (m *Manager) resume(v *volume, rec record) error {
	head, err := m.cfg.Store.Head(v.id)
	if errdefs.Is(err, errdefs.NotFound) {
		return m.close(v) // it was removed
	}
	if err != nil {
		return err
	}
	last := head.Seq == rec.Seq
	ours := head.Seq == rec.Seq+1 && rec.Making != "" && len(head.Layers) > 0 && head.Layers[0].ID == rec.Making
	if !last && !ours {
		return m.putAside(v, rec, head)
	}
	if err := m.layers.take(rec.Base.Layers); err != nil {
		return err
	}
	if err := m.mount(v.id, rec.Base.Layers); err != nil {
		m.layers.give(rec.Base.Layers)
		return err
	}
	v.started(rec, head)
	v.record.Seq, v.record.Making = head.Seq, ""
	v.mu.Lock()
	v.dirty, v.idle = true, time.Now()
	v.mu.Unlock()
	if seen, err := m.readSeen(v.id); err == nil && seen.Seq == head.Seq {
		v.seen = seen.Tree
		return m.recount(v)
	}
	// What was committed of the upper layer is not known: all of it is, on what it lies on.
	v.under, v.whole = rec.Base.Layers, true
	return nil
}

// recount counts anew what the upper layer hides.
func (m *Manager) recount(v *volume) error {
	all := make([]tree.Change, 0, len(v.seen))
	for p, e := range v.seen {
		all = append(all, tree.Change{Path: p, Entry: e})
	}
	return m.count(v, all)
}

func (m *Manager) readSeen(id string) (s seenFile, err error) {
	f, err := os.Open(m.seenFile(id))
	if err != nil {
		return s, err
	}
	defer f.Close()
	return s, gob.NewDecoder(f).Decode(&s)
}

// putAside keeps an upper layer that must not be committed any more, for a person to look
// at, out of everybody's way.
func (m *Manager) putAside(v *volume, rec record, head store.Version) error {
	for _, at := range []string{m.merged(v.id), m.below(v.id)} {
		if err := layers.Unmount(at, true); err != nil {
			return err
		}
	}
	to := filepath.Join(m.cfg.DataDir, asideDir, fmt.Sprintf("%s.%d", v.id, time.Now().UnixNano()))
	m.cfg.Log.Error("a volume was written to elsewhere: what was not committed here is put aside",
		"volume", v.id, "epoch", rec.Spec.Epoch, "latest", head.Epoch, "directory", to)
	return os.Rename(filepath.Join(m.cfg.DataDir, v.id), to)
}

// Run commits, merges and collects until ctx ends; then it commits what it can. Mounts stay.
func (m *Manager) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.keepCollecting(ctx)
	}()
	m.keepCommitting(ctx)
	<-done
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitInterval)
	defer cancel()
	for _, v := range m.all() {
		if _, _, err := m.Commit(ctx, v.id); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			m.cfg.Log.Warn("a volume was not committed at the end", "volume", v.id, "error", err)
		}
	}
	return nil
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
		m.dropOrphans()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// dropOrphans unmounts layers that an earlier process has mounted and nobody has taken up.
func (m *Manager) dropOrphans() {
	mounts, err := layers.Mounts(m.layers.dir)
	if err != nil {
		return
	}
	m.layers.mu.Lock()
	defer m.layers.mu.Unlock()
	for _, at := range mounts {
		if id := strings.TrimPrefix(at, m.layers.dir+"/"); m.layers.refs[id] == 0 && layers.Unmount(at, true) == nil {
			_ = os.Remove(at)
		}
	}
}
