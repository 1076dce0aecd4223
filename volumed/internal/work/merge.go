package work

import (
	"context"
	"os"

	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
)

// mergeSome makes one layer of the topmost ones when there are many: of as many that none
// among them is more than twice as large as all above it together, so that a byte is
// copied a number of times that grows like a logarithm. The caller has the turn.
func (m *Manager) mergeSome(ctx context.Context, v *volume) error {
	if len(v.head.Layers) < mergeFrom || v.lost != nil || v.whole || len(v.pending) > 0 || v.record.Intent != nil {
		return nil
	}
	n := toMerge(v.head.Layers)
	some := v.head.Layers[:n]
	base, err := m.layers.take(some)
	if err != nil {
		return err
	}
	defer m.layers.give(base)
	one, err := m.newLayer(func(f *os.File) (layers.Info, error) {
		return layers.Merge(ctx, f, base.dirs, n == len(v.head.Layers))
	})
	if err != nil {
		return err
	}
	defer m.layers.land(one)
	next := v.next()
	next.Layers = append([]store.Layer{one}, v.head.Layers[n:]...)
	if err := m.advance(v, next); err != nil {
		return err
	}
	m.cfg.Log.Debug("layers are one", "volume", v.id, "layers", n)
	return nil
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
