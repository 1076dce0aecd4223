package table

import (
	"errors"

	"s0.run/internal/sandbox"
	"s0.run/netd/internal/bpf"
)

// Sweep takes out of the kernel what was of links that are gone.
func (t *Table) Sweep() error {
	known := t.cfg.Kernel.Links() // before the links are listed: one that comes meanwhile is no leftover
	links, err := t.cfg.Plane.Links()
	if err != nil {
		return err
	}
	var errs []error
	for _, place := range known {
		if id, ok := links[place.Ifindex]; ok && t.isOf(place, id) {
			continue
		}
		t.cfg.Log.Info("sweeping what a link has left", "ifindex", place.Ifindex, "address", place.IPv4)
		errs = append(errs, t.sweepOne(place))
	}
	return errors.Join(errs...)
}

// isOf says whether a place may be of a sandbox: of what nobody has told yet it is not
// known whose it is.
func (t *Table) isOf(place bpf.Place, id sandbox.ID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.bySerial[place.Serial]
	return e == nil || e.slot.ID == id
}

func (t *Table) sweepOne(place bpf.Place) error {
	t.mu.RLock()
	e := t.bySerial[place.Serial]
	t.mu.RUnlock()
	if e != nil {
		return t.end(e)
	}
	t.mu.Lock()
	t.left = append(t.left, place.IPv4, place.IPv6)
	t.mu.Unlock()
	return t.cfg.Kernel.Detach(place.Serial)
}
