package claim

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/api/internal/volumes"
)

// mountsOf are the volumes that a claim asks for, each as its template has its place. A
// claim may name places that the template does not.
func mountsOf(tmpl *templates.Template, wants []store.MountWant) ([]store.MountWant, error) {
	points := make([]string, len(wants))
	wants = slices.Clone(wants)
	for i := range wants {
		points[i] = wants[i].Point
		for _, declared := range tmpl.Spec.VolumeMounts {
			if declared.MountPath == wants[i].Point && declared.ReadOnly != nil {
				wants[i].ReadOnly = *declared.ReadOnly
			}
		}
	}
	return wants, volumes.CheckPoints(points)
}

// takeNear takes a slot of a node that can have the claim's volumes, best where they are.
func (c *Claimer) takeNear(p *plan) (placement.Slot, bool) {
	if slot, ok := c.cfg.Table.TakeAt(p.tmpl.PoolKey, p.where.Home); ok {
		return slot, true
	}
	return c.cfg.Table.TakeAt(p.tmpl.PoolKey, p.where.Nodes)
}

// withoutVolumes are the nodes that can't have the claim's volumes.
func (c *Claimer) withoutVolumes(p *plan) map[string]bool {
	cant := map[string]bool{}
	if len(p.req.Mounts) > 0 {
		for _, n := range c.cfg.Table.Synced() {
			if !slices.Contains(p.where.Nodes, n.Name) {
				cant[n.Name] = true
			}
		}
	}
	return cant
}

// find finds out where a claim can have its volumes, unless an attempt at a slot has.
func (c *Claimer) find(ctx context.Context, p *plan) (err error) {
	if len(p.req.Mounts) > 0 && len(p.where.Nodes) == 0 {
		p.where, err = c.cfg.Volumes.Where(ctx, p.req.TeamID, p.req.Mounts)
	}
	return err
}

// hold takes the claim's volumes for one attempt of it, for a node that is known or that choose
// chooses.
func (c *Claimer) hold(ctx context.Context, h *half, choose func([]store.Volume) (string, error)) (err error) {
	if len(h.p.req.Mounts) == 0 {
		return nil
	}
	holder := store.Holder{Team: h.row.TeamID, Claim: h.row.ClaimID, Node: h.node, Choose: choose}
	h.mounts, err = c.cfg.Volumes.Hold(ctx, holder, h.p.req.Mounts)
	return err
}

// free gives back what an attempt took that became no sandbox: what did keeps its volumes.
func (c *Claimer) free(ctx context.Context, h *half) error {
	return c.cfg.Volumes.Free(ctx, h.row.ClaimID)
}

// undoVolumes does so before the attempt's failure is known to anybody: who tries again, the
// same claim or its client, has to hear why that fails, not that the volumes are mounted.
func (c *Claimer) undoVolumes(ctx context.Context, h *half) {
	if len(h.mounts) == 0 {
		return
	}
	c.undoNow(ctx, h, "volumes", c.free)
}

// undoRow takes back the row of an attempt that its node has refused, which has the volumes.
func (c *Claimer) undoRow(ctx context.Context, h *half) {
	if len(h.mounts) == 0 {
		c.undo(ctx, h, "row", c.removeRow)
		return
	}
	c.undoNow(ctx, h, "row", c.removeRow)
}

// undoNow is undo that is waited for where it succeeds at once, and tells whether it has.
func (c *Claimer) undoNow(ctx context.Context, h *half, what string, f func(context.Context, *half) error) (done bool) {
	now, cancel := context.WithTimeout(context.WithoutCancel(ctx), insertTimeout)
	defer cancel()
	if f(now, h) != nil {
		c.undo(ctx, h, what, f)
		return false
	}
	return true
}

// mounted claims a slot for a sandbox with volumes: they come first, for the node has to know
// at which epochs it has them.
func (c *Claimer) mounted(ctx context.Context, p *plan, conn *store.Reservation) (sb store.Sandbox, err error) {
	h := c.half(p, "", "", 0)
	if err := c.holdSlot(ctx, h); err != nil {
		return store.Sandbox{}, err
	}
	defer func() {
		if err != nil {
			conn.Release() // see insert
			c.undoVolumes(ctx, h)
		}
	}()
	return c.meet(ctx, h, conn)
}

// holdSlot takes an attempt's slot and volumes, both or none. Where nobody knows whether the
// database has taken the volumes, they are given back and taken once more (X36).
func (c *Claimer) holdSlot(ctx context.Context, h *half) error {
	err := c.tryHold(ctx, h)
	if !store.Unknown(err) {
		return err
	}
	if c.undoNow(ctx, h, "volumes", c.free) {
		err = c.tryHold(ctx, h)
	}
	if store.Unknown(err) {
		c.undo(ctx, h, "volumes", c.free)
	}
	return err
}

func (c *Claimer) tryHold(ctx context.Context, h *half) error {
	if done, err := c.holdAtHome(ctx, h); done || err != nil {
		return err
	}
	var slot placement.Slot
	err := c.hold(ctx, h, c.slotFor(h, &slot))
	switch {
	case err == nil:
		c.homes.put(h)
	case h.node != "":
		c.giveUpSlot(h, slot)
	}
	return err
}

// holdAtHome guesses where the claim's one volume is and takes a slot there first. Where the
// guess was right, which it mostly is, that is a round trip less; where it was not, nothing
// is taken.
func (c *Claimer) holdAtHome(ctx context.Context, h *half) (done bool, err error) {
	if len(h.p.req.Mounts) != 1 {
		return false, nil
	}
	want := h.p.req.Mounts[0]
	home := c.homeOf(want.Volume)
	h.p.where = volumes.Where{Home: []string{home}}
	defer func() {
		if !done {
			h.p.where = volumes.Where{}
		}
	}()
	slot, ok := c.take(h.p)
	if !ok {
		return false, nil
	}
	h.at(slot.Node, slot.ID, slot.Generation)
	holder := store.Holder{Team: h.row.TeamID, Claim: h.row.ClaimID, Node: h.node}
	if h.mounts, done, err = c.cfg.Volumes.HoldAtHome(ctx, holder, want); !done {
		c.giveUpSlot(h, slot)
	}
	return done, err
}

// giveUpSlot leaves an attempt's slot to others: nobody has asked its node.
func (c *Claimer) giveUpSlot(h *half, slot placement.Slot) {
	c.cfg.Table.SlotFree(slot)
	h.at("", "", 0)
}

// homeOf guesses which node had a volume last: the only one there is, or where it was when
// it was taken here.
func (c *Claimer) homeOf(volume uuid.UUID) string {
	if all := c.cfg.Table.Synced(); len(all) == 1 {
		return all[0].Name
	}
	return c.homes.of(volume)
}

// slotFor takes an attempt's slot. Where its volumes are says at which node that has to be, so
// it is taken when they are read and locked: to read them before would be a round trip of its
// own. A volume that has to leave another node first comes to that slot.
func (c *Claimer) slotFor(h *half, slot *placement.Slot) func([]store.Volume) (string, error) {
	return func(all []store.Volume) (string, error) {
		if h.node != "" {
			return h.node, nil
		}
		where, err := c.cfg.Volumes.WhereOf(all)
		if err != nil {
			return "", err
		}
		h.p.where = where
		taken, ok := c.take(h.p)
		if !ok {
			return "", errNoSlot
		}
		*slot = taken
		h.at(taken.Node, taken.ID, taken.Generation)
		return taken.Node, nil
	}
}
