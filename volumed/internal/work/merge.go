package work

import (
	"os"

	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
)

// mergeSome makes one layer of the topmost ones when there are many: of as many that none
// among them is more than twice as large as all above it together, so that a byte is
// copied a number of times that grows like a logarithm. The caller has the turn.
func (m *Manager) mergeSome(v *volume) error {
	if len(v.head.Layers) < mergeFrom || v.lost != nil {
		return nil
	}
	n := toMerge(v.head.Layers)
	some := v.head.Layers[:n]
	if err := m.layers.take(some); err != nil {
		return err
	}
	defer m.layers.give(some)
	dirs := make([]string, n)
	for i, l := range some {
		dirs[i] = m.layers.path(l.ID)
	}
	one, err := m.newLayer(func(f *os.File) (layers.Info, error) {
		return layers.Merge(f, dirs, n == len(v.head.Layers))
	})
	if err != nil {
		return err
	}
	next := v.head
	next.Layers = append([]store.Layer{one}, v.head.Layers[n:]...)
	rec := v.record
	rec.Making = one.ID
	if err := m.writeRecord(rec); err != nil {
		return err
	}
	if err := m.cfg.Sync(); err != nil {
		return err
	}
	head, err := m.advance(v, next)
	if err != nil {
		return err
	}
	rec.Seq, rec.Making = head.Seq, ""
	v.record = rec
	m.cfg.Log.Debug("layers are one", "volume", v.id, "layers", n)
	if err := m.writeRecord(rec); err != nil {
		return err
	}
	return m.writeSeen(v)
}

// toMerge is at least half of mergeFrom.
func toMerge(all []store.Layer) int {
	n, above := 0, int64(0)
	for _, l := range all {
		if n >= mergeFrom/2 && l.Size > 2*above {
			break
		}
		n, above = n+1, above+l.Size
	}
	return n
}
