package volumes

import (
	"context"
	"errors"
	"slices"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

// Where are the nodes at which a sandbox can have the volumes that it wants.
type Where struct {
	Home  []string // nodes that have them already
	Nodes []string // all
}

// Where says where a sandbox can have volumes of a team.
func (k *Keeper) Where(ctx context.Context, team uuid.UUID, wants []store.MountWant) (Where, error) {
	all := make([]store.Volume, len(wants))
	for i, want := range wants {
		var err error
		if all[i], err = k.cfg.Store.Volume(ctx, team, want.Volume); err != nil {
			return Where{}, err
		}
	}
	return k.WhereOf(all)
}

// WhereOf is Where of volumes that were read. It waits for nothing.
func (k *Keeper) WhereOf(all []store.Volume) (Where, error) {
	var w Where
	for i, v := range all {
		if v.AccessMode == store.ReadWriteMany {
			return Where{}, errdefs.New(errdefs.InvalidArgument, "a volume of access mode %s can't be mounted in a sandbox", v.AccessMode)
		}
		can, home := k.at(v), []string{v.Node}
		if i > 0 {
			can, home = both(can, w.Nodes), both(home, w.Home)
		}
		w = Where{Home: home, Nodes: can}
	}
	if len(w.Nodes) == 0 {
		return Where{}, errElsewhere
	}
	w.Home = both(w.Home, w.Nodes)
	return w, nil
}

func both(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
}

// Hold takes volumes for a claim at a node, all or none, and answers what the node is told
// of them. The claim's row makes them its sandbox's; [Keeper.Free] gives them back.
func (k *Keeper) Hold(ctx context.Context, h store.Holder, wants []store.MountWant) ([]*nodeapi.Mount, error) {
	held, err := k.hold(ctx, &h, wants)
	if err != nil {
		return nil, err
	}
	return mountsToWire(held)
}

// HoldAtHome is Hold of one volume at the node that had it last. ok is false, and nothing
// is taken, where all is not so simple: Hold says what it is.
func (k *Keeper) HoldAtHome(ctx context.Context, h store.Holder, want store.MountWant) (mounts []*nodeapi.Mount, ok bool, err error) {
	held, ok, err := k.cfg.Store.TakeVolumeAtHome(ctx, h, want, mountLease)
	if err != nil || !ok {
		return nil, false, err
	}
	mounts, err = mountsToWire([]store.Held{held})
	return mounts, err == nil, err
}

func (k *Keeper) hold(ctx context.Context, h *store.Holder, wants []store.MountWant) ([]store.Held, error) {
	return k.handOver(ctx, h, func() ([]store.Held, error) { return k.cfg.Store.TakeVolumes(ctx, *h, wants, mountLease) })
}

// handOver repeats taking while other nodes have to let volumes go first.
func (k *Keeper) handOver(ctx context.Context, h *store.Holder, take func() ([]store.Held, error)) ([]store.Held, error) {
	for tries := 0; ; tries++ {
		held, err := take()
		elsewhere, is := errors.AsType[*store.Elsewhere](err)
		if !is {
			return held, err
		}
		if tries == MaxMounts*handOvers {
			return nil, errMoving
		}
		if err := k.release(ctx, elsewhere.Volume); err != nil {
			return nil, err
		}
		if h.Released == nil {
			h.Released = map[uuid.UUID]int64{}
		}
		h.Released[elsewhere.Volume.ID] = elsewhere.Volume.Epoch
	}
}

// release has a node let a volume go. One that is lost has let go what it had: whatever it
// still writes is of an older epoch.
func (k *Keeper) release(ctx context.Context, v store.Volume) error {
	if !k.cfg.Table.IsSynced(v.Node) {
		if k.cfg.Table.Silence(v.Node) < lostAfter {
			return errElsewhere
		}
		return nil
	}
	rpc, err := k.rpc(v.Node)
	if err != nil {
		return err
	}
	wire, err := toWire(v)
	if err != nil {
		return err
	}
	if _, err := rpc.ReleaseVolume(ctx, &nodeapi.ReleaseVolumeRequest{Volume: wire}); err != nil {
		return failure(err, "the volume could not be moved from its node")
	}
	return nil
}

// Free gives back what a claim has taken that became no sandbox.
func (k *Keeper) Free(ctx context.Context, claim uuid.UUID) error {
	return k.cfg.Store.FreeVolumes(ctx, claim)
}

// Again answers what the node of a sandbox that is to run again is told of the volumes that
// it has. With retake, they are the node's from now on, at new epochs: nobody else is
// starting the sandbox.
func (k *Keeper) Again(ctx context.Context, row store.Sandbox, retake bool) ([]*nodeapi.Mount, error) {
	h := store.Holder{Team: row.TeamID, Claim: row.ClaimID, Sandbox: row.ID, Node: row.Node}
	take := func() ([]store.Held, error) { return k.cfg.Store.RetakeVolumes(ctx, h, retake) }
	held, err := k.handOver(ctx, &h, take)
	if err != nil {
		return nil, err
	}
	return mountsToWire(held)
}

// CanMove reports whether a node can have all volumes of a sandbox.
func (k *Keeper) CanMove(ctx context.Context, row store.Sandbox, node string) (bool, error) {
	has, err := k.cfg.Store.Mounts(ctx, row.TeamID, row.ID)
	if err != nil || len(has) == 0 {
		return err == nil, err
	}
	wants := make([]store.MountWant, len(has))
	for i, m := range has {
		wants[i].Volume = m.VolumeID
	}
	where, err := k.Where(ctx, row.TeamID, wants)
	return slices.Contains(where.Nodes, node), err
}

// Mount mounts a volume into a running sandbox of its team, which sees it when this
// answers.
func (k *Keeper) Mount(ctx context.Context, row store.Sandbox, want store.MountWant) (store.Mount, error) {
	if row.Status != sandbox.Running {
		return store.Mount{}, errdefs.New(errdefs.Conflict, "the sandbox is %s, not running", row.Status)
	}
	where, err := k.Where(ctx, row.TeamID, []store.MountWant{want})
	if err != nil {
		return store.Mount{}, err
	}
	if !slices.Contains(where.Nodes, row.Node) {
		return store.Mount{}, errdefs.New(errdefs.Conflict, "the volume is not to be had at the sandbox's node")
	}
	has, err := k.cfg.Store.Mounts(ctx, row.TeamID, row.ID)
	if err == nil {
		err = CheckPoints(append(points(has), want.Point))
	}
	if err != nil {
		return store.Mount{}, err
	}
	ctx, cancel := detached(ctx, workTimeout)
	defer cancel()
	h := store.Holder{Team: row.TeamID, Claim: row.ClaimID, Sandbox: row.ID, Node: row.Node}
	held, err := k.hold(ctx, &h, []store.MountWant{want})
	if err != nil {
		return store.Mount{}, err
	}
	m := held[0].Mount
	if err = k.mountAtNode(ctx, row, held[0]); err == nil {
		err = k.cfg.Store.FinishMount(ctx, row.TeamID, m.ID)
	}
	if err != nil {
		k.undoMount(ctx, row, m)
		return store.Mount{}, err
	}
	k.cfg.Log.Info("mounted a volume", "volume", m.VolumeID, "sandbox", row.ID, "gen", row.Generation, "team", row.TeamID, "node", row.Node)
	return m, nil
}

func points(mounts []store.Mount) []string {
	list := make([]string, len(mounts))
	for i, m := range mounts {
		list[i] = m.Point
	}
	return list
}

func (k *Keeper) mountAtNode(ctx context.Context, row store.Sandbox, h store.Held) error {
	rpc, err := k.rpc(row.Node)
	if err != nil {
		return err
	}
	wire, err := mountToWire(h)
	if err != nil {
		return err
	}
	_, err = rpc.MountVolume(ctx, &nodeapi.MountVolumeRequest{Id: string(row.ID), Generation: uint64(row.Generation), Mount: wire})
	if connect.CodeOf(err) == connect.CodeAlreadyExists {
		return errdefs.New(errdefs.Conflict, "something is mounted at %s", h.Mount.Point).WithCause(err)
	}
	if refused, ok := errors.AsType[*connect.Error](err); ok && refused.Code() == connect.CodeFailedPrecondition && Refused(err) == nil {
		return errdefs.New(errdefs.Conflict, "the volume could not be mounted: %s", nodeapi.Text(refused.Message())).WithCause(err)
	}
	if err != nil {
		return failure(err, "the volume could not be mounted")
	}
	return nil
}

// undoMount takes back what may have been mounted. If the node can't be told now, the
// lease ends and the next who has the volume is at a later epoch.
func (k *Keeper) undoMount(ctx context.Context, row store.Sandbox, m store.Mount) {
	ctx, cancel := detached(audit.Without(ctx), tellTimeout)
	defer cancel()
	err := k.unmountAtNode(ctx, row, m.ID)
	if err == nil {
		err = k.cfg.Store.RemoveMount(ctx, row.TeamID, m.ID)
	}
	if err != nil {
		k.logFailure(ctx, "could not undo a mount", err)
	}
}

// Unmount takes a volume away from a running or paused sandbox, by the id of its mount.
func (k *Keeper) Unmount(ctx context.Context, row store.Sandbox, volume, id uuid.UUID) error {
	has, err := k.cfg.Store.Mounts(ctx, row.TeamID, row.ID)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(has, func(m store.Mount) bool { return m.ID == id && m.VolumeID == volume }) {
		return errdefs.New(errdefs.NotFound, "mount not found")
	}
	ctx, cancel := detached(ctx, workTimeout)
	defer cancel()
	if row, err = k.cfg.Store.BeginUnmount(audit.Without(ctx), row, id, mountLease); err != nil {
		return err
	}
	if row.Status != sandbox.Running && row.Status != sandbox.Paused {
		return errdefs.New(errdefs.Conflict, "the sandbox is %s", row.Status)
	}
	if err := k.unmountAtNode(ctx, row, id); err != nil {
		if row.Status == sandbox.Paused {
			k.keepMount(ctx, row, id)
		}
		return err
	}
	k.cfg.Log.Info("unmounted a volume", "volume", volume, "sandbox", row.ID, "gen", row.Generation, "team", row.TeamID, "node", row.Node)
	return k.cfg.Store.RemoveMount(ctx, row.TeamID, id)
}

// keepMount gives a paused sandbox a volume back that its node did not let go.
func (k *Keeper) keepMount(ctx context.Context, row store.Sandbox, id uuid.UUID) {
	ctx, cancel := detached(audit.Without(ctx), tellTimeout)
	defer cancel()
	if err := k.cfg.Store.CancelUnmount(ctx, row, id); err != nil {
		k.logFailure(ctx, "could not undo an unmount", err)
	}
}

// unmountAtNode has the node commit and unmount. A paused sandbox has nothing mounted, but
// what it has written may not be committed yet, and it may run by what its node knows. A
// node that is lost, or does not have it any more, is at an epoch that the volume's next
// owner leaves behind.
func (k *Keeper) unmountAtNode(ctx context.Context, row store.Sandbox, id uuid.UUID) error {
	paused := row.Status == sandbox.Paused
	if paused && !k.cfg.Table.IsSynced(row.Node) && k.cfg.Table.Silence(row.Node) >= lostAfter {
		return nil
	}
	rpc, err := k.rpc(row.Node)
	if err != nil {
		return err
	}
	req := &nodeapi.UnmountVolumeRequest{Id: string(row.ID), Generation: uint64(row.Generation), Mount: id.String()}
	if paused {
		req.Generation = 0 // a resume may have begun and failed since
	}
	_, err = rpc.UnmountVolume(ctx, req)
	if paused && connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	if err != nil {
		return failure(err, "the volume could not be unmounted")
	}
	return nil
}
